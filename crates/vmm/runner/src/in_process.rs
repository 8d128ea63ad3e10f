//! A VM in this process, controlled by the commands of the control protocol.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread,
    time::Instant,
};

use miette::Diagnostic;
use serde::{Deserialize, Serialize};
use vmm::{Config, Console, Handle, ShutdownOutcome, VirtualMachine};
use vmm_control::{Answer, Command, ExitReport, Vm, VmState, VmStatus};

use crate::exit_status::exit_report;

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
    report: OnceLock<ExitReport>,
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
        let vm = Arc::new(Self { handle, info, started: Instant::now(), report: OnceLock::new() });
        let running = Arc::clone(&vm);
        let run = move || {
            let result = machine.run();
            let report = exit_report(result, &running.handle.statistics(), console_bytes());
            let _ = running.report.set(report);
        };
        thread::Builder::new().name("machine".to_owned()).spawn(run).map_err(host("start a thread"))?;
        Ok(vm)
    }

    /// Blocks until the guest has ended.
    pub(crate) fn wait(&self) -> ExitReport {
        self.report.wait().clone()
    }

    fn status(&self) -> VmStatus {
        let now = self.handle.status();
        let state = match now.state {
            vmm::VmState::Running => VmState::Running,
            vmm::VmState::Paused => VmState::Paused,
            vmm::VmState::Stopping => VmState::Stopping,
            vmm::VmState::Stopped if self.report.get().is_some() => VmState::Ended,
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
            Command::Stop { force: true } => self.handle.kill(),
            Command::Stop { force: false } => return self.handle.stop().map(answer).map_err(text),
            Command::Reboot => return self.handle.reboot().map(answer).map_err(text),
            Command::Pause => self.handle.pause(),
            Command::Unpause => self.handle.unpause(),
            Command::Suspend { length, tsc } => self.handle.suspend(length, tsc),
            Command::ShowCommand { value, interrupts } => self.handle.show_command(value, interrupts),
            Command::Status => return Ok(Answer::Status(Box::new(self.status()))),
            Command::Wait => return Ok(Answer::Ended(Box::new(self.wait()))),
            Command::Console => return Err("the console needs a connection of its own".to_owned()),
        }
        Ok(Answer::Done)
    }
}
