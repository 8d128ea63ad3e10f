//! The control side of a running machine.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use devices::vmmci::Delivery;
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

/// What the machine's threads and its control side share.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) generation: Generation,
    pub(crate) memory: u64,
    pub(crate) cpus: u8,
    pub(crate) clock: Arc<SystemClock>,
    pub(crate) run_control: Arc<VcpuRunControl>,
    pub(crate) counters: Arc<Mutex<Counters>>,
    pub(crate) control: Mutex<Control>,
}

/// What there is to control: a guest while it runs.
#[derive(Default)]
pub(crate) struct Control {
    event_loop: Option<Arc<EventLoop>>,
}

impl Shared {
    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_works(&self, event_loop: Option<Arc<EventLoop>>) {
        self.control().event_loop = event_loop;
    }
}

/// A running machine's controls, for any thread. Words as in vmctl(8).
#[derive(Clone)]
pub struct Handle(pub(crate) Arc<Shared>);

/// An order that a machine does not take.
#[derive(Debug, thiserror::Error, miette::Diagnostic, PartialEq, Eq)]
pub enum Refused {
    /// `stop` after `stop`.
    #[error("the guest was already asked to go down")]
    #[diagnostic(help("wait until it is down (2 minutes at most), or end it with `stop -f`"))]
    AlreadyStopping,
    /// The guest is being started or has ended.
    #[error("the machine is not running")]
    #[diagnostic(help("try again in a moment, or look at `status`"))]
    NotRunning,
}

/// What became of an order to go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownOutcome {
    /// The guest was asked. It has 3 s to acknowledge that and 120 s from then to go down, or is ended.
    Guest,
    /// The guest is asked already.
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

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// The guest was told to go down.
    Stopping,
    /// It has not started or has ended.
    Stopped,
}

/// What `vmctl status` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The machine's name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// Which vmd it is like.
    pub generation: Generation,
    /// Its virtual CPUs.
    pub cpus: u8,
    /// Its memory in bytes.
    pub memory: u64,
    /// How often the guest was started.
    pub starts: u64,
}

impl Handle {
    /// Asks the guest to go down for good: `vmctl stop`. vmd really asks it to reboot, and does not start it again.
    pub fn stop(&self) -> Result<ShutdownOutcome, Refused> {
        let event_loop = self.event_loop().ok_or(Refused::NotRunning)?;
        let delivery = event_loop.with(|board| board.vmmci().stop()).map_err(|_| Refused::AlreadyStopping)?;
        Ok(delivery.into())
    }

    /// Asks the guest to reboot. vmctl has no word for this; vmd ends a guest that does not do it in time, or that
    /// has no driver.
    pub fn reboot(&self) -> Result<ShutdownOutcome, Refused> {
        let event_loop = self.event_loop().ok_or(Refused::NotRunning)?;
        Ok(event_loop.with(|board| board.vmmci().reboot()).into())
    }

    /// Has the control device show a value in its command register and raise its line so many times: for tests of
    /// drivers; see [`devices::vmmci::Vmmci::show`]. Does nothing if the machine does not run.
    pub fn show_command(&self, value: u32, interrupts: u8) {
        if let Some(event_loop) = self.event_loop() {
            event_loop.with(|board| board.vmmci().show(value, interrupts));
        }
    }

    /// Ends the guest at once: `vmctl stop -f`.
    pub fn kill(&self) {
        self.0.run_control.end(ExitReason::Killed);
    }

    /// Stops the virtual CPUs and the timers: `vmctl pause`. Returns when both stand. Does nothing if they do already.
    pub fn pause(&self) {
        if self.0.run_control.pause()
            && let Some(event_loop) = self.event_loop()
        {
            event_loop.with(Board::pause);
        }
    }

    /// Lets virtual CPUs and timers go on: `vmctl unpause`. Does nothing if they run.
    pub fn unpause(&self) {
        if !self.0.run_control.is_paused() {
            return;
        }
        if let Some(event_loop) = self.event_loop() {
            event_loop.with(Board::unpause);
        }
        self.0.run_control.unpause();
    }

    /// Closes the lid of the host for `nap`: the virtual CPUs stop, and when they go on, at once, the host's clocks
    /// are later by that much, and its TSC is what `tsc` says. vmd's own rules follow (timers that are overdue fire,
    /// the RTC notices the jump and sends SYNCRTC). A paused guest stays paused.
    pub fn suspend(&self, nap: Duration, tsc: SleepingTsc) {
        let was_running = self.0.run_control.pause();
        self.0.clock.nap(u64::try_from(nap.as_nanos()).unwrap_or(u64::MAX / 4), tsc);
        if let Some(event_loop) = self.event_loop() {
            event_loop.clock_jumped();
        }
        if was_running {
            self.0.run_control.unpause();
        }
    }

    /// What the machine is doing.
    pub fn status(&self) -> Status {
        let state = match self.event_loop() {
            None => State::Stopped,
            Some(_) if self.0.run_control.is_paused() => State::Paused,
            Some(event_loop) if event_loop.with(|board| board.vmmci().stopping()) => State::Stopping,
            Some(_) => State::Running,
        };
        Status {
            name: self.0.name.clone(),
            state,
            generation: self.0.generation,
            cpus: self.0.cpus,
            memory: self.0.memory,
            starts: self.statistics().starts,
        }
    }

    /// What was counted so far.
    pub fn statistics(&self) -> Statistics {
        self.0.counters.lock().unwrap_or_else(PoisonError::into_inner).snapshot()
    }

    fn event_loop(&self) -> Option<Arc<EventLoop>> {
        self.0.control().event_loop.clone()
    }
}
