//! How the guest goes down, and whether it would come up again.

use vmd_release::Generation;

use super::{OUR_KERNEL, add_to_command_line};
use crate::{Finding, Guest, Severity};

const TOPIC: &str = "reboot and power-off";

/// Ways to reboot that do not ask the keyboard controller, which vmd does not have: recorded on 7.8, these took 4.4 s, the
/// others 25 to 47 (`tests/golden/reboot`).
const QUICK: [&str; 4] = ["t", "b", "e", "p"];

/// The first Linux that reads the reason of the last reset where vmd has nothing.
const READS_S5_STATUS: (u32, u32) = (6, 16);

/// Reboot, power-off, and what would kill the next boot.
pub fn check(guest: &Guest) -> Vec<Finding> {
    let mut findings = vec![reboot(guest), power_off(guest)];
    findings.extend(next_boot(guest));
    findings
}

/// The way that `reboot=` names, by its first letter, which is all that Linux looks at.
fn way(guest: &Guest) -> Option<String> {
    let values: Vec<_> = guest.kernel.values("reboot").flat_map(|value| value.split(',')).collect();
    let mut ways = values
        .into_iter()
        .filter(|word| ["t", "k", "b", "a", "e", "p"].iter().any(|way| word.starts_with(way)));
    ways.next_back().map(|way| way[..1].to_owned())
}

fn reboot(guest: &Guest) -> Finding {
    let way = way(guest);
    let mut finding = if guest.host.has_acpi() {
        Finding::new(TOPIC, Severity::Ok, "a reboot restarts the VM").seen("8.0 has reset ports")
    } else if guest.kernel.ours && !guest.kernel.has("nopv") && way.is_none() {
        Finding::new(TOPIC, Severity::Ok, "a reboot restarts the VM at once").seen("this kernel knows vmm")
    } else if way.as_deref().is_some_and(|way| QUICK.contains(&way)) {
        Finding::new(TOPIC, Severity::Ok, "a reboot restarts the VM at once")
    } else {
        let waits = "the kernel waits for a keyboard controller, which vmd does not have before 8.0";
        let finding = if guest.host.at_least(Generation::V7_9) {
            Finding::new(TOPIC, Severity::Note, "a reboot may hang for up to a minute")
                .seen(waits)
                .seen("7.9 is said to restart all the same; that has not been recorded")
        } else {
            Finding::new(TOPIC, Severity::Warning, "a reboot hangs for up to a minute").seen(waits)
        };
        match way {
            Some(_) => finding.remedy("write reboot=t instead of that on the kernel's command line"),
            None => finding.remedy(add_to_command_line(&guest.system, "reboot=t")),
        }
    };
    for value in guest.kernel.values("reboot") {
        finding = finding.seen(format!("the command line says reboot={value}"));
    }
    finding
}

fn power_off(guest: &Guest) -> Finding {
    let finding = |severity, what: &str| Finding::new(TOPIC, severity, what);
    if guest.host.has_acpi() {
        return if guest.system.names("sys/firmware/acpi/tables").is_empty() {
            finding(Severity::Warning, "a power-off only halts: the kernel does not use ACPI")
                .remedy("take acpi=off off the kernel's command line; a kernel without ACPI needs another configuration")
        } else {
            finding(Severity::Ok, "a power-off ends the VM through ACPI")
        };
    }
    let driven = guest.config.as_ref().is_ok_and(|(_, config)| config.is_set("OPENBSD_VMMCI"));
    if driven {
        finding(Severity::Ok, "a power-off is announced to the host, which then ends the VM")
    } else {
        finding(Severity::Ok, "a power-off ends the VM, by a halt with interrupts off")
            .seen("vmd logs that as an error; vmmcid's service, where it is installed, announces it instead")
    }
}

/// On AMD hosts up to 7.9 unpatched kernels since 6.16 die early in boot: what that means for this guest.
fn next_boot(guest: &Guest) -> Option<Finding> {
    if guest.kernel.ours || !guest.host.at_most(Generation::V7_9) {
        return None;
    }
    let word = "initcall_blacklist=print_s5_reset_status_mmio";
    let reads = "Linux 6.16 and later read 0xfed80300 on AMD processors; there is nothing before 8.0, and vmd ends the VM";
    Some(if guest.kernel.has(word) {
        Finding::new(
            TOPIC,
            Severity::Ok,
            "the kernel is kept from reading 0xfed80300, which would end the VM",
        )
        .seen(format!("the command line has {word}"))
    } else if guest.host.amd && guest.kernel.series().is_some_and(|series| series >= READS_S5_STATUS) {
        Finding::new(TOPIC, Severity::Ok, "this kernel has come past what ends others early in boot")
            .seen(reads)
    } else {
        let place = if guest.host.amd { "here" } else { "on a host with an AMD processor" };
        let what = format!("after an upgrade to Linux 6.16 or later this guest would not boot {place}");
        Finding::new(TOPIC, Severity::Note, what)
            .seen(reads)
            .remedy(format!("{}\nor {OUR_KERNEL}", add_to_command_line(&guest.system, word)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn stock_kernels_need_a_word_for_a_quick_reboot() {
        let mut recorded = fixture::recorded();
        assert_eq!(reboot(&recorded.guest()).severity, Severity::Warning);
        for (words, severity) in [
            ("reboot=t", Severity::Ok),
            ("reboot=k", Severity::Warning),
            ("reboot=k,triple", Severity::Ok),
            ("reboot=warm", Severity::Warning),
            ("reboot=pci panic=-1", Severity::Ok),
        ] {
            recorded.write("proc/cmdline", words);
            assert_eq!(reboot(&recorded.guest()).severity, severity, "{words}");
        }
        recorded.write("proc/cmdline", "console=ttyS0");
        let mut newer = recorded.guest();
        newer.host.vmd = vec![Generation::V7_9];
        assert_eq!(reboot(&newer).severity, Severity::Note);
        recorded.write("proc/config.gz", "CONFIG_OPENBSD_GUEST=y\n");
        assert_eq!(reboot(&recorded.guest()).severity, Severity::Ok);
        recorded.write("proc/cmdline", "nopv");
        assert_eq!(reboot(&recorded.guest()).severity, Severity::Warning);
    }

    #[test]
    fn what_kills_on_amd_must_be_kept_from_running() {
        let mut recorded = fixture::recorded();
        assert_eq!(next_boot(&recorded.guest()).unwrap().severity, Severity::Ok);
        recorded.write("proc/cmdline", "initcall_blacklist=x,y");
        assert!(next_boot(&recorded.guest()).unwrap().what.contains("has come past"));
        recorded.write("proc/sys/kernel/osrelease", "6.12.107+deb13-cloud-amd64");
        let upgrade = next_boot(&recorded.guest()).unwrap();
        assert_eq!(upgrade.severity, Severity::Note);
        assert!(upgrade.what.ends_with("not boot here"));
        assert!(upgrade.remedy.unwrap().contains("initcall_blacklist="));
        recorded.cpuid.insert(0, [0, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
        assert!(next_boot(&recorded.guest()).unwrap().what.ends_with("AMD processor"));
        recorded.write("proc/config.gz", "CONFIG_OPENBSD_GUEST=y\n");
        assert_eq!(next_boot(&recorded.guest()), None);
    }

    #[test]
    fn a_power_off_is_acpis_where_there_is_acpi() {
        let mut recorded = fixture::recorded();
        assert_eq!(power_off(&recorded.guest()).severity, Severity::Ok);
        recorded.cpuid.get_mut(&1).unwrap()[3] |= 1 << 9;
        assert_eq!(power_off(&recorded.guest()).severity, Severity::Warning);
        recorded.write("sys/firmware/acpi/tables/FACP", "");
        assert_eq!(power_off(&recorded.guest()).severity, Severity::Ok);
    }
}
