//! Where the thread that runs the virtual CPU meets the others: kicking it out of the guest, letting it sleep while
//! the guest is halted, pausing and ending it.

#![allow(unsafe_code)]

use std::{
    marker::PhantomData,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use crate::end::Ended;

/// What [`Gate::pass`] lets the virtual CPU do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Go on.
    Run,
    /// The machine ends.
    End(Ended),
}

#[derive(Default)]
struct State {
    kicked: bool,
    paused: bool,
    parked: bool,
    end: Option<Ended>,
    target: Option<Target>,
}

/// The virtual CPU's thread, from when it starts to run to when it stops.
struct Target {
    /// KVM's `immediate_exit`: KVM_RUN returns at once while it is not 0.
    immediate_exit: *const AtomicU8,
    thread: libc::pthread_t,
}

// SAFETY: the pointer is only used for atomic stores, and only while the target is registered: `Registration` takes it
// back before the memory that it points into can go away.
unsafe impl Send for Target {}

impl Target {
    fn set_immediate_exit(&self, value: u8) {
        // SAFETY: see the impl of `Send`; the field is a byte that KVM only reads.
        unsafe { &*self.immediate_exit }.store(value, Ordering::SeqCst);
    }
}

/// See the module's text. One per machine; it outlives the guest's restarts.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    in_guest: AtomicBool,
}

/// Sends the signal that interrupts KVM_RUN.
fn kick_signal() -> libc::c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the calling thread the one that is kicked.
    ///
    /// # Safety
    /// `immediate_exit` must stay valid until the registration is dropped.
    pub(crate) unsafe fn register(self: &Arc<Self>, immediate_exit: *const AtomicU8) -> Registration {
        // A handler must be there for the signal to interrupt a system call; it has nothing to do.
        vmm_sys_util::signal::register_signal_handler(kick_signal(), ignore)
            .expect("a real-time signal takes a handler");
        // SAFETY: asks for the calling thread's own handle.
        let thread = unsafe { libc::pthread_self() };
        self.lock().target = Some(Target { immediate_exit, thread });
        Registration { gate: Arc::clone(self), _of_this_thread: PhantomData }
    }

    /// Gets the virtual CPU's thread to look at interrupts and orders: out of the guest, or out of [`Gate::sleep`].
    pub(crate) fn kick(&self) {
        self.kick_locked(&mut self.lock());
    }

    fn kick_locked(&self, state: &mut State) {
        state.kicked = true;
        self.changed.notify_all();
        if let Some(target) = &state.target {
            target.set_immediate_exit(1);
            if self.in_guest.load(Ordering::SeqCst) {
                // SAFETY: the thread is alive: it takes its registration back before it ends. The signal has a handler.
                unsafe { libc::pthread_kill(target.thread, kick_signal()) };
            }
        }
    }

    /// The virtual CPU's thread comes by before each entry: forgets earlier kicks, waits while paused, hears of the
    /// end. Kicks after this make the next KVM_RUN return at once.
    pub(crate) fn pass(&self) -> Pass {
        let mut state = self.lock();
        state.kicked = false;
        if let Some(target) = &state.target {
            target.set_immediate_exit(0);
        }
        loop {
            if let Some(end) = state.end.take() {
                return Pass::End(end);
            }
            if !state.paused {
                state.parked = false;
                return Pass::Run;
            }
            state.parked = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits, on behalf of a halted virtual CPU, until the next kick.
    pub(crate) fn sleep(&self) {
        let mut state = self.lock();
        while !state.kicked && state.end.is_none() && !state.paused {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs the guest by `run`, during which kicks are signals.
    pub(crate) fn guest<T>(&self, run: impl FnOnce() -> T) -> T {
        self.in_guest.store(true, Ordering::SeqCst);
        let result = run();
        self.in_guest.store(false, Ordering::SeqCst);
        result
    }

    /// Ends the machine. The first end counts.
    pub(crate) fn end(&self, ended: Ended) {
        let mut state = self.lock();
        state.end.get_or_insert(ended);
        self.kick_locked(&mut state);
    }

    /// Stops the virtual CPU and waits until it stands. Returns whether it was running before.
    pub(crate) fn pause(&self) -> bool {
        let mut state = self.lock();
        let was_running = !state.paused;
        state.paused = true;
        self.kick_locked(&mut state);
        while !state.parked && state.target.is_some() && state.paused && state.end.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        was_running
    }

    /// Lets the virtual CPU go on. Returns whether it was paused before.
    pub(crate) fn unpause(&self) -> bool {
        let mut state = self.lock();
        let was_paused = state.paused;
        state.paused = false;
        self.kick_locked(&mut state);
        was_paused
    }

    /// Whether it is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }
}

/// The virtual CPU's thread can be kicked as long as this lives. It cannot leave that thread.
pub(crate) struct Registration {
    gate: Arc<Gate>,
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.gate.lock().target = None;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_first_end_counts() {
        let gate = Gate::default();
        gate.end(Ended::Killed);
        gate.end(Ended::Reset);
        assert_eq!(gate.pass(), Pass::End(Ended::Killed));
        assert_eq!(gate.pass(), Pass::Run);
    }

    #[test]
    fn a_kick_before_sleeping_is_not_lost_and_passing_forgets_it() {
        let gate = Gate::default();
        gate.kick();
        gate.sleep();
        assert_eq!(gate.pass(), Pass::Run);
        assert!(!gate.lock().kicked);
    }

    #[test]
    fn a_kick_reaches_the_registered_thread_and_no_other() {
        let gate = Arc::new(Gate::default());
        let flag = AtomicU8::new(0);
        // SAFETY: `flag` lives as long as the registration.
        let registration = unsafe { gate.register(&raw const flag) };
        gate.kick();
        assert_eq!(flag.load(Ordering::SeqCst), 1);
        assert_eq!(gate.pass(), Pass::Run);
        assert_eq!(flag.load(Ordering::SeqCst), 0);
        drop(registration);
        gate.kick();
        assert_eq!(flag.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_signal_interrupts_a_blocking_call() {
        let gate = Arc::new(Gate::default());
        let (read, write) = rustix::pipe::pipe().unwrap();
        let blocked = thread::spawn({
            let gate = Arc::clone(&gate);
            move || {
                let flag = AtomicU8::new(0);
                // SAFETY: `flag` lives as long as the registration.
                let _registration = unsafe { gate.register(&raw const flag) };
                rustix::io::write(&write, b"!").unwrap();
                gate.guest(|| {
                    let mut poll = [];
                    // Until a kick came there is nothing to be interrupted by, so one that came too early is seen here.
                    while flag.load(Ordering::SeqCst) == 0 {
                        if rustix::event::poll(&mut poll, None) == Err(rustix::io::Errno::INTR) {
                            break;
                        }
                    }
                });
            }
        });
        rustix::io::read(&read, &mut [0; 1]).unwrap();
        while !blocked.is_finished() {
            gate.kick();
            thread::yield_now();
        }
        blocked.join().unwrap();
    }

    #[test]
    fn pausing_waits_until_the_cpu_stands() {
        let gate = Arc::new(Gate::default());
        let (read, write) = rustix::pipe::pipe().unwrap();
        let cpu = thread::spawn({
            let gate = Arc::clone(&gate);
            move || {
                let flag = AtomicU8::new(0);
                // SAFETY: `flag` lives as long as the registration.
                let _registration = unsafe { gate.register(&raw const flag) };
                rustix::io::write(&write, b"!").unwrap();
                loop {
                    if let Pass::End(end) = gate.pass() {
                        return end;
                    }
                    gate.sleep();
                }
            }
        });
        rustix::io::read(&read, &mut [0; 1]).unwrap();
        assert!(gate.pause());
        assert!(gate.is_paused() && gate.lock().parked);
        assert!(!gate.pause());
        assert!(gate.unpause());
        assert!(!gate.unpause());
        gate.end(Ended::Killed);
        assert_eq!(cpu.join().unwrap(), Ended::Killed);
    }
}
