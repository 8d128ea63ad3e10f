//! Exit reasons as text, and as the exit status of `vmmlinux run`.

use std::fmt::Write as _;

use miette::Diagnostic;
use vmm::{ExitReason, FatalExit};
use vmm_control::ExitReport;

/// Exit status: the VM could not be started or failed.
pub const FAILED: u8 = 1;
/// Exit status: the guest was stopped by force, or did not shut down in time after `stop`.
pub const FORCED: u8 = 4;
/// Exit status: `--timeout` expired.
pub const TIMED_OUT: u8 = 124;

/// The table of exit statuses in the help of `vmmlinux run`.
pub const EXIT_STATUS_HELP: &str = "\
Exit status:
  0    the guest shut down: it powered off, halted, followed `ctl NAME stop`,
       or reset itself with --no-reboot
  1    the VM could not be started, failed, or did not end when it was ordered to
  2    the command line is wrong
  3    the guest did something that ends a VM under vmd: accessed an address without memory, used
       string I/O, broke a virtio device, or drove a vCPU into a state that it cannot leave; or
       its firmware panicked
  4    the guest was stopped by force (`ctl NAME stop -f`, `~.`, a signal, or a closed pipe at standard
       output), did not shut down in time after `ctl NAME stop`, or had no vmmci driver to ask
  124  --timeout expired";

/// The exit report of a VM: the guest's exit reason or the VM's error, with the statistics.
pub(crate) fn exit_report(
    result: Result<ExitReason, vmm::Error>,
    statistics: &vmm::Statistics,
    console_bytes: u64,
) -> ExitReport {
    let (status, text, help, ended) = match result {
        Ok(reason) => {
            let value = serde_json::to_value(&reason).unwrap_or_default();
            let (status, text) = (exit_status(&reason), reason.to_string());
            (status, text, FatalExit(reason).help().map(|help| help.to_string()), value)
        }
        Err(error) => {
            (FAILED, chain(&error), error.help().map(|help| help.to_string()), serde_json::Value::Null)
        }
    };
    let statistics = serde_json::to_value(statistics).unwrap_or_default();
    ExitReport { status, text, help, ended, statistics, console_bytes }
}

/// The exit report of a VM that failed outside of the guest, without statistics.
pub(crate) fn failure(text: String, help: Option<String>) -> ExitReport {
    ExitReport {
        status: FAILED,
        text,
        help,
        ended: serde_json::Value::Null,
        statistics: serde_json::Value::Null,
        console_bytes: 0,
    }
}

fn exit_status(reason: &ExitReason) -> u8 {
    match reason.exit_status() {
        // 1 is FAILED.
        1 => FORCED,
        status => status,
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use vmm::{GuestLocation, VcpuError};

    use super::*;

    #[test]
    fn statuses_are_as_documented() {
        let at = GuestLocation::default();
        for (ended, code) in [
            (ExitReason::Reset, 0),
            (ExitReason::Stopped, 0),
            (ExitReason::HaltedWithInterruptsOff(at.clone()), 0),
            (ExitReason::GuestShutdown, 0),
            (ExitReason::VcpuError(VcpuError { reason: "x".into(), at }), 3),
            (ExitReason::Killed, FORCED),
            (ExitReason::NotAcknowledged, FORCED),
            (ExitReason::NotFinished, FORCED),
            (ExitReason::NoDriver, FORCED),
        ] {
            assert_eq!(exit_status(&ended), code, "{ended}");
            assert!(EXIT_STATUS_HELP.contains(&format!("\n  {code}  ")));
        }
    }

    #[test]
    fn a_failure_tells_its_causes_and_what_to_do() {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = vmm::Error::Read { what: "the firmware", path: "/bios".into(), source };
        let report = exit_report(Err(error), &vmm::Statistics::default(), 7);
        assert_eq!((report.status, report.console_bytes), (FAILED, 7));
        assert!(report.text.contains("/bios: entity not found"), "{}", report.text);
        assert!(report.help.is_some());
    }
}
