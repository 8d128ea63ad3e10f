//! Values of options that several subcommands take.

#[cfg(target_os = "linux")]
use std::time::Duration;

use vmd_release::{Disk, DiskFormat};

/// Where the VM's KVM is.
#[cfg(target_os = "linux")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Accel {
    /// The host's KVM if it works, otherwise nested
    Auto,
    /// The host's KVM
    Kvm,
    /// A helper VM with a processor that QEMU emulates
    Nested,
}

#[cfg(target_os = "linux")]
impl From<Accel> for runner::Accel {
    fn from(accel: Accel) -> Self {
        match accel {
            Accel::Auto => Self::Auto,
            Accel::Kvm => Self::Kvm,
            Accel::Nested => Self::Nested,
        }
    }
}

/// Parses a disk in vmctl(8)'s syntax: a path, with an optional format before it, as in `qcow2:disk.img`.
pub(crate) fn disk(text: &str) -> Result<Disk, String> {
    let (format, path) = match text.split_once(':') {
        Some(("raw", path)) => (Some(DiskFormat::Raw), path),
        Some(("qcow2", path)) => (Some(DiskFormat::Qcow2), path),
        // The colon is part of the file's name.
        _ => (None, text),
    };
    if path.is_empty() {
        Err("a disk needs a path".to_owned())
    } else {
        Ok(Disk { format, path: path.into() })
    }
}

/// Parses a duration such as 90s, 5m or 1h 30m.
#[cfg(target_os = "linux")]
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; write a duration as in 90s, 5m or 3h"))
}

/// Parses a size in vmctl(8)'s syntax: a number, with an optional fraction, and K, M, G or T. Returns bytes, rounded
/// down to whole MiB; at least one MiB.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let bytes = vmconf::parse_size(text).ok_or("write a size with K, M, G or T, as in 512M or 1.5G")?;
    match u64::try_from(bytes).map_err(|_| "a size cannot be negative")? >> 20 {
        0 if text.trim().ends_with(|c: char| c.is_ascii_digit()) => {
            Err(format!("that is less than a megabyte; did you mean {}M?", text.trim()))
        }
        0 => Err("that is less than a megabyte".to_owned()),
        megabytes => Ok(megabytes << 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_may_name_their_format() {
        let read = |text: &str| disk(text).unwrap();
        assert_eq!(read("raw:a.img"), Disk { format: Some(DiskFormat::Raw), path: "a.img".into() });
        assert_eq!(read("qcow2:a").format, Some(DiskFormat::Qcow2));
        assert_eq!(read("odd:name"), Disk { format: None, path: "odd:name".into() });
        assert!(disk("raw:").is_err());
    }

    #[test]
    fn sizes_are_whole_megabytes() {
        for (text, megabytes) in
            [("512M", 512), ("1g", 1024), ("1500k", 1), ("1.5G", 1536), ("0.5T", 1 << 19)]
        {
            assert_eq!(size(text), Ok(megabytes << 20), "{text}");
        }
        assert!(size("512").unwrap_err().contains("did you mean 512M?"));
        assert!(size("512K").unwrap_err().ends_with("less than a megabyte"));
        for text in ["", "M", "1X", "-1M", "99999999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
