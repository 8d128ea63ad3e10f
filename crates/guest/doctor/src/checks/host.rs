//! Which vmd this is.

use crate::{Finding, Guest, Severity};

const TOPIC: &str = "host";

/// The host's generation and what it was recognised by.
pub fn check(guest: &Guest) -> Finding {
    let host = &guest.host;
    let severity = if host.vmd.len() == 1 { Severity::Ok } else { Severity::Note };
    let mut finding = Finding::new(TOPIC, severity, host.to_string());
    for evidence in &host.evidence {
        finding = finding.seen(evidence);
    }
    match host.vmd.as_slice() {
        [] => finding.remedy("there is nothing to examine: run this inside a guest of OpenBSD's vmd(8)"),
        [_] => finding,
        _ => finding.remedy("nothing needs to be done; run this as root, with the boot messages in dmesg, and they tell which it is"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_recorded_guest_is_one_of_7_8() {
        let finding = check(&fixture::recorded().guest());
        assert_eq!(
            (finding.severity, finding.what.as_str()),
            (Severity::Ok, "guest of vmd(8) of OpenBSD 7.8"),
            "{finding:?}"
        );
        assert!(finding.evidence.iter().any(|text| text == "SMBIOS says OpenBSD VMM"), "{finding:?}");
    }

    /// The recorded guest without its boot messages.
    fn silent() -> fixture::Fixture {
        let mut recorded = fixture::recorded();
        recorded.write("dev/kmsg", "");
        recorded
    }

    #[test]
    fn without_a_memory_map_7_8_and_7_9_cannot_be_told_apart() {
        let finding = check(&silent().guest());
        assert_eq!(
            (finding.severity, finding.what.as_str()),
            (Severity::Note, "guest of vmd(8) of OpenBSD 7.8 or 7.9")
        );
        assert!(finding.evidence.iter().any(|text| text.contains("cannot be told apart")), "{finding:?}");
    }

    #[test]
    fn the_end_of_low_memory_tells_7_9_from_7_8() {
        for (end, release) in [("0x8ffff", "7.9"), ("0x9fbff", "7.8")] {
            let mut guest = silent();
            for (file, value) in [("start", "0x0"), ("end", end), ("type", "System RAM")] {
                guest.write(&format!("sys/firmware/memmap/0/{file}"), value);
            }
            assert_eq!(check(&guest.guest()).what, format!("guest of vmd(8) of OpenBSD {release}"));
            let mut guest = silent();
            let end = end.trim_start_matches("0x");
            guest.write(
                "dev/kmsg",
                &format!("6,1,0,-;BIOS-e820: [mem 0x0000000000000000-0x00000000000{end}] usable\n"),
            );
            assert_eq!(check(&guest.guest()).what, format!("guest of vmd(8) of OpenBSD {release}"));
        }
    }

    #[test]
    fn on_amd_syscfg_tells_7_9_from_7_8() {
        let mut refused = silent();
        refused.write("dev/cpu/0/msr", "");
        assert_eq!(check(&refused.guest()).what, "guest of vmd(8) of OpenBSD 7.8");
        let readable = silent();
        readable.sparse("dev/cpu/0/msr", 0xc001_0018);
        assert_eq!(check(&readable.guest()).what, "guest of vmd(8) of OpenBSD 7.9");
    }

    #[test]
    fn other_generations_are_told_by_what_they_have() {
        let mut old = fixture::recorded();
        old.cpuid.remove(&0x4000_0100);
        for (address, device) in [("0000:00:01.0", "0x1005"), ("0000:00:02.0", "0x1001")] {
            old.write(&format!("sys/bus/pci/devices/{address}/device"), device);
        }
        assert_eq!(check(&old.guest()).what, "guest of vmd(8) of OpenBSD 7.7 or older");
        let mut without_rate = silent();
        without_rate.cpuid.insert(0x4000_0001, [0; 4]);
        assert_eq!(check(&without_rate.guest()).what, "guest of vmd(8) of OpenBSD 7.9");
        let mut new = fixture::recorded();
        new.cpuid.get_mut(&1).unwrap()[3] |= 1 << 9;
        assert_eq!(check(&new.guest()).what, "guest of vmd(8) of OpenBSD 8.0");
    }

    #[test]
    fn elsewhere_there_is_nothing_to_examine() {
        let mut elsewhere = fixture::empty();
        let report = crate::examine(&elsewhere.guest());
        assert_eq!((report.exit_status(), report.findings.len()), (1, 1));
        assert_eq!(report.findings[0].what, "not in a virtual machine");
        elsewhere.cpuid.insert(1, [0, 0, 1 << 31, 0]);
        elsewhere.cpuid.insert(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        assert_eq!(check(&elsewhere.guest()).what, "not a guest of vmd(8), but of KVMKVMKVM");
    }
}
