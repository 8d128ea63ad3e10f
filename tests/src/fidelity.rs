//! The machine against recordings from a real vmd, field by field.
//!
//! Probe programs (`tests/probes`) run in a guest, on the real vmd once and in the machine at every test. Their output
//! is taken apart into named fields ([`Fields`]), and [`compare`] holds the two sets against each other. A difference is
//! an error unless `tests/golden/differences.toml` lists it with its reason; a listed difference that no longer exists
//! is an error too, so the list cannot rot.

use std::{collections::BTreeMap, fmt};

use regex::Regex;
use serde::Deserialize;

/// Named values that a probe saw.
pub type Fields = BTreeMap<String, String>;

/// Which program wrote a text, and so how its fields are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `cpuid_dump.c`.
    Cpuid,
    /// `msrdump.c`.
    Msr,
    /// `od` of each function's sysfs `config` and the first line of its `resource`, below `## ADDRESS`.
    PciConfig,
    /// `v1cfg.c`: the virtio 1.x registers in an I/O BAR.
    VirtioConfig,
    /// `pio.c dump`: a BAR read in every width.
    BarWidths,
    /// `pittest.c`: PIT, port 0x61, keyboard controller, UART, PIC, fw_cfg and RTC registers.
    Ports,
    /// `rtctest.c`: what /dev/rtc0 can do.
    Rtc,
    /// `dump.sh`: what sysfs and procfs show.
    Dump,
    /// `dmesg`: what the kernel said while it booted.
    Messages,
}

/// Takes a probe's output apart; every field's name begins with `name/`.
pub fn fields(probe: Probe, name: &str, output: &str) -> Fields {
    let plain = without_kernel_messages(output);
    let found: Vec<(String, String)> = match probe {
        Probe::Cpuid => cpuid(&plain),
        Probe::Msr => msr(&plain),
        Probe::PciConfig => pci_config(&plain),
        Probe::VirtioConfig => virtio_config(&plain),
        Probe::BarWidths => bar_widths(&plain),
        Probe::Ports => ports(&plain),
        Probe::Rtc => rtc(&plain),
        Probe::Dump => dump(&plain),
        Probe::Messages => messages(output),
    };
    found.into_iter().map(|(field, value)| (format!("{name}/{field}"), value)).collect()
}

fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a constant")
}

/// Kernel messages on the console fall into the middle of the lines of programs: this takes them out again.
fn without_kernel_messages(output: &str) -> String {
    pattern(r"\[ *\d+\.\d{6}\] [^\n]*\n").replace_all(&output.replace('\r', ""), "").into_owned()
}

/// Each message is a field, and how often it came its value: their order is up to who runs first. Addresses that the
/// kernel draws at boot, and the time of day in audit's records, are taken out.
fn messages(output: &str) -> Vec<(String, String)> {
    let line = pattern(r"^\[ *\d+\.\d{6}\] (.*)$");
    let drawn = pattern(r"(rIP: |audit\()[0-9a-fx.:]+");
    let mut times = BTreeMap::<String, usize>::new();
    for line in output.lines().filter_map(|l| line.captures(l.trim_end())) {
        let message = drawn.replace_all(line[1].trim_end(), "$1#");
        *times.entry(message.into_owned()).or_default() += 1;
    }
    times.into_iter().map(|(message, times)| (message, times.to_string())).collect()
}

/// The release of the kernel that said these messages.
fn release(messages: &str) -> Option<String> {
    pattern(r"Linux version (\S+)").captures(messages).map(|m| m[1].to_owned())
}

fn cpuid(output: &str) -> Vec<(String, String)> {
    let line = pattern(r"^([0-9a-f]{8}\.[0-9a-f]{2}): eax=(\w{8}) ebx=(\w{8}) ecx=(\w{8}) edx=(\w{8})");
    let mut found = Vec::new();
    for leaf in output.lines().filter_map(|l| line.captures(l)) {
        for (i, register) in ["eax", "ebx", "ecx", "edx"].iter().enumerate() {
            found.push((format!("{} {register}", &leaf[1]), leaf[i + 2].to_owned()));
        }
    }
    found
}

fn msr(output: &str) -> Vec<(String, String)> {
    let read = pattern(r"^([0-9a-f]{8}) \S.*?(= ([0-9a-f]{16})|: .*#GP)");
    let write = pattern(r"^WR ([0-9a-f]{8}) .*<- (\w+) : (.*)$");
    let mut found = Vec::new();
    for line in output.lines() {
        if let Some(m) = write.captures(line) {
            found.push((format!("write {} {}", &m[1], &m[2]), m[3].trim().to_owned()));
        } else if let Some(m) = read.captures(line) {
            found
                .push((format!("read {}", &m[1]), m.get(3).map_or("#GP", |value| value.as_str()).to_owned()));
        }
    }
    found
}

fn pci_config(output: &str) -> Vec<(String, String)> {
    let bytes = pattern(r"^([0-9a-f]{2} ){15}[0-9a-f]{2}$");
    let (mut found, mut function, mut offset) = (Vec::new(), String::new(), 0);
    for line in output.lines().map(str::trim_end) {
        if let Some(address) = line.strip_prefix("## ") {
            address.clone_into(&mut function);
            offset = 0;
        } else if bytes.is_match(line) {
            for dword in line.as_bytes().chunks(12) {
                let dword = String::from_utf8_lossy(dword).trim().to_owned();
                found.push((format!("{function} +{offset:02x}"), dword));
                offset += 4;
            }
        } else if line.starts_with("0x") {
            found.push((format!("{function} resource 0"), line.to_owned()));
        }
    }
    found
}

fn virtio_config(output: &str) -> Vec<(String, String)> {
    let by_width = pattern(r"^(\+[0-9a-f]{2}): (b \w+) (w \w+) (l \w+)");
    let assignment = pattern(r"([a-z_0-9]+(?:\[\d\])?)=([0-9a-f]+)");
    let mut found = Vec::new();
    for line in output.lines() {
        if let Some(m) = by_width.captures(line) {
            for access in [&m[2], &m[3], &m[4]] {
                let (width, value) = access.split_at(1);
                found.push((format!("{} {width}", &m[1]), value.trim().to_owned()));
            }
            continue;
        }
        let prefix = line.strip_prefix("queue ").map(|rest| format!("queue {} ", &rest[..1]));
        for m in assignment.captures_iter(line) {
            found.push((format!("{}{}", prefix.as_deref().unwrap_or_default(), &m[1]), m[2].to_owned()));
        }
    }
    found
}

fn bar_widths(output: &str) -> Vec<(String, String)> {
    let line = pattern(r"^(\+[0-9a-f]{2}): inb eax=(\w{8})  inw eax=(\w{8})  inl eax=(\w{8})");
    let mut found = Vec::new();
    for m in output.lines().filter_map(|l| line.captures(l)) {
        for (i, width) in ["inb", "inw", "inl"].iter().enumerate() {
            found.push((format!("{} {width}", &m[1]), m[i + 2].to_owned()));
        }
    }
    found
}

/// The registers that `pittest.c` reads. What depends on how fast the machine is becomes a fact that does not.
fn ports(output: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = output.lines();
    while let Some(line) = lines.next() {
        if let Some(reads) = line.strip_prefix("quick_pit style: lsb/msb reads (no latch): ") {
            let mut reads = reads.split_whitespace();
            let first = reads.next();
            let same = reads.all(|read| Some(read) == first);
            found.push(("unlatched reads stand still".to_owned(), same.to_string()));
        } else if let Some(rest) = line.strip_prefix("gate=0: count moved by ") {
            let moved = rest.split(' ').next() != Some("0");
            found.push(("channel 2 counts with its gate closed".to_owned(), moved.to_string()));
        } else if let Some(counts) = line
            .strip_prefix("ch2 successive latched counts: ")
            .or_else(|| line.strip_prefix("ch0 latched counts: "))
        {
            let counts: Vec<&str> = counts.split_whitespace().collect();
            let moving = counts.windows(2).skip(1).all(|pair| pair[0] != pair[1]);
            found.push((format!("{} counts", &line[..3]), moving.to_string()));
        } else if line == "RTC regs:" {
            for _ in 0..4 {
                if let Some((base, bytes)) = lines.next().and_then(|l| l.trim().split_once(": ")) {
                    let base = usize::from_str_radix(base, 16).unwrap_or(usize::MAX);
                    for (i, byte) in bytes.split(' ').enumerate() {
                        found.push((format!("RTC register {:02x}", base + i), byte.to_owned()));
                    }
                }
            }
        } else if let Some((_, max)) = line.strip_prefix("ch0 count min ").and_then(|l| l.split_once(" max "))
        {
            // The last digit is for the reader who comes a little late.
            found
                .push(("channel 0 counts down from about".to_owned(), format!("{}0", &max[..max.len() - 1])));
        } else if line.starts_with("cf8=") {
            found.push(("configuration address and data".to_owned(), line.to_owned()));
        } else if let Some(seen) = line.strip_prefix("RTC UIP seen ") {
            found.push(("RTC update in progress".to_owned(), seen.to_owned()));
        } else if let Some(registers) = line.strip_prefix("uart: 3f8..3ff: ") {
            for (register, value) in registers.split(' ').filter_map(|assignment| assignment.split_once('='))
            {
                found.push((format!("UART register {register}"), value.to_owned()));
            }
        } else if let Some((name, value)) = line.split_once(": ") {
            // Whole lines of register values. Not those whose values are counts: how far a count has come by the
            // time it is read is the machine's speed (and of the three bytes that `readback status ch0` reads in one
            // call, the compiler chose the order).
            if !["ch2 ", "re-armed", "readback status ch0"].iter().any(|counts| line.starts_with(counts)) {
                found.push((name.to_owned(), value.trim().to_owned()));
            }
        }
    }
    found
}

/// Interrupts are counted by what the kernel says they were for: a late one of the kind before does not count.
fn rtc(output: &str) -> Vec<(String, String)> {
    let interrupt = pattern(r"^  (\S+) irq \d+ data ([0-9a-f]+) at");
    let asked = pattern(r"^(\S+): got \d+ of (\d+)");
    let reason = |kind: &str| match kind {
        "UIE" => 0x10,
        "ALARM+3s" => 0x20,
        _ => 0x40,
    };
    let (mut found, mut got) = (Vec::new(), 0);
    for line in output.lines() {
        if let Some(m) = interrupt.captures(line) {
            got += u32::from(u32::from_str_radix(&m[2], 16).is_ok_and(|data| data & reason(&m[1]) != 0));
        } else if let Some(m) = asked.captures(line) {
            found.push((format!("{} interrupts", &m[1]), format!("{got} of {}", &m[2])));
            got = 0;
        } else if let Some(frequency) = line.strip_prefix("irq freq ") {
            found.push(("frequency".to_owned(), frequency.to_owned()));
        } else if let Some(alarm) = line.strip_prefix("alarm reads ") {
            let flags = alarm.rsplit_once(' ').map_or(alarm, |(flags, _time)| flags);
            found.push(("alarm".to_owned(), flags.to_owned()));
        }
    }
    found
}

fn dump(output: &str) -> Vec<(String, String)> {
    let (mut found, mut section) = (Vec::new(), "");
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("=== ") {
            section = name;
            continue;
        }
        let value = match section {
            "e820" => line.split_once(' '),
            "clocksource" | "dmi" | "vulnerabilities" => line.split_once(": "),
            "clockevent" => line.trim_end_matches(' ').rsplit_once("/ "),
            "ioports" => line.trim_start().split_once(" : "),
            "cpuinfo" | "rtc" => {
                line.split_once(": ").map(|(name, value)| (name.trim_end_matches([' ', '\t']), value))
            }
            "platform" => Some((line, "")),
            "pci" => line.strip_prefix("--- ").and_then(|l| l.split_once(' ')),
            _ => None,
        };
        if let Some((name, value)) = value
            && !line.trim().is_empty()
        {
            found.push((format!("{section} {name}"), value.trim().to_owned()));
        }
    }
    found
}

/// The recordings of the probe guest on a real vmd 7.8: the section of the guest's output, its probe, the recording.
pub const RECORDINGS: [(&str, Probe, &str); 10] = [
    ("dmesg", Probe::Messages, include_str!("../golden/dmesg/k73.dmesg.txt")),
    ("cpuid", Probe::Cpuid, include_str!("../golden/cpuid/k73.cpuid.txt")),
    ("msr", Probe::Msr, include_str!("../golden/msr/k73.msr.txt")),
    ("config", Probe::PciConfig, include_str!("../golden/pci/k73.config.hex.txt")),
    ("v1cfg-rng", Probe::VirtioConfig, include_str!("../golden/pci/k73.v1cfg.rng.txt")),
    ("v1cfg-blk", Probe::VirtioConfig, include_str!("../golden/pci/k73.v1cfg.blk.txt")),
    ("iobar", Probe::BarWidths, include_str!("../golden/vmmci/k73.iobar.dump.beforeinit.txt")),
    ("pittest", Probe::Ports, include_str!("../golden/pit_rtc/k73.pittest.txt")),
    ("rtctest", Probe::Rtc, include_str!("../golden/pit_rtc/k73.rtctest.txt")),
    ("dump", Probe::Dump, include_str!("../golden/dump/k73.dump.txt")),
];

/// Holds what the probe guest printed here against the recordings, with the differences that are known. Boot messages
/// are those of one kernel release: another one's are not held against them.
///
/// # Panics
/// If the list of differences does not parse.
pub fn report(sections: &BTreeMap<String, String>) -> Report {
    let differences: Differences =
        toml::from_str(include_str!("../golden/differences.toml")).expect("tests/golden/differences.toml");
    let (mut recorded, mut seen) = (Fields::new(), Fields::new());
    let mut skipped = Vec::new();
    for (name, probe, recording) in RECORDINGS {
        let output = sections.get(name).map_or("", String::as_str);
        if probe == Probe::Messages && release(output).is_some() && release(output) != release(recording) {
            skipped.push(name);
            continue;
        }
        recorded.extend(fields(probe, name, recording));
        seen.extend(fields(probe, name, output));
    }
    let of_skipped = |field: &str| skipped.iter().any(|name| field.starts_with(&format!("{name}/")));
    let mut report = compare(&recorded, &seen, &differences);
    report.stale.retain(|field| !of_skipped(field));
    report.skipped = skipped.into_iter().map(str::to_owned).collect();
    report
}

/// A listed difference between the machine and the real vmd.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// A regular expression that the whole name of the field matches.
    pub field: String,
    /// Why the two differ, and why that is right or cannot be helped.
    pub why: String,
    /// Whether they may happen to be equal, as the time of day or the rate of a TSC.
    #[serde(default)]
    pub may_agree: bool,
}

/// The differences that are known, with their reasons.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    /// In no particular order.
    pub difference: Vec<Listed>,
}

/// What [`compare`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of fields that both have and that are equal.
    pub equal: usize,
    /// Number of fields that differ as listed.
    pub listed: usize,
    /// Unlisted differences: field, recorded value, value seen.
    pub unlisted: Vec<(String, Option<String>, Option<String>)>,
    /// Listed differences that do not exist.
    pub stale: Vec<String>,
    /// Recordings of another kernel release than the guest's.
    pub skipped: Vec<String>,
}

impl Report {
    /// Whether the machine is what the recordings and the list say.
    pub fn is_faithful(&self) -> bool {
        self.unlisted.is_empty() && self.stale.is_empty() && self.equal > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} fields equal, {} differ as listed", self.equal, self.listed)?;
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "(nothing)".to_owned());
        for (field, recorded, seen) in &self.unlisted {
            writeln!(f, "differs: {field}: real vmd {}, here {}", show(recorded), show(seen))?;
        }
        for name in &self.skipped {
            writeln!(f, "not compared: {name}, which another kernel release wrote")?;
        }
        for field in &self.stale {
            writeln!(f, "listed as different, but is not: {field}")?;
        }
        Ok(())
    }
}

/// Holds what was `seen` against what was `recorded`.
pub fn compare(recorded: &Fields, seen: &Fields, differences: &Differences) -> Report {
    let listed: Vec<(Regex, &Listed)> = differences
        .difference
        .iter()
        .map(|listed| (pattern(&format!("^(?:{})$", listed.field)), listed))
        .collect();
    let mut used = vec![false; listed.len()];
    let mut report = Report::default();
    let mut names: Vec<&String> = recorded.keys().chain(seen.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let (was, is) = (recorded.get(name), seen.get(name));
        if was == is {
            report.equal += 1;
        } else if let Some(index) = listed.iter().position(|(pattern, _)| pattern.is_match(name)) {
            used[index] = true;
            report.listed += 1;
        } else {
            report.unlisted.push((name.clone(), was.cloned(), is.cloned()));
        }
    }
    report.stale = used
        .iter()
        .zip(&listed)
        .filter(|(used, (_, listed))| !**used && !listed.may_agree)
        .map(|(_, (_, listed))| listed.field.clone())
        .collect();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Fields {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn listing(fields: &[&str]) -> Differences {
        let difference = fields
            .iter()
            .map(|field| Listed { field: (*field).to_owned(), why: "a reason".to_owned(), may_agree: false })
            .collect();
        Differences { difference }
    }

    #[test]
    fn every_recording_is_taken_apart() {
        let count = |probe, text: &str| fields(probe, "x", text).len();
        assert_eq!(count(Probe::Cpuid, include_str!("../golden/cpuid/k73.cpuid.txt")), 4 * 612);
        assert_eq!(count(Probe::Msr, include_str!("../golden/msr/k73.msr.txt")), 76 + 8);
        assert_eq!(count(Probe::PciConfig, include_str!("../golden/pci/k73.config.hex.txt")), 4 * 65);
        assert_eq!(
            count(Probe::BarWidths, include_str!("../golden/vmmci/k73.iobar.dump.beforeinit.txt")),
            3 * 64
        );
        assert_eq!(count(Probe::Messages, include_str!("../golden/dmesg/k73.dmesg.txt")), 303);
        assert_eq!(count(Probe::Rtc, include_str!("../golden/pit_rtc/k73.rtctest.txt")), 5);
    }

    #[test]
    fn messages_are_counted_without_what_is_drawn_at_boot() {
        let said = "[    0.1] no\n[    0.100000] at rIP: 0xffffffff92537d97 (f+0x7)\r\n[   12.000000] twice\n[    2.000000] twice\n";
        let expected = of(&[("m/at rIP: # (f+0x7)", "1"), ("m/twice", "2")]);
        assert_eq!(fields(Probe::Messages, "m", said), expected);
    }

    #[test]
    fn another_kernels_messages_are_not_compared() {
        let said = "[    0.000000] Linux version 9.9.9 (x)\n[    0.000000] Something new\n";
        let report = report(&[("dmesg".to_owned(), said.to_owned())].into());
        assert_eq!(report.skipped, ["dmesg"]);
        assert!(!report.unlisted.iter().any(|(field, ..)| field.starts_with("dmesg/")));
    }

    #[test]
    fn registers_and_their_values_are_found() {
        let msr = fields(Probe::Msr, "msr", include_str!("../golden/msr/k73.msr.txt"));
        assert_eq!(msr["msr/read 4b564d03"], "#GP");
        assert_eq!(msr["msr/read 4b564d04"], "#GP");
        assert_eq!(msr["msr/read c0011029"], "0000000000000002");
        assert_eq!(msr["msr/write c0010015 0"], "ok; readback 0");
        let virtio = fields(Probe::VirtioConfig, "blk", include_str!("../golden/pci/k73.v1cfg.blk.txt"));
        assert_eq!(virtio["blk/device_feature[0]"], "00000004");
        assert_eq!(virtio["blk/queue 1 size"], "0080");
        assert_eq!(virtio["blk/+10 l"], "0000ffff");
        let ports = fields(Probe::Ports, "ports", include_str!("../golden/pit_rtc/k73.pittest.txt"));
        assert_eq!(ports["ports/unlatched reads stand still"], "true");
        assert_eq!(ports["ports/ch2 counts"], "true");
        assert_eq!(ports["ports/UART register 5"], "60");
        assert_eq!(ports["ports/channel 0 counts down from about"], "7ff0");
        assert_eq!(ports["ports/RTC register 35"], "1f");
        assert_eq!(ports["ports/64<-aa"], "status ff data ff");
        let rtc = fields(Probe::Rtc, "rtc", include_str!("../golden/pit_rtc/k73.rtctest.txt"));
        assert_eq!(rtc["rtc/UIE interrupts"], "0 of 3");
        assert_eq!(rtc["rtc/PIE64 interrupts"], "5 of 5");
        let dump = fields(Probe::Dump, "dump", include_str!("../golden/dump/k73.dump.txt"));
        assert_eq!(dump["dump/dmi sys_vendor"], "OpenBSD");
        assert_eq!(dump["dump/e820 0x100000"], "0x1fffcfff System RAM");
        assert_eq!(dump["dump/clocksource current_clocksource"], "tsc");
    }

    #[test]
    fn kernel_messages_inside_a_line_are_taken_out() {
        let torn = "12345678 (bogus) [   48.007458] msr: odd (pid: 2)\n  : Input/output error (#GP)\n";
        assert_eq!(fields(Probe::Msr, "m", torn)["m/read 12345678"], "#GP");
    }

    #[test]
    fn equal_fields_are_faithful_and_a_difference_is_not() {
        let recorded = of(&[("a", "1"), ("b", "2")]);
        assert!(compare(&recorded, &recorded, &listing(&[])).is_faithful());
        for seen in
            [of(&[("a", "1"), ("b", "3")]), of(&[("a", "1")]), of(&[("a", "1"), ("b", "2"), ("c", "")])]
        {
            let report = compare(&recorded, &seen, &listing(&[]));
            assert!(!report.is_faithful() && report.unlisted.len() == 1, "{report}");
        }
    }

    #[test]
    fn nothing_seen_and_nothing_recorded_is_not_faithful() {
        assert!(!compare(&Fields::new(), &Fields::new(), &listing(&[])).is_faithful());
    }

    #[test]
    fn a_listed_difference_is_allowed_while_it_exists() {
        let (recorded, seen) = (of(&[("a", "1"), ("b.x", "2")]), of(&[("a", "1"), ("b.x", "3")]));
        assert!(compare(&recorded, &seen, &listing(&[r"b\..*"])).is_faithful());
        let report = compare(&recorded, &recorded, &listing(&[r"b\..*"]));
        assert!(!report.is_faithful() && report.stale == [r"b\..*"]);
    }

    #[test]
    fn a_listed_difference_may_be_allowed_to_be_none() {
        let recorded = of(&[("time", "1")]);
        let mut differences = listing(&["time"]);
        differences.difference[0].may_agree = true;
        assert!(compare(&recorded, &recorded, &differences).is_faithful());
    }

    #[test]
    fn a_listed_name_is_the_whole_name() {
        let (recorded, seen) = (of(&[("ab", "1")]), of(&[("ab", "2")]));
        assert_eq!(compare(&recorded, &seen, &listing(&["a"])).unlisted.len(), 1);
    }
}
