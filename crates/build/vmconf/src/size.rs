//! Sizes as scan_scaled(3) takes them.

/// The most memory that a VM can have, in bytes: 128 GiB since 7.5, 32 GiB before (`VMM_MAX_VM_MEM_SIZE`).
pub const MAX_MEMORY: i64 = 128 << 30;

/// A size in bytes: a number, maybe with a fraction, and maybe one of the units B, K, M, G, T, P and E (1024 each).
pub fn parse_size(text: &str) -> Option<i64> {
    let text = text.trim();
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[number.len()..] {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if !whole.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let unit = 1i128 << shift;
    // More digits than that are less than a byte of the largest unit.
    let fraction = &fraction[..fraction.len().min(18)];
    let part = if fraction.is_empty() {
        0
    } else {
        fraction.parse::<i128>().ok()? * unit / 10i128.pow(u32::try_from(fraction.len()).ok()?)
    };
    let bytes = whole.checked_mul(unit)?.checked_add(part)?;
    i64::try_from(if negative { -bytes } else { bytes }).ok()
}

/// A size as people write it: `512M`, `2G`, or bytes where it is not whole MiB.
pub fn show_size(bytes: i64) -> String {
    match bytes {
        _ if bytes > 0 && bytes % (1 << 30) == 0 => format!("{}G", bytes >> 30),
        _ if bytes > 0 && bytes % (1 << 20) == 0 => format!("{}M", bytes >> 20),
        _ => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_scan_scaled() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("4.5G", (4 << 30) + (512 << 20)),
            (".5k", 512),
            ("1024", 1024),
            ("-1K", -1024),
            ("10B", 10),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "M", ".", "5X", "5MB", "1.2.3", "99999999999E", "5 M", "1e3"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        assert_eq!(
            (show_size(1 << 30), show_size(512 << 20), show_size(1000)),
            ("1G".into(), "512M".into(), "1000".into())
        );
    }
}
