//! A VM in this process, controlled by the commands of the control protocol.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use miette::Diagnostic;
use serde::{Deserialize, Serialize};
use vmm::{Config, Console, Handle, ShutdownOutcome, VirtualMachine};
use vmm_control::{Answer, Command, ExitReport, Vm, VmState, VmStatus};

use crate::{
    ending::Ending,
    exit_status::{exit_report, failure},
};

/// How long the VM's threads may take to leave the guest and its devices after an order to end by
/// force. They leave within milliseconds unless a disk or the trace does not answer.
const FORCE_PATIENCE: Duration = Duration::from_secs(10);

/// What a status report says beyond the VM's own state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StatusInfo {
    /// The process that the user started.
    pub(crate) pid: u32,
    /// Where the VM's KVM is.
    pub(crate) accel: String,
    /// The disk images, as the user named them.
    pub(crate) disks: Vec<String>,
    /// What the network interfaces are connected to, as the user named it.
    pub(crate) nics: Vec<String>,
}

/// A VM that runs in a thread of this process.
pub(crate) struct InProcessVm {
    handle: Handle,
    info: StatusInfo,
    started: Instant,
    ending: Ending,
}

impl InProcessVm {
    /// Starts a VM. `console_bytes` is called when the guest has ended, and returns the number of bytes that it has
    /// written to its console.
    pub(crate) fn start(
        config: Config,
        console: Console,
        info: StatusInfo,
        console_bytes: impl FnOnce() -> u64 + Send + 'static,
    ) -> Result<Arc<Self>, vmm::Error> {
        let machine = VirtualMachine::new(config, console)?;
        let handle = machine.handle();
        let vm = Arc::new(Self { handle, info, started: Instant::now(), ending: Ending::default() });
        let running = Arc::clone(&vm);
        let run = move || {
            let report = or_panic(|| {
                let result = machine.run();
                exit_report(result, &running.handle.statistics(), console_bytes())
            });
            running.ending.set(report);
        };
        thread::Builder::new().name("machine".to_owned()).spawn(run).map_err(host("start a thread"))?;
        Ok(vm)
    }

    /// The VM's end.
    pub(crate) const fn ending(&self) -> &Ending {
        &self.ending
    }

    fn status(&self) -> VmStatus {
        let now = self.handle.status();
        let state = match now.state {
            vmm::VmState::Running => VmState::Running,
            vmm::VmState::Paused => VmState::Paused,
            vmm::VmState::Stopping => VmState::Stopping,
            vmm::VmState::Stopped if self.ending.get().is_some() => VmState::Ended,
            vmm::VmState::Stopped => VmState::Starting,
        };
        VmStatus {
            name: now.name,
            pid: self.info.pid,
            host: now.generation,
            accel: self.info.accel.clone(),
            state,
            vcpus: now.cpus.into(),
            memory: now.memory >> 20,
            disks: self.info.disks.clone(),
            nics: self.info.nics.clone(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// The exit report that `run` returns, or the failure report of its panic.
fn or_panic(run: impl FnOnce() -> ExitReport) -> ExitReport {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let help = "this is a fault of vmmlinux: please report it, with the lines above";
        failure(format!("the VM panicked: {}", message(&*panic)), Some(help.to_owned()))
    })
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The answer to a shutdown request.
fn answer(outcome: ShutdownOutcome) -> Answer {
    match outcome {
        ShutdownOutcome::Guest => Answer::Done,
        ShutdownOutcome::Again => Answer::Note("the guest is already shutting down".to_owned()),
        ShutdownOutcome::NoDriver => {
            Answer::Note("the guest has no vmmci driver to ask: it was stopped by force".to_owned())
        }
    }
}

fn host(what: &'static str) -> impl Fn(io::Error) -> vmm::Error {
    move |source| vmm::Error::Host { what, source }
}

impl Vm for InProcessVm {
    fn call(&self, command: Command) -> Result<Answer, String> {
        let text = |refused: vmm::ControlError| {
            refused.help().map_or_else(|| refused.to_string(), |help| format!("{refused}: {help}"))
        };
        match command {
            Command::Stop { force: true } => {
                self.handle.kill();
                return self.ending.force(FORCE_PATIENCE);
            }
            Command::Stop { force: false } => return self.handle.stop().map(answer).map_err(text),
            Command::Reboot => return self.handle.reboot().map(answer).map_err(text),
            Command::Pause => self.handle.pause(),
            Command::Unpause => self.handle.unpause(),
            Command::Suspend { length, tsc } => self.handle.suspend(length, tsc).map_err(text)?,
            Command::ShowCommand { value, interrupts } => self.handle.show_command(value, interrupts),
            Command::Status => return Ok(Answer::Status(Box::new(self.status()))),
            Command::Wait => return Ok(Answer::Ended(Box::new(self.ending.wait()))),
            Command::Console => return Err("the console needs a connection of its own".to_owned()),
        }
        Ok(Answer::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FAILED;

    #[test]
    fn a_panic_of_the_vm_is_a_failure_with_its_message() {
        let report = or_panic(|| panic!("division by {}", "zero"));
        assert_eq!((report.status, report.text.as_str()), (FAILED, "the VM panicked: division by zero"));
        assert!(report.help.is_some());
    }
}
