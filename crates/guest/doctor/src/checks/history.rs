//! What has happened since boot: suspends of the host, and symptoms in the log.

use vmmci_sysfs::show;

use super::OUR_KERNEL;
use crate::{Finding, Guest, Line, Severity, checks::control};

const TOPIC: &str = "history";
/// So many messages are evidence enough.
const SHOWN: usize = 3;

/// A message that means something on vmd.
struct Symptom {
    /// What a message of this kind contains, one of these.
    texts: &'static [&'static str],
    severity: Severity,
    /// What it means.
    means: &'static str,
    remedy: Option<&'static str>,
}

const SYMPTOMS: [Symptom; 11] = [
    Symptom {
        texts: &["Marking TSC unstable", "Marking clocksource"],
        severity: Severity::Note,
        means: "the kernel gave the TSC up: it could not find out its rate, or held it against something worse",
        remedy: Some(OUR_KERNEL),
    },
    Symptom {
        texts: &["Unable to calibrate against PIT", "TSC calibration failed"],
        severity: Severity::Note,
        means: "the kernel tried to time the TSC with vmd's 8253, which cannot be done",
        remedy: Some(OUR_KERNEL),
    },
    Symptom {
        texts: &["soft lockup", "rcu: INFO:", "hrtimer: interrupt took", "rcu_sched kthread starved"],
        severity: Severity::Note,
        means: "the guest stood still: the host slept, paused the VM, or had too much else to do",
        remedy: Some("if the host did not sleep, look at its load: top(1) there"),
    },
    Symptom {
        texts: &[
            "the host's clock has jumped, and cannot be read",
            "the host wants the clock to be set but tells no time",
        ],
        severity: Severity::Warning,
        means: "the host told of a jump of its clock and the time could not be read: the clock was not set",
        remedy: Some("set it by hand or by NTP (chronyc makestep), and report the host's version"),
    },
    Symptom {
        texts: &["the clock cannot be set by"],
        severity: Severity::Warning,
        means: "vmmcid may not set the clock",
        remedy: Some("vmmcid test says what it lacks"),
    },
    Symptom {
        texts: &["ignored, like all that follow", "none that is known; it and its like are ignored"],
        severity: Severity::Note,
        means: "the host sent an unknown command",
        remedy: Some("report it with the host's version"),
    },
    Symptom {
        texts: &["I/O error, dev vd"],
        severity: Severity::Warning,
        means: "a disk did not do what it was told",
        remedy: Some("look at the host's /var/log/daemon and at the space in its file system: df there"),
    },
    Symptom {
        texts: &["nobody cared"],
        severity: Severity::Warning,
        means: "an interrupt line was switched off, since no driver answered for it: devices that share it are stuck",
        remedy: Some(
            "grep . /proc/irq/*/spurious names the line; unload the driver that shares it, and report it",
        ),
    },
    Symptom {
        texts: &["unchecked MSR access error"],
        severity: Severity::Note,
        means: "the kernel asked the processor for what vmm does not have, and went on",
        remedy: None,
    },
    Symptom {
        texts: &["ptp_kvm", "invalid opcode: 0000"],
        severity: Severity::Warning,
        means: "a program or driver hit an instruction that vmm does not have; ptp_kvm's hypercall is one",
        remedy: Some("echo blacklist ptp_kvm > /etc/modprobe.d/ptp_kvm.conf"),
    },
    Symptom {
        texts: &["BUG: ", "Oops: ", "kernel panic"],
        severity: Severity::Warning,
        means: "the kernel has found itself in error",
        remedy: Some("report it with the whole output of dmesg"),
    },
];

/// Suspends and symptoms.
pub fn check(guest: &Guest) -> Vec<Finding> {
    if guest.log.sources.is_empty() {
        return vec![
            suspends(guest),
            Finding::new(TOPIC, Severity::Note, "the kernel's messages cannot be read")
                .remedy("run this as root, or sysctl kernel.dmesg_restrict=0"),
        ];
    }
    let mut findings = vec![suspends(guest)];
    let mut taken: Vec<*const Line> = Vec::new();
    for symptom in &SYMPTOMS {
        let lines: Vec<_> = guest
            .log
            .lines
            .iter()
            .filter(|line| symptom.texts.iter().any(|text| line.text.contains(text)))
            .filter(|line| !taken.contains(&std::ptr::from_ref(*line)))
            .collect();
        taken.extend(lines.iter().map(|line| std::ptr::from_ref(*line)));
        findings.extend((!lines.is_empty()).then(|| told(guest, symptom, &lines)));
    }
    if findings.len() == 1 {
        let sources = guest.log.sources.join(", ");
        let what = format!("nothing in {} messages is a symptom of anything", guest.log.lines.len());
        findings.push(Finding::new(TOPIC, Severity::Ok, what).seen(format!("read from {sources}")));
    }
    findings
}

fn told(guest: &Guest, symptom: &Symptom, lines: &[&Line]) -> Finding {
    // The kernel that would be the remedy runs already: it gives the TSC up on purpose where the
    // host's is not invariant.
    let runs_already = guest.kernel.ours && symptom.remedy == Some(OUR_KERNEL);
    let (severity, remedy) = match (runs_already, guest.host.invariant_tsc) {
        (false, _) => (symptom.severity, symptom.remedy),
        (true, false) => (Severity::Ok, None),
        (true, true) => (symptom.severity, Some("report it with the whole output of dmesg")),
    };
    let mut finding = Finding::new(TOPIC, severity, symptom.means);
    for line in lines.iter().take(SHOWN) {
        finding = finding.seen(shown(line));
    }
    if lines.len() > SHOWN {
        finding = finding.seen(format!("{} more like this", lines.len() - SHOWN));
    }
    match remedy {
        Some(remedy) => finding.remedy(remedy),
        None => finding,
    }
}

fn shown(line: &Line) -> String {
    let text: String = line.text.chars().take(160).collect();
    line.at.map_or(text.clone(), |at| format!("{at:.1} s after boot: {text}"))
}

/// The steps of the clock. The driver and vmmcid count them; the log has one in ten minutes at most, but may be older than
/// the daemon's process.
fn suspends(guest: &Guest) -> Finding {
    let logged: Vec<_> = guest.log.lines.iter().filter_map(|line| Some((line, step(&line.text)?))).collect();
    let told = control::steps(guest);
    #[allow(clippy::cast_precision_loss)]
    let last = told.and_then(|told| Some(told.last? as f64 / 1e9));
    let sizes = logged.iter().map(|(_, seconds)| *seconds).chain(last);
    let Some(longest) = sizes.max_by(|one, other| one.abs().total_cmp(&other.abs())) else {
        return Finding::new(TOPIC, Severity::Ok, "no suspend of the host was noticed since boot");
    };
    let counted = told.and_then(|told| told.count);
    let in_log = u64::try_from(logged.len()).unwrap_or(u64::MAX);
    let times = match counted {
        Some(count) if count >= in_log => times(count),
        _ => format!("at least {}", times(in_log.max(1))),
    };
    let what = format!("the clock was set {times} since boot; the longest step known is {longest:+.3} s");
    let mut finding = Finding::new(TOPIC, Severity::Ok, what).figure("longest_step_seconds", longest);
    if let Some((told, last)) = told.and_then(|told| Some((told, told.last?))) {
        finding = finding.seen(format!("{} has set the clock by {} at last", told.by, show(last)));
    }
    for (line, _) in logged.iter().rev().take(SHOWN) {
        finding = finding.seen(shown(line));
    }
    finding
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// The seconds in `clock set by +10800.000123 s`, which the driver says, and `the clock was set by +10800.000 s; …`, vmmcid's.
fn step(text: &str) -> Option<f64> {
    let rest = ["clock set by ", "the clock was set by "]
        .iter()
        .find_map(|words| Some(text.split_once(words)?.1))?;
    let mut words = rest.split([' ', ';']);
    let value: f64 = words.next()?.parse().ok()?;
    match words.next()? {
        "s" => Some(value),
        "ms" => Some(value / 1e3),
        "µs" => Some(value / 1e6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::fixture;

    #[test]
    fn steps_are_read_from_both() {
        let seconds = |text| step(text).map(|seconds| (seconds * 1e6).round() / 1e6);
        assert_eq!(seconds("vmmci 0000:00:03.0: clock set by +10800.000123 s"), Some(10_800.000_123));
        assert_eq!(seconds("the clock was set by -250.000 ms; it is the host's to 9.0 µs"), Some(-0.25));
        assert_eq!(seconds("the clock was set by hand"), None);
        assert_eq!(seconds("something else"), None);
    }

    #[test]
    fn the_recorded_boot_has_an_msr_that_vmm_lacks() {
        let findings = check(&fixture::recorded().guest());
        assert_eq!(findings[0].what, "no suspend of the host was noticed since boot");
        let msr =
            findings.iter().find(|finding| finding.evidence.iter().any(|text| text.contains("MSR"))).unwrap();
        assert_eq!(msr.severity, Severity::Note);
        assert!(msr.evidence[0].contains("s after boot: unchecked MSR access error"), "{msr:?}");
        assert!(findings.iter().all(|finding| finding.severity <= Severity::Note), "{findings:?}");
    }

    #[test]
    fn the_kernel_that_runs_is_not_recommended() {
        let mut recorded = fixture::recorded();
        recorded.write("proc/config.gz", "CONFIG_OPENBSD_GUEST=y\n");
        recorded
            .write("dev/kmsg", "6,1,100,-;tsc: Marking TSC unstable due to a host without invariant TSC\n");
        let told = |recorded: &fixture::Fixture| check(&recorded.guest()).remove(1);
        assert!(told(&recorded).remedy.unwrap().starts_with("report it"), "an invariant TSC was given up");
        recorded.cpuid.insert(0x8000_0007, [0; 4]);
        let finding = told(&recorded);
        assert_eq!((finding.severity, finding.remedy), (Severity::Ok, None));
    }

    /// The log has one line of four steps, and the longest of those known goes back.
    #[rstest]
    #[case(4, "the clock was set 4 times since boot; the longest step known is -7200.000 s")]
    #[case(0, "the clock was set at least once since boot; the longest step known is +101.000 s")]
    fn steps_are_counted_by_the_driver_and_not_by_lines_of_the_log(#[case] count: u64, #[case] what: &str) {
        let mut recorded = fixture::recorded();
        recorded.write("dev/kmsg", "6,1,5000000,-;vmmci 0000:00:03.0: clock set by +101.000000 s\n");
        let files = "sys/bus/pci/devices/0000:00:03.0/vmmci";
        recorded.write(&format!("{files}/steps"), &format!("{count}\n"));
        recorded.write(&format!("{files}/last_step_ns"), "-7200000000000\n");

        let finding = suspends(&recorded.guest());

        assert_eq!(finding.what, what);
        assert_eq!(finding.evidence.len(), if count == 0 { 1 } else { 2 });
    }

    #[test]
    fn steps_back_are_found_without_a_line_in_the_log() {
        let mut recorded = fixture::recorded();
        let files = "sys/bus/pci/devices/0000:00:03.0/vmmci";
        recorded.write(&format!("{files}/steps"), "1\n");
        recorded.write(&format!("{files}/last_step_ns"), "-50000000000\n");

        let finding = suspends(&recorded.guest());

        assert_eq!(finding.what, "the clock was set once since boot; the longest step known is -50.000 s");
        assert!((finding.figures["longest_step_seconds"] + 50.0).abs() < 1e-9, "{finding:?}");
    }

    #[test]
    fn suspends_and_symptoms_are_found() {
        let mut recorded = fixture::recorded();
        recorded.write(
            "dev/kmsg",
            "6,1,5000000,-;vmmci 0000:00:03.0: clock set by +10800.000123 s\n SUBSYSTEM=pci\n\
             6,2,9000000,-;vmmci 0000:00:03.0: clock set by +60.000000 s\n\
             3,3,9500000,-;watchdog: BUG: soft lockup - CPU#0 stuck for 10799s!\n\
             3,4,9600000,-;blk_update_request: I/O error, dev vda, sector 8\n",
        );
        let findings = check(&recorded.guest());
        assert_eq!(
            findings[0].what,
            "the clock was set at least 2 times since boot; the longest step known is +10800.000 s"
        );
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert_eq!((findings[1].severity, findings[2].severity), (Severity::Note, Severity::Warning));
        recorded.remove("dev/kmsg");
        assert!(check(&recorded.guest())[1].remedy.as_ref().unwrap().contains("root"));
    }
}
