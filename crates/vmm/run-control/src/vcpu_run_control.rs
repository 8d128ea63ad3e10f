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
//!    4. After KVM_RUN has read `immediate_exit` as 0. The vCPU thread sets `in_guest`, passes a
//!       fence, and reads `immediate_exit` in KVM_RUN; the kick sets `immediate_exit`, passes a
//!       fence, and reads `in_guest`. Of two sequentially consistent fences one comes first, and
//!       what was written before it is read after the other. `immediate_exit` was read as 0, so the
//!       vCPU thread's fence came first: the kick reads `in_guest` as true and sends the signal, and
//!       KVM_RUN returns EINTR. (A signal that arrives after KVM_RUN has returned runs a handler
//!       that does nothing.)
//!
//!    The thread goes on to its next clear, and case 1 holds for that one.
//!
//! The models in `tests/models.rs` hold the code to this.

use std::{marker::PhantomData, sync::Arc};

use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, fence, lock, wait};

/// What makes a vCPU's thread leave KVM_RUN.
pub trait KickTarget: Send {
    /// Sets or clears KVM's `immediate_exit`: KVM_RUN returns at once while it is set.
    fn set_immediate_exit(&self, value: bool);

    /// Sends the thread a signal, which interrupts KVM_RUN.
    fn interrupt(&self);
}

struct State<R> {
    paused: bool,
    /// Exit reason requested by another thread. It stays until a vCPU thread takes it, after a
    /// restart of the guest if need be.
    requested: Option<R>,
    /// Exit reason of this run of the guest. All vCPU threads return once it is set.
    decided: Option<R>,
    slots: Vec<VcpuSlot>,
}

/// Run control of one vCPU.
#[derive(Default)]
struct VcpuSlot {
    /// A kick came after the vCPU thread's last clear.
    kicked: bool,
    /// The vCPU thread waits because the VM is paused.
    parked: bool,
    /// The thread to kick, from its registration to the end of its [`Registration`].
    target: Option<Box<dyn KickTarget>>,
}

/// The parts of a vCPU's run control that are used without the lock, or with the lock released.
#[derive(Default)]
struct Signals {
    kicked: Condvar,
    in_guest: AtomicBool,
}

/// Run control of all vCPUs of a VM whose guest ends for a reason of type `R`. It outlives restarts
/// of the guest.
pub struct VcpuRunControl<R> {
    state: Mutex<State<R>>,
    signals: Vec<Signals>,
    /// A vCPU thread has parked or unregistered.
    parked: Condvar,
    /// Held while vCPUs and board go from running to paused or back, so that they are always the
    /// same. Taken before all other locks.
    transition: Mutex<()>,
}

impl<R> VcpuRunControl<R> {
    /// Run control of a VM with `vcpus` vCPUs, none of which has a thread yet.
    pub fn new(vcpus: u8) -> Self {
        let slots = (0..vcpus).map(|_| VcpuSlot::default()).collect();
        Self {
            state: Mutex::new(State { paused: false, requested: None, decided: None, slots }),
            signals: (0..vcpus).map(|_| Signals::default()).collect(),
            parked: Condvar::new(),
            transition: Mutex::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        lock(&self.state)
    }

    /// Registers the calling thread as the one that runs `vcpu`: kicks reach `target`, which makes
    /// this thread leave KVM_RUN, until the registration is dropped.
    pub fn register(self: &Arc<Self>, vcpu: u8, target: impl KickTarget + 'static) -> Registration<R> {
        let target: Option<Box<dyn KickTarget>> = Some(Box::new(target));
        self.lock().slots[usize::from(vcpu)] = VcpuSlot { target, ..VcpuSlot::default() };
        Registration { run_control: Arc::clone(self), vcpu, _of_this_thread: PhantomData }
    }

    /// Makes `vcpu`'s thread leave the guest or [`VcpuRunControl::wait_for_kick`] and look for
    /// work.
    pub fn kick(&self, vcpu: u8) {
        self.kick_locked(&mut self.lock(), vcpu.into());
    }

    fn kick_locked(&self, state: &mut State<R>, index: usize) {
        let slot = &mut state.slots[index];
        let signals = &self.signals[index];
        slot.kicked = true;
        signals.kicked.notify_all();
        if let Some(target) = &slot.target {
            target.set_immediate_exit(true);
            fence(Ordering::SeqCst);
            if signals.in_guest.load(Ordering::Relaxed) {
                target.interrupt();
            }
        }
    }

    /// Kicks all vCPUs.
    pub fn kick_every_vcpu(&self) {
        self.kick_all(&mut self.lock());
    }

    fn kick_all(&self, state: &mut State<R>) {
        for index in 0..self.signals.len() {
            self.kick_locked(state, index);
        }
    }

    /// Clears earlier kicks of `vcpu` and waits while the VM is paused. Returns whether the vCPU
    /// may run; `false` means that the guest ends and its thread must return. Called before each
    /// entry.
    pub fn wait_until_runnable(&self, vcpu: u8) -> bool {
        let index = usize::from(vcpu);
        let mut state = self.lock();
        let slot = &mut state.slots[index];
        slot.kicked = false;
        if let Some(target) = &slot.target {
            target.set_immediate_exit(false);
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
            state = wait(&self.signals[index].kicked, state);
        }
    }

    /// Blocks the thread of a vCPU that has no work until its next kick.
    pub fn wait_for_kick(&self, vcpu: u8) {
        let index = usize::from(vcpu);
        let mut state = self.lock();
        // Pausing and ending kick as well.
        while !state.slots[index].kicked {
            state = wait(&self.signals[index].kicked, state);
        }
    }

    /// Runs the guest on `vcpu` by `run`, during which a kick sends the signal.
    pub fn run_guest<T>(&self, vcpu: u8, run: impl FnOnce() -> T) -> T {
        let in_guest = &self.signals[usize::from(vcpu)].in_guest;
        in_guest.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let result = run();
        in_guest.store(false, Ordering::Relaxed);
        result
    }

    /// Requests that the guest end for `reason`. Ignored if another request waits. A request that
    /// comes while the guest restarts ends its next run.
    pub fn request_exit(&self, reason: R) {
        let mut state = self.lock();
        state.requested.get_or_insert(reason);
        self.kick_all(&mut state);
    }

    /// Ends this run of the guest for `reason`, on behalf of a vCPU thread: all vCPU threads
    /// return. Ignored if the exit reason is already decided.
    pub fn finish(&self, reason: R) {
        self.finish_locked(&mut self.lock(), reason);
    }

    fn finish_locked(&self, state: &mut State<R>, reason: R) {
        state.decided.get_or_insert(reason);
        self.kick_all(state);
    }

    /// Takes the exit reason of the run whose vCPU threads have all returned; the next run can
    /// start.
    pub fn take_exit_reason(&self) -> Option<R> {
        self.lock().decided.take()
    }

    /// Pauses the VM: waits until all vCPU threads are parked or have returned, then calls
    /// `pause_board`. Does nothing if the VM is paused.
    pub fn pause(&self, pause_board: impl FnOnce()) {
        let _transition = lock(&self.transition);
        if self.park() {
            pause_board();
        }
    }

    /// Calls `unpause_board`, then lets the vCPUs run again. Does nothing if the VM is not paused.
    pub fn unpause(&self, unpause_board: impl FnOnce()) {
        let _transition = lock(&self.transition);
        if self.is_paused() {
            unpause_board();
            self.unpark();
        }
    }

    /// Calls `f` while no vCPU runs; they run again afterwards unless the VM was paused before.
    pub fn suspend<T>(&self, f: impl FnOnce() -> T) -> T {
        let _transition = lock(&self.transition);
        let was_running = self.park();
        let result = f();
        if was_running {
            self.unpark();
        }
        result
    }

    /// Calls `publish`, which makes the board of a started guest known to those who pause it, with
    /// whether that board must be paused from the beginning.
    pub fn publish_board(&self, publish: impl FnOnce(bool)) {
        let _transition = lock(&self.transition);
        publish(self.is_paused());
    }

    /// Pauses the vCPUs and waits until all their threads are parked or have returned. Returns
    /// whether they were running before.
    fn park(&self) -> bool {
        let mut state = self.lock();
        let was_running = !state.paused;
        state.paused = true;
        self.kick_all(&mut state);
        let runs = |slot: &VcpuSlot| slot.target.is_some() && !slot.parked;
        while state.slots.iter().any(runs) {
            state = wait(&self.parked, state);
        }
        was_running
    }

    /// Lets the vCPUs run again.
    fn unpark(&self) {
        let mut state = self.lock();
        state.paused = false;
        self.kick_all(&mut state);
    }

    /// Whether the VM is paused.
    pub fn is_paused(&self) -> bool {
        self.lock().paused
    }
}

/// Keeps a vCPU thread registered. It cannot be sent to another thread.
pub struct Registration<R> {
    run_control: Arc<VcpuRunControl<R>>,
    vcpu: u8,
    _of_this_thread: PhantomData<*const ()>,
}

impl<R> Drop for Registration<R> {
    fn drop(&mut self) {
        self.run_control.lock().slots[usize::from(self.vcpu)].target = None;
        self.run_control.parked.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{array, sync::atomic::AtomicBool, thread};

    use super::*;

    /// `immediate_exit` of a thread that is never in KVM_RUN.
    #[derive(Clone, Default)]
    struct Flag(Arc<AtomicBool>);

    impl Flag {
        fn is_set(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl KickTarget for Flag {
        fn set_immediate_exit(&self, value: bool) {
            self.0.store(value, Ordering::Relaxed);
        }

        fn interrupt(&self) {
            unreachable!("no guest runs");
        }
    }

    #[test]
    fn the_first_requested_exit_reason_counts_for_all_vcpus() {
        let run_control = VcpuRunControl::new(2);
        run_control.request_exit("killed");
        run_control.request_exit("reset");
        assert!(!run_control.wait_until_runnable(1));
        run_control.finish("reset");
        assert!(!run_control.wait_until_runnable(0));
        assert_eq!(run_control.take_exit_reason(), Some("killed"));
        assert!(run_control.wait_until_runnable(0) && run_control.wait_until_runnable(1));
    }

    #[test]
    fn a_request_during_a_reset_ends_the_next_run() {
        let run_control = VcpuRunControl::new(1);
        run_control.finish("reset");
        run_control.request_exit("killed");
        assert!(!run_control.wait_until_runnable(0));
        assert_eq!(run_control.take_exit_reason(), Some("reset"));
        assert!(!run_control.wait_until_runnable(0));
        assert_eq!(run_control.take_exit_reason(), Some("killed"));
    }

    #[test]
    fn a_kick_before_waiting_is_not_lost_and_is_cleared_by_the_next_round() {
        let run_control = VcpuRunControl::<()>::new(1);
        run_control.kick(0);
        run_control.wait_for_kick(0);
        assert!(run_control.wait_until_runnable(0));
        assert!(!run_control.lock().slots[0].kicked);
    }

    #[test]
    fn a_kick_reaches_the_registered_thread_and_no_other() {
        let run_control = Arc::new(VcpuRunControl::<()>::new(2));
        let flags: [Flag; 2] = array::from_fn(|_| Flag::default());
        let registrations = [0, 1].map(|n: u8| run_control.register(n, flags[usize::from(n)].clone()));
        let values = || flags.each_ref().map(Flag::is_set);
        run_control.kick(1);
        assert_eq!(values(), [false, true]);
        assert!(run_control.wait_until_runnable(0));
        assert_eq!(values(), [false, true]);
        assert!(run_control.wait_until_runnable(1));
        assert_eq!(values(), [false, false]);
        run_control.kick_every_vcpu();
        assert_eq!(values(), [true, true]);
        assert!(run_control.wait_until_runnable(0) && run_control.wait_until_runnable(1));
        drop(registrations);
        run_control.kick_every_vcpu();
        assert_eq!(values(), [false, false]);
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
                    let _registration = run_control.register(vcpu, Flag::default());
                    rustix::io::write(write, b"!").unwrap();
                    while run_control.wait_until_runnable(vcpu) {
                        run_control.wait_for_kick(vcpu);
                    }
                });
            }
            for _ in 0..VCPUS {
                rustix::io::read(&read, &mut [0; 1]).unwrap();
            }
            let mut paused = 0;
            run_control.pause(|| paused += 1);
            assert!(run_control.is_paused() && run_control.lock().slots.iter().all(|slot| slot.parked));
            run_control.pause(|| paused += 1);
            assert_eq!(paused, 1);
            run_control.unpause(|| paused -= 1);
            run_control.unpause(|| paused -= 1);
            assert_eq!(paused, 0);
            run_control.finish("reset");
        });
        assert_eq!(run_control.take_exit_reason(), Some("reset"));
    }

    #[test]
    fn a_suspend_leaves_a_paused_vm_paused() {
        let run_control = VcpuRunControl::<()>::new(1);
        assert!(run_control.suspend(|| run_control.is_paused()));
        assert!(!run_control.is_paused());
        run_control.pause(|| ());
        run_control.suspend(|| ());
        assert!(run_control.is_paused());
    }
}
