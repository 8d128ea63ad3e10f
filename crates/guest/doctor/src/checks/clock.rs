//! The clocksource, and how far the clock is from the host's.

use vmd_release::Generation;
use vmmci_sysfs::show;

use super::{OUR_KERNEL, add_to_command_line};
use crate::{Finding, Guest, HostClock, Rate, Severity, measure::Reading};

const TOPIC: &str = "clock";

/// Guest and host this far apart, in nanoseconds, is negligible: NTP does not do better everywhere.
const CLOSE: i64 = 100_000_000;
/// From here on make(1), TLS and logs go wrong.
const FAR: i64 = 2_000_000_000;
/// ppm that a crystal is allowed, and 17 s a day: more is not a clock's but a kernel's doing.
const UNSTEADY: f64 = 200.0;
/// ppm that no kernel of ours, and no stock one with a known TSC rate, is away from the host.
const STEADY: f64 = 20.0;

/// All about time of day.
pub fn check(guest: &Guest) -> Vec<Finding> {
    let mut findings = vec![source(guest)];
    let way = HostClock::find(&guest.system);
    let reading = way.as_ref().and_then(|way| way.reading(&guest.system));
    findings.push(offset(guest, way.as_ref().zip(reading)));
    if let Some(rate) = guest.measured.as_ref().and_then(|measured| measured.rate) {
        findings.push(speed(guest, rate));
    }
    findings
}

fn source(guest: &Guest) -> Finding {
    let files = "sys/devices/system/clocksource/clocksource0";
    let Some(current) = guest.system.text(format!("{files}/current_clocksource")) else {
        return Finding::new(TOPIC, Severity::Note, "the clocksource cannot be seen")
            .remedy("mount -t sysfs sysfs /sys");
    };
    let available = guest.system.text(format!("{files}/available_clocksource")).unwrap_or_default();
    let (severity, says) = match current.as_str() {
        "tsc" => (Severity::Ok, "the TSC, without an exit"),
        "vmm-clock" => {
            (Severity::Ok, "the host's clock, exact, at the cost of two exits inside vmm a reading")
        }
        "kvm-clock" => (Severity::Ok, "the host's clock through the TSC"),
        "tsc-early" => {
            (Severity::Note, "the kernel has not chosen one for good yet: ask again in a few seconds")
        }
        "hpet" | "acpi_pm" => (Severity::Note, "each reading is a trip to a process of the host's"),
        _ => (Severity::Warning, "it counts timer interrupts, of which vmd loses many: the clock runs slow"),
    };
    let mut finding = Finding::new(TOPIC, severity, format!("clocksource {current}: {says}"))
        .seen(format!("available: {available}"));
    if !guest.host.invariant_tsc {
        finding = finding.seen("the host's TSC is not invariant");
    }
    for parameter in ["clocksource", "tsc", "tsc_early_khz"] {
        for value in guest.kernel.values(parameter) {
            finding = finding.seen(format!("the command line says {parameter}={value}"));
        }
    }
    match severity {
        Severity::Warning if guest.kernel.has("nopv") => {
            finding.remedy("take nopv off the kernel's command line: it keeps the kernel from the host's clock")
        }
        Severity::Warning if guest.kernel.ours => {
            finding.remedy("please report this with the output of dmesg: no host is known on which this kernel needs it")
        }
        Severity::Warning if guest.host.at_most(Generation::V7_7) => finding.remedy(format!(
            "{OUR_KERNEL}\nor run the guest on OpenBSD 7.8 or newer: stock kernels cannot read the clock of older hosts"
        )),
        Severity::Warning => finding.remedy(format!(
            "see why the TSC was given up: dmesg | grep -i -e tsc -e clocksource\n{OUR_KERNEL}"
        )),
        Severity::Note if guest.host.invariant_tsc && current != "tsc-early" => {
            finding.remedy(add_to_command_line(&guest.system, "tsc=reliable"))
        }
        _ => finding,
    }
}

fn offset(guest: &Guest, measured: Option<(&HostClock, Reading)>) -> Finding {
    let Some((way, reading)) = measured else {
        let finding = Finding::new(TOPIC, Severity::Note, "the clock could not be held against the host's");
        return if guest.system.is_root() {
            finding.remedy("see the control device below: it has the host's time")
        } else {
            finding.remedy(
                "run this as root: without vmmci driver and vmmcid only root may read the host's time",
            )
        };
    };
    let far = reading.offset.saturating_abs();
    let severity = match far.saturating_sub(reading.error) {
        ..CLOSE => Severity::Ok,
        CLOSE..FAR => Severity::Note,
        _ => Severity::Warning,
    };
    let direction = if reading.offset < 0 { "behind" } else { "ahead of" };
    let what = format!("the clock is {} {direction} the host's", &show(far)[1..]);
    #[allow(clippy::cast_precision_loss)]
    let finding = Finding::new(TOPIC, severity, what)
        .seen(format!("read through {}, to {}", way.name(), &show(reading.error)[1..]))
        .figure("offset_seconds", reading.offset as f64 / 1e9)
        .figure("offset_error_seconds", reading.error as f64 / 1e9);
    if severity == Severity::Ok { finding } else { finding.remedy(keep_time(guest)) }
}

/// How to have the host's time.
fn keep_time(guest: &Guest) -> String {
    let ptp = guest.system.names("sys/class/ptp").into_iter().find(|name| {
        guest
            .system
            .text(format!("sys/class/ptp/{name}/clock_name"))
            .is_some_and(|name| name.contains("vmmci"))
    });
    match ptp {
        Some(ptp) => format!(
            "apt install chrony; echo 'refclock PHC /dev/{ptp} poll 3' >> /etc/chrony/chrony.conf; systemctl restart chrony"
        ),
        None => {
            "run an NTP daemon; chrony with vmmcid takes the host's time: `refclock SOCK` in chrony.conf, \
                 [chrony] in /etc/vmmcid.toml, see vmmcid(8)"
                .to_owned()
        }
    }
}

fn speed(guest: &Guest, rate: Rate) -> Finding {
    let surely = (rate.ppm.abs() - rate.error).max(0.0);
    let severity = if surely < STEADY {
        Severity::Ok
    } else if surely < UNSTEADY {
        Severity::Note
    } else {
        Severity::Warning
    };
    let what = format!("the clock runs {:+.1} ppm (± {:.1}) against the host's", rate.ppm, rate.error);
    let finding = Finding::new(TOPIC, severity, what)
        .seen(format!(
            "CLOCK_MONOTONIC_RAW, which NTP does not correct, over {:.1} s; the longer, the surer: --seconds",
            rate.seconds
        ))
        .figure("rate_ppm", rate.ppm)
        .figure("rate_error_ppm", rate.error);
    match severity {
        Severity::Ok => finding,
        _ if guest.kernel.ours => {
            finding.remedy("measure longer (--seconds 60); if it stays, please report it with dmesg")
        }
        _ => finding.remedy(OUR_KERNEL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_clocksource_that_counts_ticks_is_a_warning() {
        let mut recorded = fixture::recorded();
        let finding = source(&recorded.guest());
        assert_eq!(
            (finding.severity, finding.evidence[0].as_str()),
            (Severity::Ok, "available: tsc kvm-clock")
        );
        let current = "sys/devices/system/clocksource/clocksource0/current_clocksource";
        recorded.write(current, "refined-jiffies\n");
        let finding = source(&recorded.guest());
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.remedy.unwrap().contains("linux-image"));
        recorded.write("proc/cmdline", "nopv");
        assert!(source(&recorded.guest()).remedy.unwrap().contains("nopv"));
    }

    #[test]
    fn offset_and_rate_are_judged_by_what_is_sure() {
        let guest = fixture::recorded().guest();
        let way = HostClock::Daemon;
        let judged =
            |far, error| offset(&guest, Some((&way, Reading { at: 0, offset: far, error }))).severity;
        assert_eq!(judged(-30_000_000, 1000), Severity::Ok);
        assert_eq!(judged(-1_000_000_000, 1000), Severity::Note);
        assert_eq!(judged(10_800_000_000_000, 1000), Severity::Warning);
        assert_eq!(judged(2_500_000_000, 3_000_000_000), Severity::Ok, "the host was slow to answer");
        let rate = |ppm, error| speed(&guest, Rate { ppm, error, seconds: 10.0 });
        assert_eq!(rate(-1.4, 3.0).severity, Severity::Ok);
        assert_eq!(rate(-50.0, 3.0).severity, Severity::Note);
        assert_eq!(rate(-800_000.0, 3.0).severity, Severity::Warning);
        assert_eq!(rate(300.0, 300.0).severity, Severity::Ok);
        assert!(rate(-1.4, 3.0).what.contains("-1.4 ppm (± 3.0)"));
    }

    #[test]
    fn the_drivers_files_are_read_without_root() {
        let mut recorded = fixture::recorded();
        let files = "sys/bus/pci/devices/0000:00:03.0/vmmci";
        recorded.write(&format!("{files}/offset_ns"), "-250000\n");
        recorded.write(&format!("{files}/offset_error_ns"), "30000\n");
        let findings = check(&recorded.guest());
        assert_eq!(findings[1].what, "the clock is 250.0 µs behind the host's");
        assert!(findings[1].evidence[0].contains("vmmci driver, to 30.0 µs"), "{findings:?}");
    }

    #[test]
    fn chrony_is_named_the_ptp_clock_that_there_is() {
        let mut recorded = fixture::recorded();
        recorded.write("sys/class/ptp/ptp1/clock_name", "OpenBSD vmmci\n");
        assert!(keep_time(&recorded.guest()).contains("PHC /dev/ptp1"));
    }
}
