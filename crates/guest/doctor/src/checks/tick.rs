//! What wakes the guest: the clock event device, how late sleeps are, interrupts at rest.

use vmd_release::Generation;

use super::OUR_KERNEL;
use crate::{Finding, Guest, Interrupts, Severity, Sleep};

const TOPIC: &str = "tick";

/// Milliseconds that a sleep of one can take on a host of 100 Hz whose guest does what it can.
const LATE: f64 = 60.0;
/// Interrupts a second that a guest at rest can do without: one of HZ=100 has as many with a tick that does not stop.
const RESTLESS: f64 = 90.0;

/// All about the tick.
pub fn check(guest: &Guest) -> Vec<Finding> {
    let mut findings = vec![device(guest)];
    if let Some(measured) = &guest.measured {
        findings.push(sleeps(guest, &measured.sleeps));
        findings.extend(measured.interrupts.as_ref().map(rest));
    }
    findings
}

fn device(guest: &Guest) -> Finding {
    let file = "sys/devices/system/clockevents/clockevent0/current_device";
    let Some(device) = guest.system.text(file).filter(|device| !device.is_empty()) else {
        return Finding::new(TOPIC, Severity::Note, "the clock event device cannot be seen");
    };
    let old = guest.host.at_most(Generation::V7_9);
    let (severity, says) = match device.as_str() {
        "openbsd" => (Severity::Ok, "made for vmd's 8253 and RTC"),
        "pit" if old => (
            Severity::Warning,
            "vmd, up to 7.8 at least, ORs all counts that it is ever given, and short sleeps come to take 20 to 40 ms",
        ),
        "pit" | "hpet" => (Severity::Note, "the local APIC's timer, which this host has, would be better"),
        "lapic" | "lapic-deadline" => (Severity::Ok, "the local APIC's timer"),
        _ => (Severity::Note, "not one that is known on vmd"),
    };
    let mut finding = Finding::new(TOPIC, severity, format!("clock event device {device}: {says}"));
    if let Some(list) = guest.system.text("proc/timer_list") {
        let mut modes = list.lines().filter_map(|line| line.strip_prefix("Tick Device: mode:"));
        if let Some(mode) = modes.next_back() {
            let mode = if mode.trim() == "1" { "the tick is one-shot" } else { "the tick is periodic" };
            finding = finding.seen(format!("{mode} (/proc/timer_list)"));
        }
    }
    for parameter in ["nohz", "highres", "openbsd_timer", "hpet"] {
        for value in guest.kernel.values(parameter) {
            finding = finding.seen(format!("the command line says {parameter}={value}"));
        }
    }
    match (severity, guest.kernel.ours) {
        (Severity::Ok, _) => finding,
        (_, true) if old && guest.kernel.has("openbsd_timer=off") => {
            finding.remedy("take openbsd_timer=off off the kernel's command line")
        }
        (_, true) if old => {
            finding.remedy("see why the driver openbsd_timer is not in use: dmesg | grep -i -e tsc -e 8253")
        }
        (_, false) if old => finding.remedy(OUR_KERNEL),
        _ => finding
            .remedy("take noapic, nolapic and acpi=off off the kernel's command line, if they are there"),
    }
}

fn sleeps(guest: &Guest, sleeps: &[Sleep]) -> Finding {
    let words: Vec<_> =
        sleeps.iter().map(|sleep| format!("{} ms takes {:.1} ms", sleep.wanted, sleep.median)).collect();
    let longest: Vec<_> = sleeps.iter().map(|sleep| format!("{:.1} ms", sleep.longest)).collect();
    // What the device is to blame for was said with the device.
    let late = sleeps.first().is_some_and(|sleep| sleep.median > LATE);
    let severity = if late { Severity::Note } else { Severity::Ok };
    let mut finding = Finding::new(TOPIC, severity, format!("a sleep of {}", words.join(", of ")))
        .seen(format!("medians; the longest were {}", longest.join(", ")));
    for sleep in sleeps {
        finding = finding.figure(format!("sleep_{}_ms", sleep.wanted), sleep.median);
    }
    if guest.host.at_most(Generation::V7_9) {
        finding =
            finding.seen("a host whose clock ticks at 100 Hz cannot do better than two of its ticks, 20 ms");
    }
    if late { finding.remedy("the host has too much to do: look at top(1) there") } else { finding }
}

fn rest(interrupts: &Interrupts) -> Finding {
    let severity = if interrupts.total > RESTLESS { Severity::Note } else { Severity::Ok };
    let most: Vec<_> =
        interrupts.sources.iter().take(4).map(|(name, rate)| format!("{name}: {rate:.1}")).collect();
    let what = format!("{:.1} interrupts a second at rest", interrupts.total);
    let finding = Finding::new(TOPIC, severity, what)
        .seen(most.join(", "))
        .figure("interrupts_per_second", interrupts.total);
    if severity == Severity::Ok {
        finding
    } else {
        finding.remedy("if nothing is being done in this guest, see who wakes up: powertop, or perf trace -s -- sleep 10")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_8253_is_a_warning_where_it_is_the_old_one() {
        let mut recorded = fixture::recorded();
        let finding = device(&recorded.guest());
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.what.contains("device pit"));
        recorded.cpuid.get_mut(&1).unwrap()[3] |= 1 << 9;
        assert_eq!(device(&recorded.guest()).severity, Severity::Note);
        let file = "sys/devices/system/clockevents/clockevent0/current_device";
        for name in ["lapic", "openbsd"] {
            recorded.write(file, name);
            assert_eq!(device(&recorded.guest()).severity, Severity::Ok);
        }
        recorded.remove(file);
        assert_eq!(device(&recorded.guest()).severity, Severity::Note);
    }

    #[test]
    fn the_ticks_mode_is_that_of_the_processors_device() {
        let mut recorded = fixture::recorded();
        let list =
            "Tick Device: mode:     0\nBroadcast device\n\nTick Device: mode:     1\nPer CPU device: 0\n";
        recorded.write("proc/timer_list", list);
        assert_eq!(device(&recorded.guest()).evidence, ["the tick is one-shot (/proc/timer_list)"]);
    }

    #[test]
    fn what_was_measured_is_told() {
        let guest = fixture::recorded().guest();
        let sleep = |wanted, median| Sleep { wanted, median, longest: median + 5.0 };
        let finding = sleeps(&guest, &[sleep(1, 39.9), sleep(10, 39.7), sleep(50, 79.9)]);
        assert_eq!(
            finding.what,
            "a sleep of 1 ms takes 39.9 ms, of 10 ms takes 39.7 ms, of 50 ms takes 79.9 ms"
        );
        assert_eq!((finding.severity, finding.figures.len()), (Severity::Ok, 3));
        assert_eq!(sleeps(&guest, &[sleep(1, 200.0)]).severity, Severity::Note);
        let sources = vec![("0 XT-PIC timer".to_owned(), 25.0)];
        assert_eq!(rest(&Interrupts { total: 25.0, sources }).severity, Severity::Ok);
        assert_eq!(rest(&Interrupts { total: 250.0, sources: Vec::new() }).severity, Severity::Note);
    }
}
