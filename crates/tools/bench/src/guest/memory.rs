//! What `/proc` tells of memory and interrupts.

use std::{collections::BTreeMap, fs, io};

use crate::event::Memory;

/// Memory now.
pub(super) fn read() -> io::Result<Memory> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let iomem = fs::read_to_string("/proc/iomem").unwrap_or_default();
    Ok(Memory {
        total: field(&meminfo, "MemTotal:"),
        available: field(&meminfo, "MemAvailable:"),
        code: region(&iomem, &["Kernel code"]),
        data: region(&iomem, &["Kernel rodata", "Kernel data", "Kernel bss"]),
    })
}

fn field(meminfo: &str, name: &str) -> u64 {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// KiB of the regions of `/proc/iomem` with these names.
fn region(iomem: &str, names: &[&str]) -> u64 {
    let bytes = iomem.lines().filter_map(|line| {
        let (range, name) = line.trim().split_once(" : ")?;
        let (start, end) = range.split_once('-')?;
        let parse = |hex| u64::from_str_radix(hex, 16).ok();
        names.contains(&name).then_some(parse(end)?.checked_sub(parse(start)?)? + 1)
    });
    bytes.sum::<u64>() / 1024
}

/// Interrupts so far, by line of `/proc/interrupts`: `0 timer`, `LOC Local timer interrupts`.
pub(super) fn interrupts() -> io::Result<BTreeMap<String, u64>> {
    Ok(parse_interrupts(&fs::read_to_string("/proc/interrupts")?))
}

fn parse_interrupts(text: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().skip(1).filter_map(|line| {
        let (name, rest) = line.trim().split_once(':')?;
        let mut rest = rest.split_whitespace();
        let count = rest.next()?.parse().ok()?;
        let what: Vec<&str> = rest.collect();
        let what = if name.parse::<u32>().is_ok() {
            what.last().copied().unwrap_or_default().to_owned()
        } else {
            what.join(" ")
        };
        Some((format!("{name} {what}"), count))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_told_by_line() {
        let text = "           CPU0       \n   0:        936  XT-PIC          timer\n   9:   0  XT-PIC  acpi, eth0\n LOC:          5   Local timer interrupts\n ERR:          0\n";
        let found = parse_interrupts(text);
        assert_eq!(found["0 timer"], 936);
        assert_eq!(found["LOC Local timer interrupts"], 5);
        assert_eq!(found["9 eth0"], 0);
        assert_eq!(found["ERR "], 0);
    }

    #[test]
    fn memory_is_added_up() {
        let iomem = "00001000-0009ffff : System RAM\n  01000000-01ffffff : Kernel code\n  02000000-020fffff : Kernel rodata\n  02200000-022fffff : Kernel bss\n";
        assert_eq!(region(iomem, &["Kernel code"]), 16 << 10);
        assert_eq!(region(iomem, &["Kernel rodata", "Kernel data", "Kernel bss"]), 2 << 10);
        assert_eq!(field("MemTotal:  507000 kB\nMemFree: 1 kB\n", "MemTotal:"), 507_000);
    }
}
