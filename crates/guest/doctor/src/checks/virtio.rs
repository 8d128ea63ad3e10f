//! The virtio devices, their drivers, and the source of randomness.

use vmd_release::Generation;

use crate::{Finding, Guest, Severity, host::PciFunction};

const TOPIC: &str = "virtio";

/// vmd's devices: virtio's number, what it is, the driver and its module, how bad it is without one.
const KINDS: [(u16, &str, &str, Severity); 4] = [
    (1, "network interface", "virtio_net", Severity::Warning),
    (2, "disk", "virtio_blk", Severity::Warning),
    (4, "entropy device", "virtio_rng", Severity::Note),
    (8, "CD-ROM", "virtio_scsi", Severity::Note),
];

/// Each device's driver, and randomness.
pub fn check(guest: &Guest) -> Vec<Finding> {
    let functions = PciFunction::all(&guest.system);
    let mut findings: Vec<_> = functions.iter().filter_map(|function| device(guest, function)).collect();
    findings.push(randomness(guest));
    findings
}

fn device(guest: &Guest, function: &PciFunction) -> Option<Finding> {
    let virtio = function.virtio()?;
    let address = &function.address;
    let (_, name, driver, without) = KINDS.into_iter().find(|(kind, ..)| *kind == virtio.kind).unwrap_or((
        0,
        "device of an unknown kind",
        "",
        Severity::Note,
    ));
    let version = if virtio.legacy { "virtio 0.9" } else { "virtio 1.x" };
    let child = guest
        .system
        .names(format!("sys/bus/pci/devices/{address}"))
        .into_iter()
        .find(|name| name.strip_prefix("virtio").is_some_and(|n| n.parse::<u32>().is_ok()));
    let bound =
        child.as_ref().and_then(|child| guest.system.link(format!("sys/bus/virtio/devices/{child}/driver")));
    let finding = |severity, what: String| {
        Finding::new(TOPIC, severity, what)
            .seen(format!("PCI {:04x}:{:04x}, {version}", function.vendor, function.device))
    };
    Some(match (child, bound) {
        (_, Some(bound)) => {
            let msi = guest.system.names(format!("sys/bus/pci/devices/{address}/msi_irqs")).len();
            let shown = finding(Severity::Ok, format!("{name} ({address}): driver {bound}"));
            if msi > 0 {
                shown.seen(format!("{msi} MSI-X vectors"))
            } else if guest.host.has_acpi() {
                shown.seen("a shared interrupt line, where 8.0 offers MSI-X: PCI_MSI, or pci=nomsi on the command line")
            } else {
                shown
            }
        }
        (Some(_), None) => {
            let shown = finding(without, format!("{name} ({address}): no driver"));
            if driver.is_empty() { shown } else { shown.remedy(load(driver)) }
        }
        (None, None) => {
            let shown = finding(without, format!("{name} ({address}): not even virtio_pci has it"));
            let legacy_missing = guest
                .config
                .as_ref()
                .is_ok_and(|(_, config)| config.is_set("VIRTIO_PCI") && !config.is_set("VIRTIO_PCI_LEGACY"));
            if virtio.legacy && legacy_missing && guest.host.at_most(Generation::V7_7) {
                shown.remedy("a kernel with VIRTIO_PCI_LEGACY, or OpenBSD 7.8 or newer on the host")
            } else {
                shown.remedy(load("virtio_pci"))
            }
        }
    })
}

fn load(module: &str) -> String {
    format!("modprobe {module}; echo {module} > /etc/modules-load.d/{module}.conf")
}

fn randomness(guest: &Guest) -> Finding {
    let current = guest.system.text("sys/class/misc/hw_random/rng_current").unwrap_or_default();
    let info = guest.system.text("proc/cpuinfo").unwrap_or_default();
    let rdrand = info
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|flag| flag == "rdrand"));
    let used = !matches!(current.as_str(), "" | "none");
    let sources: Vec<_> =
        [used.then(|| format!("hwrng {current}")), rdrand.then(|| "the processor's RDRAND".to_owned())]
            .into_iter()
            .flatten()
            .collect();
    if sources.is_empty() {
        Finding::new(
            TOPIC,
            Severity::Warning,
            "the kernel has no source of randomness: programs that need keys wait at boot",
        )
        .remedy(load("virtio_rng"))
    } else {
        Finding::new(TOPIC, Severity::Ok, format!("randomness: {}", sources.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn every_device_is_held_against_its_driver() {
        let mut recorded = fixture::recorded();
        let told = |fixture: &fixture::Fixture| -> Vec<(Severity, String)> {
            check(&fixture.guest()).into_iter().map(|finding| (finding.severity, finding.what)).collect()
        };
        assert_eq!(
            told(&recorded),
            [
                (Severity::Ok, "entropy device (0000:00:01.0): driver virtio_rng".into()),
                (Severity::Ok, "disk (0000:00:02.0): driver virtio_blk".into()),
                (Severity::Ok, "randomness: hwrng virtio_rng.0, the processor's RDRAND".into()),
            ]
        );
        recorded.remove("sys/bus/virtio/devices/virtio1/driver");
        recorded.write("sys/class/misc/hw_random/rng_current", "none");
        recorded.write("proc/cpuinfo", "flags : fpu\n");
        let told = told(&recorded);
        assert_eq!(told[1], (Severity::Warning, "disk (0000:00:02.0): no driver".into()));
        assert_eq!(told[2].0, Severity::Warning);
    }

    #[test]
    fn legacy_devices_are_known_by_their_subsystem() {
        let mut recorded = fixture::recorded();
        recorded.cpuid.remove(&0x4000_0100);
        for (address, device) in [("0000:00:01.0", "0x1005"), ("0000:00:02.0", "0x1001")] {
            recorded.write(&format!("sys/bus/pci/devices/{address}/device"), device);
        }
        recorded.remove("sys/bus/pci/devices/0000:00:02.0/virtio1/device");
        std::fs::remove_dir(recorded.path().join("sys/bus/pci/devices/0000:00:02.0/virtio1")).unwrap();
        recorded.write("proc/config.gz", "CONFIG_VIRTIO_PCI=y\n");
        let disk = check(&recorded.guest()).remove(1);
        assert_eq!(disk.evidence, ["PCI 1af4:1001, virtio 0.9"]);
        assert!(disk.remedy.unwrap().contains("VIRTIO_PCI_LEGACY"));
    }
}
