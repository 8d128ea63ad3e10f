//! Where the threads that run the virtual CPUs meet the others: kicking one of them out of the guest, letting it sleep
//! while it has nothing to do, pausing all of them and ending the guest.
//!
//! No wake-up is lost, since whoever has something for a virtual CPU first puts it where that looks and then kicks
//! it: the virtual CPU's thread forgets kicks in [`VcpuRunControl::pass`], looks only then, and neither [`VcpuRunControl::sleep`] nor the
//! guest's next run goes on past a kick that came after.

#![allow(unsafe_code)]

use std::{
    marker::PhantomData,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use crate::exit_reason::ExitReason;

#[derive(Default)]
struct State {
    paused: bool,
    /// How others want the guest to end. It stays until a virtual CPU comes by, in the guest's next life if need be.
    order: Option<ExitReason>,
    /// How this life of the guest ends: its virtual CPUs leave.
    over: Option<ExitReason>,
    seats: Vec<VcpuSlot>,
}

/// What is known of one virtual CPU.
#[derive(Default)]
struct VcpuSlot {
    kicked: bool,
    parked: bool,
    target: Option<Target>,
}

/// A virtual CPU's thread, from when it starts to run to when it stops.
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

/// What one virtual CPU's thread waits for and says without the lock.
#[derive(Default)]
struct Signals {
    changed: Condvar,
    in_guest: AtomicBool,
}

/// See the module's text. One per machine; it outlives the guest's restarts.
pub(crate) struct VcpuRunControl {
    state: Mutex<State>,
    signals: Vec<Signals>,
    /// A virtual CPU stands, or has left.
    stands: Condvar,
}

/// Sends the signal that interrupts KVM_RUN.
fn kick_signal() -> libc::c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl VcpuRunControl {
    /// The run_control of a machine with `vcpus` virtual CPUs.
    pub(crate) fn new(vcpus: u8) -> Self {
        let seats = (0..vcpus).map(|_| VcpuSlot::default()).collect();
        Self {
            state: Mutex::new(State { seats, ..State::default() }),
            signals: (0..vcpus).map(|_| Signals::default()).collect(),
            stands: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the calling thread the one that runs `vcpu` and is kicked for it.
    ///
    /// # Safety
    /// `immediate_exit` must stay valid until the registration is dropped.
    pub(crate) unsafe fn register(
        self: &Arc<Self>,
        vcpu: u8,
        immediate_exit: *const AtomicU8,
    ) -> Registration {
        // A handler must be there for the signal to interrupt a system call; it has nothing to do.
        vmm_sys_util::signal::register_signal_handler(kick_signal(), ignore)
            .expect("a real-time signal takes a handler");
        // SAFETY: asks for the calling thread's own handle.
        let thread = unsafe { libc::pthread_self() };
        let target = Some(Target { immediate_exit, thread });
        self.lock().seats[usize::from(vcpu)] = VcpuSlot { target, ..VcpuSlot::default() };
        Registration { run_control: Arc::clone(self), vcpu, _of_this_thread: PhantomData }
    }

    /// Gets `vcpu`'s thread to look at interrupts and orders: out of the guest, or out of [`VcpuRunControl::sleep`].
    pub(crate) fn kick(&self, vcpu: u8) {
        self.kick_locked(&mut self.lock(), vcpu);
    }

    fn kick_locked(&self, state: &mut State, vcpu: u8) {
        let seat = &mut state.seats[usize::from(vcpu)];
        let signals = &self.signals[usize::from(vcpu)];
        seat.kicked = true;
        signals.changed.notify_all();
        if let Some(target) = &seat.target {
            target.set_immediate_exit(1);
            if signals.in_guest.load(Ordering::SeqCst) {
                // SAFETY: the thread is alive: it takes its registration back before it ends. The signal has a handler.
                unsafe { libc::pthread_kill(target.thread, kick_signal()) };
            }
        }
    }

    fn kick_all(&self, state: &mut State) {
        for vcpu in 0..self.signals.len() {
            self.kick_locked(state, vcpu as u8);
        }
        self.stands.notify_all();
    }

    /// `vcpu`'s thread comes by before each entry: forgets earlier kicks, and waits while paused. Returns whether it
    /// goes on; if not, it leaves. Kicks after this make the next KVM_RUN return at once.
    pub(crate) fn wait_until_runnable(&self, vcpu: u8) -> bool {
        let index = usize::from(vcpu);
        let mut state = self.lock();
        let seat = &mut state.seats[index];
        seat.kicked = false;
        if let Some(target) = &seat.target {
            target.set_immediate_exit(0);
        }
        loop {
            if state.over.is_none()
                && let Some(ended) = state.order.take()
            {
                self.finish_locked(&mut state, ended);
            }
            if state.over.is_some() {
                return false;
            }
            state.seats[index].parked = state.paused;
            if !state.paused {
                return true;
            }
            self.stands.notify_all();
            state = self.signals[index].changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits, on behalf of a virtual CPU that has nothing to do, until its next kick.
    pub(crate) fn sleep(&self, vcpu: u8) {
        let index = usize::from(vcpu);
        let mut state = self.lock();
        // Whoever pauses or ends kicks as well.
        while !state.seats[index].kicked {
            state = self.signals[index].changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Runs the guest on `vcpu` by `run`, during which kicks are signals.
    pub(crate) fn guest<T>(&self, vcpu: u8, run: impl FnOnce() -> T) -> T {
        let in_guest = &self.signals[usize::from(vcpu)].in_guest;
        in_guest.store(true, Ordering::SeqCst);
        let result = run();
        in_guest.store(false, Ordering::SeqCst);
        result
    }

    /// Orders the guest's end, from outside. The first order counts, and it is not lost if the guest is just being
    /// started again.
    pub(crate) fn end(&self, ended: ExitReason) {
        let mut state = self.lock();
        state.order.get_or_insert(ended);
        self.kick_all(&mut state);
    }

    /// This life of the guest ends, for a virtual CPU that has found out how: all of them leave. The first end counts.
    pub(crate) fn finish(&self, ended: ExitReason) {
        self.finish_locked(&mut self.lock(), ended);
    }

    fn finish_locked(&self, state: &mut State, ended: ExitReason) {
        state.over.get_or_insert(ended);
        self.kick_all(state);
    }

    /// How the life ended whose virtual CPUs have all left; the next one can begin.
    pub(crate) fn take_end(&self) -> Option<ExitReason> {
        self.lock().over.take()
    }

    /// Stops the virtual CPUs and waits until all of them stand. Returns whether they were running before.
    pub(crate) fn pause(&self) -> bool {
        let mut state = self.lock();
        let was_running = !state.paused;
        state.paused = true;
        self.kick_all(&mut state);
        let runs = |seat: &VcpuSlot| seat.target.is_some() && !seat.parked;
        while state.paused && state.order.is_none() && state.over.is_none() && state.seats.iter().any(runs) {
            state = self.stands.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        was_running
    }

    /// Lets the virtual CPUs go on. Returns whether they were paused before.
    pub(crate) fn unpause(&self) -> bool {
        let mut state = self.lock();
        let was_paused = state.paused;
        state.paused = false;
        self.kick_all(&mut state);
        was_paused
    }

    /// Whether they are paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }
}

/// A virtual CPU's thread can be kicked as long as this lives. It cannot leave that thread.
pub(crate) struct Registration {
    run_control: Arc<VcpuRunControl>,
    vcpu: u8,
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.run_control.lock().seats[usize::from(self.vcpu)].target = None;
        self.run_control.stands.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_first_end_counts_for_all() {
        let run_control = VcpuRunControl::new(2);
        run_control.end(ExitReason::Killed);
        run_control.end(ExitReason::Reset);
        assert!(!run_control.wait_until_runnable(1));
        run_control.finish(ExitReason::Reset);
        assert!(!run_control.wait_until_runnable(0));
        assert_eq!(run_control.take_end(), Some(ExitReason::Killed));
        assert!(run_control.wait_until_runnable(0) && run_control.wait_until_runnable(1));
    }

    #[test]
    fn an_order_that_comes_while_the_guest_resets_itself_is_for_its_next_life() {
        let run_control = VcpuRunControl::new(1);
        run_control.finish(ExitReason::Reset);
        run_control.end(ExitReason::Killed);
        assert!(!run_control.wait_until_runnable(0));
        assert_eq!(run_control.take_end(), Some(ExitReason::Reset));
        assert!(!run_control.wait_until_runnable(0));
        assert_eq!(run_control.take_end(), Some(ExitReason::Killed));
    }

    #[test]
    fn a_kick_before_sleeping_is_not_lost_and_passing_forgets_it() {
        let run_control = VcpuRunControl::new(1);
        run_control.kick(0);
        run_control.sleep(0);
        assert!(run_control.wait_until_runnable(0));
        assert!(!run_control.lock().seats[0].kicked);
    }

    #[test]
    fn a_kick_reaches_the_registered_thread_and_no_other() {
        let run_control = Arc::new(VcpuRunControl::new(2));
        let flags = [const { AtomicU8::new(0) }; 2];
        // SAFETY: `flags` lives as long as the registrations.
        let registrations =
            [0, 1].map(|n: u8| unsafe { run_control.register(n, &raw const flags[usize::from(n)]) });
        let values = || [0, 1].map(|n: usize| flags[n].load(Ordering::SeqCst));
        run_control.kick(1);
        assert_eq!(values(), [0, 1]);
        assert!(run_control.wait_until_runnable(0));
        assert_eq!(values(), [0, 1]);
        assert!(run_control.wait_until_runnable(1));
        assert_eq!(values(), [0, 0]);
        run_control.unpause();
        assert_eq!(values(), [1, 1]);
        assert!(run_control.wait_until_runnable(0) && run_control.wait_until_runnable(1));
        drop(registrations);
        run_control.kick(0);
        run_control.kick(1);
        assert_eq!(values(), [0, 0]);
    }

    #[test]
    fn a_signal_interrupts_a_blocking_call() {
        let run_control = Arc::new(VcpuRunControl::new(1));
        let (read, write) = rustix::pipe::pipe().unwrap();
        let blocked = thread::spawn({
            let run_control = Arc::clone(&run_control);
            move || {
                let flag = AtomicU8::new(0);
                // SAFETY: `flag` lives as long as the registration.
                let _registration = unsafe { run_control.register(0, &raw const flag) };
                rustix::io::write(&write, b"!").unwrap();
                run_control.guest(0, || {
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
            run_control.kick(0);
            thread::yield_now();
        }
        blocked.join().unwrap();
    }

    #[test]
    fn pausing_waits_until_all_stand_and_the_end_of_one_is_the_end_of_all() {
        const VCPUS: u8 = 3;
        let run_control = Arc::new(VcpuRunControl::new(VCPUS));
        let (read, write) = rustix::pipe::pipe().unwrap();
        thread::scope(|scope| {
            for vcpu in 0..VCPUS {
                let (run_control, write) = (Arc::clone(&run_control), &write);
                scope.spawn(move || {
                    let flag = AtomicU8::new(0);
                    // SAFETY: `flag` lives as long as the registration.
                    let _registration = unsafe { run_control.register(vcpu, &raw const flag) };
                    rustix::io::write(write, b"!").unwrap();
                    while run_control.wait_until_runnable(vcpu) {
                        run_control.sleep(vcpu);
                    }
                });
            }
            for _ in 0..VCPUS {
                rustix::io::read(&read, &mut [0; 1]).unwrap();
            }
            assert!(run_control.pause());
            assert!(run_control.is_paused() && run_control.lock().seats.iter().all(|seat| seat.parked));
            assert!(!run_control.pause());
            assert!(run_control.unpause());
            assert!(!run_control.unpause());
            run_control.finish(ExitReason::Reset);
        });
        assert_eq!(run_control.take_end(), Some(ExitReason::Reset));
    }
}
