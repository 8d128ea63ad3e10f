//! How a guest's end is told: in words, and as the exit status of `vmmlinux run`.

use std::fmt::Write as _;

use miette::Diagnostic;
use vmm::{ExitReason, FatalExit};
use vmm_control::Ending;

/// The machine could not be started or broke down.
pub(crate) const FAILED: u8 = 1;
/// The guest was ended by force, or did not go down in time after `stop`.
pub(crate) const FORCED: u8 = 4;
/// `--timeout` was over.
pub(crate) const TIMED_OUT: u8 = 124;

/// The table in the help of `vmmlinux run`.
pub(crate) const TABLE: &str = "\
Exit status:
  0    the guest went down in order: it powered off, halted, did what `ctl NAME stop` asked,
       or reset itself with --no-reboot
  1    the machine could not be started, or broke down
  2    the command line is wrong
  3    the guest did what ends a VM under vmd: touched an address without memory, used string I/O,
       broke a virtio device, or drove its processor into a state that it cannot leave
  4    the guest was ended by force (`ctl NAME stop -f`, `~.`, a signal, a pipe from standard output
       that nobody reads any more), did not go down in time after `ctl NAME stop`, or had no vmmci
       driver that could be asked to
  124  --timeout was over";

/// A guest's end, or the machine's failure, for whoever waits for it.
pub(crate) fn ending(
    result: Result<ExitReason, vmm::Error>,
    statistics: &vmm::Statistics,
    console_bytes: u64,
) -> Ending {
    let (status, text, help, ended) = match result {
        Ok(ended) => {
            let value = serde_json::to_value(&ended).unwrap_or_default();
            let (status, text) = (status(&ended), ended.to_string());
            (status, text, FatalExit(ended).help().map(|help| help.to_string()), value)
        }
        Err(error) => {
            (FAILED, chain(&error), error.help().map(|help| help.to_string()), serde_json::Value::Null)
        }
    };
    let statistics = serde_json::to_value(statistics).unwrap_or_default();
    Ending { status, text, help, ended, statistics, console_bytes }
}

fn status(ended: &ExitReason) -> u8 {
    match ended.exit_status() {
        // Taken by what every program says when it fails.
        1 => FORCED,
        status => status,
    }
}

/// An error and what caused it, on one line.
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
    use vmm::{At, VcpuError};

    use super::*;

    #[test]
    fn statuses_are_as_documented() {
        let at = At::default();
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
            assert_eq!(status(&ended), code, "{ended}");
            assert!(TABLE.contains(&format!("\n  {code}  ")));
        }
    }

    #[test]
    fn a_failure_tells_its_causes_and_what_to_do() {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = vmm::Error::Read { what: "the firmware", path: "/bios".into(), source };
        let ending = ending(Err(error), &vmm::Statistics::default(), 7);
        assert_eq!((ending.status, ending.console_bytes), (FAILED, 7));
        assert!(ending.text.contains("/bios: entity not found"), "{}", ending.text);
        assert!(ending.help.is_some());
    }
}
