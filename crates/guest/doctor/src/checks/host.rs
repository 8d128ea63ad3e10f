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
        _ => finding.remedy("nothing needs to be done; a disk that is in use would tell which it is"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_recorded_guest_is_one_of_7_8() {
        let finding = check(&fixture::recorded().guest());
        assert_eq!(finding.severity, Severity::Note, "{finding:?}");
        let mut recorded = fixture::recorded();
        recorded.write("sys/bus/virtio/devices/virtio1/features", &format!("{:0<64}\n", "0010"));
        let finding = check(&recorded.guest());
        assert_eq!(
            (finding.severity, finding.what.as_str()),
            (Severity::Ok, "guest of vmd(8) of OpenBSD 7.8")
        );
        assert!(finding.evidence.iter().any(|text| text == "SMBIOS says OpenBSD VMM"), "{finding:?}");
        recorded.write("sys/bus/virtio/devices/virtio1/features", &format!("{:0<64}\n", "0010000001"));
        assert_eq!(check(&recorded.guest()).what, "guest of vmd(8) of OpenBSD 7.9");
    }

    #[test]
    fn other_generations_are_told_by_what_they_have() {
        let mut old = fixture::recorded();
        old.cpuid.remove(&0x4000_0100);
        for (address, device) in [("0000:00:01.0", "0x1005"), ("0000:00:02.0", "0x1001")] {
            old.write(&format!("sys/bus/pci/devices/{address}/device"), device);
        }
        assert_eq!(check(&old.guest()).what, "guest of vmd(8) of OpenBSD 7.7 or older");
        let mut without_rate = fixture::recorded();
        without_rate.cpuid.remove(&0x4000_0100);
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
