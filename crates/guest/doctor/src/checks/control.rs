//! The control device and the driver or daemon that handles it.

use vmmci_sysfs::{FUNCTIONS, Function};
use vmmcid::status::{self, Status};

use super::driver_kernel;
use crate::{Finding, Guest, Severity, measure::socket};

const TOPIC: &str = "control device";

/// Where the daemon's program is when it is installed.
const PROGRAMS: [&str; 3] = ["usr/sbin/vmmcid", "sbin/vmmcid", "usr/local/sbin/vmmcid"];

/// Finds the handler of the host's commands: the kernel's driver, vmmcid, or none.
pub fn check(guest: &Guest) -> Vec<Finding> {
    let functions = guest.system.path(FUNCTIONS.trim_start_matches('/'));
    let Ok(function) = Function::find(&functions) else {
        return vec![
            Finding::new(TOPIC, Severity::Warning, "there is no control device: vmctl(8) stop kills this guest")
                .seen(format!("no function {:04x}:{:04x} in {FUNCTIONS}", vmmci_protocol::VENDOR_ID, vmmci_protocol::DEVICE_ID))
                .remedy("vmd has had it since OpenBSD 6.3; if the kernel shows no PCI functions at all, take pci=off off its command line"),
        ];
    };
    // A daemon that does not answer is one that runs.
    let daemon = status::ask(&socket(&guest.system));
    match (function.driver(), daemon) {
        (Some(driver), daemon) => driven(guest, &function, &driver, !matches!(daemon, Ok(None))),
        (None, Ok(Some(status))) => by_daemon(&function, &status),
        (None, Ok(None)) => vec![unhandled(guest, &function)],
        (None, Err(error)) => vec![
            Finding::new(TOPIC, Severity::Warning, "vmmcid runs and does not answer")
                .seen(format!("{}: {error}", status::SOCKET))
                .remedy("systemctl restart vmmcid, or rc-service vmmcid restart"),
        ],
    }
}

fn driven(guest: &Guest, function: &Function, driver: &str, daemon: bool) -> Vec<Finding> {
    let address = function.address();
    let mut findings = Vec::new();
    let files = format!("sys/bus/pci/devices/{address}/vmmci");
    let shown = |name: &str| guest.system.text(format!("{files}/{name}"));
    if guest.system.exists(&files) {
        let counts: Vec<_> = ["shutdown_commands", "reboot_commands", "syncrtc_commands"]
            .into_iter()
            .filter_map(|name| Some(format!("{} {}", shown(name)?, name.replace('_', " "))))
            .collect();
        let finding = Finding::new(
            TOPIC,
            Severity::Ok,
            format!("the kernel's driver handles the host's commands ({address})"),
        )
        .seen(format!("so far: {}", counts.join(", ")));
        findings.push(finding);
    } else if ["vmmci", "obsd"].iter().any(|name| driver.contains(name)) {
        let finding = Finding::new(
            TOPIC,
            Severity::Note,
            format!("{address} is driven by {driver}, which is not ours"),
        );
        let wrong = "if `vmctl stop` or the clock after a suspend go wrong:";
        let instead = driver_kernel(guest).unwrap_or("load this kernel's own driver instead: modprobe vmmci");
        findings.push(finding.remedy(format!("{wrong} {instead}")));
    } else {
        findings.push(
            Finding::new(TOPIC, Severity::Warning, format!("{driver} has the control device, and does not obey the host"))
                .seen(format!("/{}", function.path().strip_prefix("/").unwrap_or(function.path()).display()))
                .remedy(format!("echo {address} > /sys/bus/pci/drivers/{driver}/unbind, and no longer give it the device at boot")),
        );
    }
    if daemon {
        findings.push(
            Finding::new(TOPIC, Severity::Warning, "vmmcid runs beside the kernel's driver")
                .seen("both would acknowledge a command, and both would set the clock")
                .remedy("systemctl disable --now vmmcid, or rc-update del vmmcid && rc-service vmmcid stop"),
        );
    }
    findings
}

fn by_daemon(function: &Function, status: &Status) -> Vec<Finding> {
    let what = format!("vmmcid {} handles the host's commands ({})", status.version, function.address());
    let counts = &status.counts;
    let mut findings = vec![
        Finding::new(TOPIC, Severity::Ok, what)
            .seen(format!(
                "process {}, up {:.0} s, looks every {:.1} s; so far: {} shutdown, {} stop or reboot, {} clock sync",
                status.pid, status.uptime, status.poll_interval, counts.shutdowns, counts.reboots, counts.clock_syncs
            ))
            .seen("there is no kernel driver, and none is needed"),
    ];
    if !status.not_confined.is_empty() {
        findings.push(
            Finding::new(TOPIC, Severity::Note, "vmmcid could not lock itself in as it wants to")
                .seen(status.not_confined.join("; "))
                .remedy("a kernel with Landlock and seccomp"),
        );
    }
    findings
}

fn unhandled(guest: &Guest, function: &Function) -> Finding {
    let finding = Finding::new(
        TOPIC,
        Severity::Warning,
        "no driver for vmmci: vmctl(8) stop kills this guest, and its clock is wrong after the host has slept",
    )
    .seen(format!("{} has no kernel driver, and no daemon listens at {}", function.address(), status::SOCKET));
    let is_module = guest.config.as_ref().is_ok_and(|(_, config)| config.is_set("OPENBSD_VMMCI"));
    if is_module {
        finding.remedy("modprobe vmmci; echo vmmci > /etc/modules-load.d/vmmci.conf")
    } else if PROGRAMS.iter().any(|program| guest.system.exists(program)) {
        finding.remedy("systemctl enable --now vmmcid, or rc-update add vmmcid && rc-service vmmcid start; vmmcid test says what is in its way")
    } else {
        let daemon = "apt install ./vmmcid_*_amd64.deb (elsewhere: ./install.sh of its tarball)";
        finding.remedy(match driver_kernel(guest) {
            Some(kernel) => format!("{daemon}\nor {kernel}"),
            None => daemon.to_owned(),
        })
    }
}

/// The steps of the clock since the driver or vmmcid started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Steps {
    /// `the kernel's driver` or `vmmcid`.
    pub(crate) by: &'static str,
    /// How many there were; `None` after some of a vmmcid that does not count them.
    pub(crate) count: Option<u64>,
    /// The last one in nanoseconds, positive: forward.
    pub(crate) last: Option<i64>,
}

/// The steps that the driver or vmmcid has counted. `None` without either.
pub(crate) fn steps(guest: &Guest) -> Option<Steps> {
    let functions = guest.system.path(FUNCTIONS.trim_start_matches('/'));
    let function = Function::find(&functions).ok()?;
    let files = format!("sys/bus/pci/devices/{}/vmmci", function.address());
    let number = |name: &str| guest.system.text(format!("{files}/{name}"))?.parse::<i64>().ok();
    if let (Some(steps), Some(last)) = (number("steps"), number("last_step_ns")) {
        let last = (steps > 0).then_some(last);
        return Some(Steps { by: "the kernel's driver", count: steps.try_into().ok(), last });
    }
    let status = status::ask(&socket(&guest.system)).ok()??;
    let last = status.last_step.map(|step| step.nanos);
    let counts_none = status.counts.steps == 0 && last.is_some();
    Some(Steps { by: "vmmcid", count: (!counts_none).then_some(status.counts.steps), last })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixListener, thread};

    use super::*;
    use crate::fixture;

    const FUNCTION: &str = "sys/bus/pci/devices/0000:00:03.0";

    #[test]
    fn no_driver_is_a_warning_with_the_remedy_that_fits() {
        let mut recorded = fixture::recorded();
        let finding = check(&recorded.guest()).remove(0);
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.remedy.unwrap().starts_with("apt install ./vmmcid_"));
        recorded.write("usr/sbin/vmmcid", "");
        assert!(check(&recorded.guest())[0].remedy.as_ref().unwrap().starts_with("systemctl enable"));
        recorded.write("proc/config.gz", "CONFIG_OPENBSD_VMMCI=m\n");
        assert!(check(&recorded.guest())[0].remedy.as_ref().unwrap().starts_with("modprobe vmmci"));
    }

    #[test]
    fn a_kernel_of_ours_without_the_driver_is_told_of_the_series_that_has_it() {
        let mut recorded = fixture::recorded();
        recorded.write("proc/config.gz", "CONFIG_OPENBSD_GUEST=y\n");
        recorded.write("proc/sys/kernel/osrelease", "6.12.118-vmmlinux");
        let remedy = check(&recorded.guest()).remove(0).remedy.unwrap();
        assert!(remedy.contains("vmmcid_*") && remedy.contains("series 7.3"), "{remedy}");
        recorded.write("proc/sys/kernel/osrelease", "7.3.4-vmmlinux");
        let remedy = check(&recorded.guest()).remove(0).remedy.unwrap();
        assert!(!remedy.contains("linux-image"), "{remedy}");
    }

    #[test]
    fn the_driver_and_the_daemon_are_recognised_and_both_are_too_many() {
        let mut recorded = fixture::recorded();
        std::fs::create_dir_all(recorded.path().join("run/vmmcid")).unwrap();
        let listener = UnixListener::bind(recorded.path().join("run/vmmcid/socket")).unwrap();
        // Of a daemon that does not count steps.
        let status = r#"{"version":"1.2.3","pid":7,"features":7,"uptime":1.0,"poll-interval":0.6,
            "counts":{"polls":1,"shutdowns":0,"reboots":0,"clock-syncs":2,"unknown":0},
            "last-step":{"nanos":10800000000000,"at":0},"offset":null,"chrony-samples":null,"not-confined":["no Landlock"]}"#;
        thread::spawn(move || {
            for stream in listener.incoming() {
                stream.unwrap().write_all(status.as_bytes()).unwrap();
            }
        });
        let findings = check(&recorded.guest());
        assert_eq!(findings[0].what, "vmmcid 1.2.3 handles the host's commands (0000:00:03.0)");
        assert_eq!(findings[1].evidence, ["no Landlock"]);
        let last = Some(10_800_000_000_000);
        assert_eq!(steps(&recorded.guest()), Some(Steps { by: "vmmcid", count: None, last }));

        recorded.link(&format!("{FUNCTION}/driver"), "../../../bus/pci/drivers/vmmci");
        for name in ["steps", "syncrtc_commands"] {
            recorded.write(&format!("{FUNCTION}/vmmci/{name}"), "2\n");
        }
        recorded.write(&format!("{FUNCTION}/vmmci/last_step_ns"), "-1500000\n");
        let findings = check(&recorded.guest());
        assert_eq!(findings[0].evidence, ["so far: 2 syncrtc commands"]);
        assert_eq!((findings[0].severity, findings[1].severity), (Severity::Ok, Severity::Warning));
        let by = "the kernel's driver";
        assert_eq!(steps(&recorded.guest()), Some(Steps { by, count: Some(2), last: Some(-1_500_000) }));
    }

    #[test]
    fn a_driver_that_does_not_obey_is_named() {
        let mut recorded = fixture::recorded();
        recorded.link(&format!("{FUNCTION}/driver"), "../../../bus/pci/drivers/uio_pci_generic");
        let finding = check(&recorded.guest()).remove(0);
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.remedy.unwrap().contains("drivers/uio_pci_generic/unbind"));
    }
}
