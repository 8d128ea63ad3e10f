//! Signals that ask this process to stop, passed on to the program that it is running.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::{Handle, Signals},
};

/// Catches SIGINT, SIGTERM and SIGHUP while it exists: they do not end this process, but interrupt the program that it
/// is running.
#[derive(Debug)]
pub struct Interrupt {
    state: Arc<Mutex<State>>,
    signals: Handle,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    asked: bool,
    /// The process group of the running program.
    group: Option<Pid>,
}

impl Interrupt {
    /// Begins to catch the signals.
    pub fn catch() -> io::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let handle = signals.handle();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            for _ in signals.forever() {
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                state.asked = true;
                state.interrupt();
            }
        });
        Ok(Self { state, signals: handle, thread: Some(thread) })
    }

    /// Whether a signal has arrived.
    pub fn is_asked(&self) -> bool {
        self.with(|state| state.asked)
    }

    /// Runs `wait`, which waits for a program in a process group of its own. A signal that arrives meanwhile, or has
    /// arrived before, interrupts the whole group: by SIGTERM, which make passes on to what it has just started. On
    /// SIGINT make waits for its children, as a terminal would have sent it to them too; one that is started in that
    /// moment never gets it.
    pub fn while_running<T>(&self, group: Pid, wait: impl FnOnce() -> T) -> T {
        self.with(|state| {
            state.group = Some(group);
            if state.asked {
                state.interrupt();
            }
        });
        let result = wait();
        self.with(|state| state.group = None);
        result
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    /// The call fails only if the group has exited.
    fn interrupt(&self) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::TERM);
        }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.signals.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
