//! Control of a running VM: stop, reboot, pause, suspend, status.

use std::{sync::Arc, time::Duration};

use devices::vmmci::Delivery;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use vmd_release::{Generation, SleepingTsc};

use crate::{
    board::Board,
    clock::SystemClock,
    event_loop::EventLoop,
    exit_reason::ExitReason,
    run_control::VcpuRunControl,
    stats::{Counters, Statistics},
};

/// What a VM's threads and its [`Handle`]s share.
pub(crate) struct SharedVm {
    pub(crate) name: String,
    pub(crate) generation: Generation,
    pub(crate) memory: u64,
    pub(crate) cpus: u8,
    pub(crate) clock: Arc<SystemClock>,
    pub(crate) run_control: Arc<VcpuRunControl>,
    pub(crate) counters: Arc<Mutex<Counters>>,
    /// The board and its event loop while the guest runs.
    pub(crate) event_loop: Mutex<Option<Arc<EventLoop>>>,
}

/// Controls a VM from any thread. Its operations are vmctl(8)'s.
#[derive(Clone)]
pub struct Handle(pub(crate) Arc<SharedVm>);

/// Why a VM did not take an operation.
#[derive(Debug, thiserror::Error, miette::Diagnostic, PartialEq, Eq)]
pub enum ControlError {
    /// `stop` after `stop`.
    #[error("the guest was already asked to shut down")]
    #[diagnostic(help("wait until it is down (2 minutes at most), or end it with `stop -f`"))]
    AlreadyStopping,
    /// The guest is being started or has ended.
    #[error("the VM is not running")]
    #[diagnostic(help("try again in a moment, or look at `status`"))]
    NotRunning,
}

/// Outcome of a request to shut down or reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownOutcome {
    /// The request was sent. The guest has 3 s to acknowledge it and 120 s from then to shut down,
    /// or is killed.
    Guest,
    /// The same request is already pending.
    Again,
    /// The guest has no vmmci driver that is ready, and is ended at once.
    NoDriver,
}

impl From<Delivery> for ShutdownOutcome {
    fn from(delivery: Delivery) -> Self {
        match delivery {
            Delivery::Sent => Self::Guest,
            Delivery::Pending | Delivery::NotNegotiated => Self::Again,
            Delivery::NoDriver => Self::NoDriver,
        }
    }
}

/// Run state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// The guest runs.
    Running,
    /// The vCPUs are paused.
    Paused,
    /// The guest was asked to shut down.
    Stopping,
    /// The guest has not started, restarts, or has ended.
    Stopped,
}

/// Status of a VM, as `vmctl status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// The VM's name.
    pub name: String,
    /// Its run state.
    pub state: VmState,
    /// The OpenBSD release whose vmd it has.
    pub generation: Generation,
    /// Its vCPUs.
    pub cpus: u8,
    /// Its memory in bytes.
    pub memory: u64,
    /// Number of starts of the guest.
    pub starts: u64,
}

impl Handle {
    /// Asks the guest to shut down: `vmctl stop`. vmd really asks it to reboot, and does not start
    /// it again.
    pub fn stop(&self) -> Result<ShutdownOutcome, ControlError> {
        let event_loop = self.event_loop().ok_or(ControlError::NotRunning)?;
        let delivery =
            event_loop.with(|board| board.vmmci().stop()).map_err(|_| ControlError::AlreadyStopping)?;
        Ok(delivery.into())
    }

    /// Asks the guest to reboot, which vmctl has no command for. vmd ends a guest that does not do
    /// so in time, or that has no driver.
    pub fn reboot(&self) -> Result<ShutdownOutcome, ControlError> {
        let event_loop = self.event_loop().ok_or(ControlError::NotRunning)?;
        Ok(event_loop.with(|board| board.vmmci().reboot()).into())
    }

    /// Has vmmci show `value` in its command register and raise its interrupt line `interrupts`
    /// times, to test drivers; see [`devices::vmmci::Vmmci::show`]. Does nothing while the guest
    /// does not run.
    pub fn show_command(&self, value: u32, interrupts: u8) {
        if let Some(event_loop) = self.event_loop() {
            event_loop.with(|board| board.vmmci().show(value, interrupts));
        }
    }

    /// Ends the guest at once: `vmctl stop -f`.
    pub fn kill(&self) {
        self.0.run_control.request_exit(ExitReason::Killed);
    }

    /// Pauses vCPUs and timers, and waits until both have stopped: `vmctl pause`. Does nothing if
    /// they are paused.
    pub fn pause(&self) {
        if self.0.run_control.pause()
            && let Some(event_loop) = self.event_loop()
        {
            event_loop.with(Board::pause);
        }
    }

    /// Lets timers and vCPUs run again: `vmctl unpause`. Does nothing if they run.
    pub fn unpause(&self) {
        if !self.0.run_control.is_paused() {
            return;
        }
        if let Some(event_loop) = self.event_loop() {
            event_loop.with(Board::unpause);
        }
        self.0.run_control.unpause();
    }

    /// Suspends and resumes the host: the vCPUs stop, the host's clocks jump forward by `length`,
    /// its TSC does what `tsc` says, and the vCPUs run again, all at once. vmd's rules follow:
    /// overdue timers fire, and the RTC notices the jump and sends SYNCRTC. A paused guest stays
    /// paused.
    pub fn suspend(&self, length: Duration, tsc: SleepingTsc) {
        let was_running = self.0.run_control.pause();
        self.0.clock.suspend(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX / 4), tsc);
        if let Some(event_loop) = self.event_loop() {
            event_loop.clock_jumped();
        }
        if was_running {
            self.0.run_control.unpause();
        }
    }

    /// The VM's status.
    pub fn status(&self) -> VmStatus {
        let state = match self.event_loop() {
            None => VmState::Stopped,
            Some(_) if self.0.run_control.is_paused() => VmState::Paused,
            Some(event_loop) if event_loop.with(|board| board.vmmci().stopping()) => VmState::Stopping,
            Some(_) => VmState::Running,
        };
        VmStatus {
            name: self.0.name.clone(),
            state,
            generation: self.0.generation,
            cpus: self.0.cpus,
            memory: self.0.memory,
            starts: self.statistics().starts,
        }
    }

    /// The statistics up to now.
    pub fn statistics(&self) -> Statistics {
        self.0.counters.lock().snapshot()
    }

    fn event_loop(&self) -> Option<Arc<EventLoop>> {
        self.0.event_loop.lock().clone()
    }
}
