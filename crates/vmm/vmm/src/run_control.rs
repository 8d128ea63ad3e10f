//! Run control of the vCPU threads: kick one out of the guest, let it sleep, pause all of them, end
//! the guest.
//!
//! # Proof: no wake-up is lost
//!
//! To wake a vCPU, a thread takes two steps:
//!
//! - *publish*: write the work where the vCPU thread looks for it (the IRQ chip, the SIPI states,
//!   [`State`] here);
//! - *kick*: call [`VcpuRunControl::kick`], which sets `kicked` and KVM's `immediate_exit` under
//!   the lock.
//!
//! The vCPU thread repeats three steps:
//!
//! - *clear*: [`VcpuRunControl::wait_until_runnable`] resets `kicked` and `immediate_exit` under
//!   the lock;
//! - *look*: it reads the published work;
//! - *block*: [`VcpuRunControl::wait_for_kick`], or KVM_RUN inside [`VcpuRunControl::run_guest`].
//!
//! Claim: after every kick, the vCPU thread looks at the work that was published before it. Clear
//! and kick hold the same lock, so one of them comes first. (A thread that has not registered yet
//! clears before its first look, which is case 1.)
//!
//! 1. The kick comes before the clear. Order: publish, kick, clear, look. The look sees the work.
//! 2. The kick comes after the clear. The two flags stay set until the next clear, which only this
//!    thread performs. So the thread does not stay blocked, wherever it is:
//!    1. Before `wait_for_kick` takes the lock: it finds `kicked` set and returns.
//!    2. Waiting in `wait_for_kick`: the wait released the lock in one step with falling asleep, so
//!       the kick's notification comes later and wakes it.
//!    3. Before KVM_RUN reads `immediate_exit`: it reads 1, and KVM_RUN returns EINTR without
//!       entering the guest.
//!    4. After KVM_RUN has read `immediate_exit` as 0. Order, all sequentially consistent:
//!       `in_guest` set to true, `immediate_exit` read as 0, `immediate_exit` set to 1 by the kick,
//!       `in_guest` read by the kick. The kick reads true and sends the signal, and KVM_RUN returns
//!       EINTR. (A signal that arrives after KVM_RUN has returned runs a handler that does
//!       nothing.)
//!
//!    The thread goes on to its next clear, and case 1 holds for that one.

#![allow(unsafe_code)]

use std::{
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use parking_lot::{Condvar, Mutex};

use crate::exit_reason::ExitReason;

#[derive(Default)]
struct State {
    paused: bool,
    /// Exit reason requested by another thread. It stays until a vCPU thread takes it, after a
    /// restart of the guest if need be.
    requested: Option<ExitReason>,
    /// Exit reason of this run of the guest. All vCPU threads return once it is set.
    decided: Option<ExitReason>,
    slots: Vec<VcpuSlot>,
}

/// Run control of one vCPU.
#[derive(Default)]
struct VcpuSlot {
    /// A kick came after the vCPU thread's last clear.
    kicked: bool,
    /// The vCPU thread waits because the VM is paused.
    parked: bool,
    target: Option<KickTarget>,
}

/// The thread to kick, from its registration to the end of its [`Registration`].
struct KickTarget {
    /// KVM's `immediate_exit`: KVM_RUN returns at once while it is not 0.
    immediate_exit: *const AtomicU8,
    thread: libc::pthread_t,
}

// SAFETY: the pointer is only used for atomic stores, and only while the target is registered:
// dropping `Registration` removes the target before the memory that it points into can go away.
unsafe impl Send for KickTarget {}

impl KickTarget {
    fn set_immediate_exit(&self, value: u8) {
        // SAFETY: see the impl of `Send`; the field is a byte that KVM only reads.
        unsafe { &*self.immediate_exit }.store(value, Ordering::SeqCst);
    }
}

/// The parts of a vCPU's run control that are used without the lock, or with the lock released.
#[derive(Default)]
struct Signals {
    kicked: Condvar,
    in_guest: AtomicBool,
}

/// Run control of all vCPUs of a VM. It outlives restarts of the guest.
pub(crate) struct VcpuRunControl {
    state: Mutex<State>,
    signals: Vec<Signals>,
    /// A vCPU thread has parked or unregistered.
    parked: Condvar,
}

/// The signal that interrupts KVM_RUN.
fn kick_signal() -> libc::c_int {
    vmm_sys_util::signal::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl VcpuRunControl {
    /// Run control of a VM with `vcpus` vCPUs, none of which has a thread yet.
    pub(crate) fn new(vcpus: u8) -> Self {
        let slots = (0..vcpus).map(|_| VcpuSlot::default()).collect();
        Self {
            state: Mutex::new(State { slots, ..State::default() }),
            signals: (0..vcpus).map(|_| Signals::default()).collect(),
            parked: Condvar::new(),
        }
    }

    /// Registers the calling thread as the one that runs `vcpu`: kicks reach it until the
    /// registration is dropped.
    ///
    /// # Safety
    /// `immediate_exit` must stay valid until the registration is dropped.
    pub(crate) unsafe fn register(
        self: &Arc<Self>,
        vcpu: u8,
        immediate_exit: *const AtomicU8,
    ) -> Registration {
        // Without a handler the signal would end the process instead of interrupting a system call.
        vmm_sys_util::signal::register_signal_handler(kick_signal(), ignore)
            .expect("a real-time signal takes a handler");
        // SAFETY: asks for the calling thread's own handle.
        let thread = unsafe { libc::pthread_self() };
        let target = Some(KickTarget { immediate_exit, thread });
        self.state.lock().slots[usize::from(vcpu)] = VcpuSlot { target, ..VcpuSlot::default() };
        Registration { run_control: Arc::clone(self), vcpu, _of_this_thread: PhantomData }
    }

    /// Makes `vcpu`'s thread leave the guest or [`VcpuRunControl::wait_for_kick`] and look for
    /// work.
    pub(crate) fn kick(&self, vcpu: u8) {
        self.kick_locked(&mut self.state.lock(), vcpu);
    }

    fn kick_locked(&self, state: &mut State, vcpu: u8) {
        let slot = &mut state.slots[usize::from(vcpu)];
        let signals = &self.signals[usize::from(vcpu)];
        slot.kicked = true;
        signals.kicked.notify_all();
        if let Some(target) = &slot.target {
            target.set_immediate_exit(1);
            if signals.in_guest.load(Ordering::SeqCst) {
                // SAFETY: the thread is alive: it drops its registration before it ends. The signal
                // has a handler.
                unsafe { libc::pthread_kill(target.thread, kick_signal()) };
            }
        }
    }

    /// Kicks all vCPUs.
    pub(crate) fn kick_every_vcpu(&self) {
        self.kick_all(&mut self.state.lock());
    }

    fn kick_all(&self, state: &mut State) {
        for vcpu in 0..self.signals.len() {
            self.kick_locked(state, vcpu as u8);
        }
        self.parked.notify_all();
    }

    /// Clears earlier kicks of `vcpu` and waits while the VM is paused. Returns whether the vCPU
    /// may run; `false` means that the guest ends and its thread must return. Called before each
    /// entry.
    pub(crate) fn wait_until_runnable(&self, vcpu: u8) -> bool {
        let index = usize::from(vcpu);
        let mut state = self.state.lock();
        let slot = &mut state.slots[index];
        slot.kicked = false;
        if let Some(target) = &slot.target {
            target.set_immediate_exit(0);
        }
        loop {
            if state.decided.is_none()
                && let Some(reason) = state.requested.take()
            {
                self.finish_locked(&mut state, reason);
            }
            if state.decided.is_some() {
                return false;
            }
            state.slots[index].parked = state.paused;
            if !state.paused {
                return true;
            }
            self.parked.notify_all();
            self.signals[index].kicked.wait(&mut state);
        }
    }

    /// Blocks the thread of a vCPU that has no work until its next kick.
    pub(crate) fn wait_for_kick(&self, vcpu: u8) {
        let index = usize::from(vcpu);
        let mut state = self.state.lock();
        // Pausing and ending kick as well.
        while !state.slots[index].kicked {
            self.signals[index].kicked.wait(&mut state);
        }
    }

    /// Runs the guest on `vcpu` by `run`, during which a kick sends the signal.
    pub(crate) fn run_guest<T>(&self, vcpu: u8, run: impl FnOnce() -> T) -> T {
        let in_guest = &self.signals[usize::from(vcpu)].in_guest;
        in_guest.store(true, Ordering::SeqCst);
        let result = run();
        in_guest.store(false, Ordering::SeqCst);
        result
    }

    /// Requests that the guest end for `reason`. Ignored if another request waits. A request that
    /// comes while the guest restarts ends its next run.
    pub(crate) fn request_exit(&self, reason: ExitReason) {
        let mut state = self.state.lock();
        state.requested.get_or_insert(reason);
        self.kick_all(&mut state);
    }

    /// Ends this run of the guest for `reason`, on behalf of a vCPU thread: all vCPU threads
    /// return. Ignored if the exit reason is already decided.
    pub(crate) fn finish(&self, reason: ExitReason) {
        self.finish_locked(&mut self.state.lock(), reason);
    }

    fn finish_locked(&self, state: &mut State, reason: ExitReason) {
        state.decided.get_or_insert(reason);
        self.kick_all(state);
    }

    /// Takes the exit reason of the run whose vCPU threads have all returned; the next run can
    /// start.
    pub(crate) fn take_exit_reason(&self) -> Option<ExitReason> {
        self.state.lock().decided.take()
    }

    /// Pauses the vCPUs and waits until all of them are parked. Returns whether they were running
    /// before.
    pub(crate) fn pause(&self) -> bool {
        let mut state = self.state.lock();
        let was_running = !state.paused;
        state.paused = true;
        self.kick_all(&mut state);
        let runs = |slot: &VcpuSlot| slot.target.is_some() && !slot.parked;
        while state.paused
            && state.requested.is_none()
            && state.decided.is_none()
            && state.slots.iter().any(runs)
        {
            self.parked.wait(&mut state);
        }
        was_running
    }

    /// Lets the vCPUs run again. Returns whether they were paused before.
    pub(crate) fn unpause(&self) -> bool {
        let mut state = self.state.lock();
        let was_paused = state.paused;
        state.paused = false;
        self.kick_all(&mut state);
        was_paused
    }

    /// Whether the VM is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.state.lock().paused
    }
}

/// Keeps a vCPU thread registered. It cannot be sent to another thread.
pub(crate) struct Registration {
    run_control: Arc<VcpuRunControl>,
    vcpu: u8,
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.run_control.state.lock().slots[usize::from(self.vcpu)].target = None;
        self.run_control.parked.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_first_requested_exit_reason_counts_for_all_vcpus() {
        let run_control = VcpuRunControl::new(2);
        run_control.request_exit(ExitReason::Killed);
        run_control.request_exit(ExitReason::Reset);
        assert!(!run_control.wait_until_runnable(1));
        run_control.finish(ExitReason::Reset);
        assert!(!run_control.wait_until_runnable(0));
        assert_eq!(run_control.take_exit_reason(), Some(ExitReason::Killed));
        assert!(run_control.wait_until_runnable(0) && run_control.wait_until_runnable(1));
    }

    #[test]
    fn a_request_during_a_reset_ends_the_next_run() {
        let run_control = VcpuRunControl::new(1);
        run_control.finish(ExitReason::Reset);
        run_control.request_exit(ExitReason::Killed);
        assert!(!run_control.wait_until_runnable(0));
        assert_eq!(run_control.take_exit_reason(), Some(ExitReason::Reset));
        assert!(!run_control.wait_until_runnable(0));
        assert_eq!(run_control.take_exit_reason(), Some(ExitReason::Killed));
    }

    #[test]
    fn a_kick_before_waiting_is_not_lost_and_is_cleared_by_the_next_round() {
        let run_control = VcpuRunControl::new(1);
        run_control.kick(0);
        run_control.wait_for_kick(0);
        assert!(run_control.wait_until_runnable(0));
        assert!(!run_control.state.lock().slots[0].kicked);
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
                run_control.run_guest(0, || {
                    let mut poll = [];
                    // A kick that comes before poll shows in the flag, one during poll interrupts
                    // it.
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
    fn pausing_waits_until_all_vcpus_are_parked_and_one_exit_ends_all() {
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
                        run_control.wait_for_kick(vcpu);
                    }
                });
            }
            for _ in 0..VCPUS {
                rustix::io::read(&read, &mut [0; 1]).unwrap();
            }
            assert!(run_control.pause());
            assert!(run_control.is_paused() && run_control.state.lock().slots.iter().all(|slot| slot.parked));
            assert!(!run_control.pause());
            assert!(run_control.unpause());
            assert!(!run_control.unpause());
            run_control.finish(ExitReason::Reset);
        });
        assert_eq!(run_control.take_exit_reason(), Some(ExitReason::Reset));
    }
}
