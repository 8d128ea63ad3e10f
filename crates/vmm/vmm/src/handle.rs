//! Control of a running VM: stop, reboot, pause, suspend, status.

use std::{sync::Arc, time::Duration};

use devices::vmmci::Delivery;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use vmd_release::{Generation, SleepingTsc};

use crate::{
    board::Board,
    clock::SystemClock,
    console::OutputQueue,
    event_loop::EventLoop,
    exit_reason::ExitReason,
    run_control::VcpuRunControl,
    stats::{Counters, Statistics},
};

/// Most time that the host can be suspended for in all: the clocks count nanoseconds.
const MAX_SUSPEND: Duration = Duration::from_hours(10 * 366 * 24);

/// What a VM's threads and its [`Handle`]s share.
pub(crate) struct SharedVm {
    pub(crate) name: String,
    pub(crate) generation: Generation,
    pub(crate) memory: u64,
    pub(crate) cpus: u8,
    pub(crate) clock: Arc<SystemClock>,
    pub(crate) run_control: Arc<VcpuRunControl>,
    pub(crate) counters: Arc<Mutex<Counters>>,
    pub(crate) output: Arc<OutputQueue>,
    /// The board and its event loop while the guest runs.
    pub(crate) event_loop: Mutex<Option<Arc<EventLoop>>>,
}

impl SharedVm {
    /// Makes a started guest's event loop known. In a paused VM its board is paused, too.
    pub(crate) fn publish(&self, event_loop: &Arc<EventLoop>) {
        self.run_control.publish_board(|paused| {
            if paused {
                event_loop.with(Board::pause);
            }
            *self.event_loop.lock() = Some(Arc::clone(event_loop));
        });
    }
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
    /// A suspend of more than ten years, those before it included.
    #[error("the host cannot be suspended for more than ten years in all")]
    #[diagnostic(help("choose a shorter time"))]
    SuspendTooLong,
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
        self.with_board(|board| board.vmmci().show(value, interrupts));
    }

    /// Ends the guest at once: `vmctl stop -f`. Output of its console that nothing reads is dropped.
    pub fn kill(&self) {
        self.0.output.hurry();
        self.0.run_control.request_exit(ExitReason::Killed);
    }

    /// Pauses vCPUs and timers, and waits until both have stopped: `vmctl pause`. Does nothing if
    /// they are paused.
    pub fn pause(&self) {
        self.0.run_control.pause(|| self.with_board(Board::pause));
    }

    /// Lets timers and vCPUs run again: `vmctl unpause`. Does nothing if they run.
    pub fn unpause(&self) {
        self.0.run_control.unpause(|| self.with_board(Board::unpause));
    }

    /// Suspends and resumes the host: the vCPUs stop, the host's clocks jump forward by `length`,
    /// its TSC does what `tsc` says, and the vCPUs run again, all at once. vmd's rules follow:
    /// overdue timers fire, and the RTC notices the jump and sends SYNCRTC. A paused guest stays
    /// paused.
    pub fn suspend(&self, length: Duration, tsc: SleepingTsc) -> Result<(), ControlError> {
        self.0.run_control.suspend(|| {
            let suspended = Duration::from_nanos(self.0.clock.suspended());
            let nanos = suspended.checked_add(length).filter(|total| *total <= MAX_SUSPEND);
            let nanos = nanos.and_then(|_| u64::try_from(length.as_nanos()).ok());
            self.0.clock.suspend(nanos.ok_or(ControlError::SuspendTooLong)?, tsc);
            if let Some(event_loop) = self.event_loop() {
                event_loop.clock_jumped();
            }
            Ok(())
        })
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

    /// Calls `f` with the board locked. Does nothing while the guest does not run.
    fn with_board(&self, f: impl FnOnce(&mut Board)) {
        if let Some(event_loop) = self.event_loop() {
            event_loop.with(f);
        }
    }

    fn event_loop(&self) -> Option<Arc<EventLoop>> {
        self.0.event_loop.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{config::NicBackendConfig, fuzzing::Machine};

    fn event_loop(clock: &Arc<SystemClock>) -> Arc<EventLoop> {
        let machine = Machine::new(Generation::V7_8, NicBackendConfig::Unplugged).unwrap();
        Arc::new(EventLoop::new(machine.board, Arc::clone(clock)).unwrap())
    }

    /// A VM without vCPU threads.
    fn handle() -> Handle {
        let clock = Arc::new(SystemClock::new(None, false));
        let vm = SharedVm {
            name: "x".to_owned(),
            generation: Generation::V7_8,
            memory: 8 << 20,
            cpus: 1,
            clock: Arc::clone(&clock),
            run_control: Arc::new(VcpuRunControl::new(1)),
            counters: Arc::new(Mutex::new(Counters::new(0))),
            output: OutputQueue::start(Box::new(io::sink()), || {}).unwrap(),
            event_loop: Mutex::default(),
        };
        vm.publish(&event_loop(&clock));
        Handle(Arc::new(vm))
    }

    /// Whether the vCPUs and the board's timers are paused.
    fn paused(handle: &Handle) -> (bool, bool) {
        let timers = handle.event_loop().unwrap().with(|board| board.deadline().is_none());
        (handle.0.run_control.is_paused(), timers)
    }

    #[test]
    fn vcpus_and_board_are_paused_and_unpaused_together() {
        let handle = handle();
        handle.pause();
        assert_eq!(paused(&handle), (true, true));
        handle.unpause();
        assert_eq!(paused(&handle), (false, false));
    }

    #[test]
    fn a_guest_that_restarts_in_a_paused_vm_is_paused() {
        let handle = handle();
        handle.pause();
        handle.0.publish(&event_loop(&handle.0.clock));
        assert_eq!(paused(&handle), (true, true));
    }

    #[test]
    fn suspends_are_limited() {
        let handle = handle();
        let year = Duration::from_hours(365 * 24);
        assert_eq!(handle.suspend(6 * year, SleepingTsc::Stands), Ok(()));
        for length in [5 * year, Duration::MAX] {
            assert_eq!(handle.suspend(length, SleepingTsc::Stands), Err(ControlError::SuspendTooLong));
        }
    }
}
