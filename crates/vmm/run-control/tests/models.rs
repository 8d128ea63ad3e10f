//! Models of run control and SIPI states for loom, which runs the crate's own code in every
//! interleaving of the threads' steps with up to [`PREEMPTIONS`] preemptions: `make models`.
//!
//! A thread that would wait for ever is reported as a deadlock, which is how a lost kick shows.

use std::sync::Arc;

use loom::{
    model::Builder,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};
use run_control::{KickTarget, SipiState, SipiStates, VcpuRunControl};

/// How often threads are interrupted in one interleaving; waiting does not count.
const PREEMPTIONS: usize = 3;

type RunControl = Arc<VcpuRunControl<&'static str>>;

fn check(model: impl Fn() + Sync + Send + 'static) {
    check_up_to(PREEMPTIONS, model);
}

fn check_up_to(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

fn run_control(vcpus: u8) -> RunControl {
    Arc::new(VcpuRunControl::new(vcpus))
}

/// A vCPU thread in the kernel, whose guest never exits by itself.
#[derive(Clone)]
struct Kernel(Arc<KernelState>);

struct KernelState {
    immediate_exit: AtomicBool,
    call: Mutex<Call>,
    signal: Condvar,
}

/// A call of KVM_RUN.
#[derive(Default)]
struct Call {
    in_progress: bool,
    interrupted: bool,
}

impl Kernel {
    fn new() -> Self {
        Self(Arc::new(KernelState {
            immediate_exit: AtomicBool::new(false),
            call: Mutex::default(),
            signal: Condvar::new(),
        }))
    }

    /// Enters the guest unless `immediate_exit` is set, and returns at the signal.
    fn kvm_run(&self) {
        self.0.call.lock().unwrap().in_progress = true;
        let immediate = self.0.immediate_exit.load(Ordering::Relaxed);
        let mut call = self.0.call.lock().unwrap();
        while !immediate && !call.interrupted {
            call = self.0.signal.wait(call).unwrap();
        }
        *call = Call::default();
    }
}

impl KickTarget for Kernel {
    fn set_immediate_exit(&self, value: bool) {
        self.0.immediate_exit.store(value, Ordering::Relaxed);
    }

    /// Outside of KVM_RUN the signal's handler does nothing.
    fn interrupt(&self) {
        let mut call = self.0.call.lock().unwrap();
        call.interrupted = call.in_progress;
        self.0.signal.notify_all();
    }
}

/// A vCPU thread that runs its guest until the end of the run, and calls `before` before each
/// KVM_RUN.
fn vcpu(run_control: &RunControl, number: u8, before: impl Fn() + Send + 'static) -> JoinHandle<()> {
    let run_control = Arc::clone(run_control);
    thread::spawn(move || {
        let kernel = Kernel::new();
        let _registration = run_control.register(number, kernel.clone());
        while run_control.wait_until_runnable(number) {
            before();
            run_control.run_guest(number, || kernel.kvm_run());
        }
    })
}

fn join<const N: usize>(threads: [JoinHandle<()>; N]) {
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_kick_wakes_a_waiting_vcpu() {
    check(|| {
        let (run_control, states) = (run_control(2), Arc::new(SipiStates::new(2)));
        let waiting = thread::spawn({
            let (run_control, states) = (Arc::clone(&run_control), Arc::clone(&states));
            move || {
                let _registration = run_control.register(1, Kernel::new());
                loop {
                    assert!(run_control.wait_until_runnable(1));
                    if let SipiState::Start(vector) = states.take(1) {
                        return vector;
                    }
                    run_control.wait_for_kick(1);
                }
            }
        });

        states.sipi(1, 0x9a);
        run_control.kick(1);

        assert_eq!(waiting.join().unwrap(), 0x9a);
    });
}

#[test]
fn a_kick_takes_a_vcpu_out_of_the_guest() {
    check(|| {
        let (run_control, states) = (run_control(1), Arc::new(SipiStates::new(1)));
        let running = thread::spawn({
            let (run_control, states) = (Arc::clone(&run_control), Arc::clone(&states));
            move || {
                let kernel = Kernel::new();
                let _registration = run_control.register(0, kernel.clone());
                while run_control.wait_until_runnable(0) && states.take(0) == SipiState::Run {
                    run_control.run_guest(0, || kernel.kvm_run());
                }
            }
        });

        states.init(0);
        run_control.kick(0);

        running.join().unwrap();
    });
}

#[test]
fn one_of_two_sipis_is_taken_once() {
    check(|| {
        let states = Arc::new(SipiStates::new(2));
        let send = |vector| {
            let states = Arc::clone(&states);
            thread::spawn(move || states.sipi(1, vector))
        };
        let senders = [send(1), send(2)];

        let mut taken = vec![states.take(1), states.take(1)];
        join(senders);
        taken.push(states.take(1));

        let starts = taken.iter().filter(|state| matches!(state, SipiState::Start(_))).count();
        assert_eq!((starts, states.take(1)), (1, SipiState::Run));
    });
}

#[test]
fn an_init_is_not_lost_beside_a_sipi_that_is_taken() {
    check(|| {
        let states = Arc::new(SipiStates::new(2));
        let vcpu = thread::spawn({
            let states = Arc::clone(&states);
            move || states.take(1)
        });

        states.sipi(1, 0x9a);
        states.init(1);

        vcpu.join().unwrap();
        assert_eq!(states.take(1), SipiState::Wait);
    });
}

#[test]
fn pause_returns_only_when_all_vcpus_stand() {
    check(|| {
        let (run_control, stand) = (run_control(2), Arc::new(AtomicBool::new(false)));
        let vcpus = [0, 1].map(|number| {
            let stand = Arc::clone(&stand);
            vcpu(&run_control, number, move || assert!(!stand.load(Ordering::Relaxed)))
        });

        run_control.pause(|| stand.store(true, Ordering::Relaxed));
        run_control.unpause(|| stand.store(false, Ordering::Relaxed));
        run_control.finish("reset");

        join(vcpus);
    });
}

#[test]
fn all_vcpus_leave_at_the_end_even_of_a_paused_vm() {
    // With the fourth thread, a third preemption costs ten times as much as all other models.
    check_up_to(2, || {
        let run_control = run_control(2);
        let vcpus = [0, 1].map(|number| vcpu(&run_control, number, || ()));
        let pausing = thread::spawn({
            let run_control = Arc::clone(&run_control);
            move || run_control.pause(|| ())
        });

        run_control.request_exit("killed");

        pausing.join().unwrap();
        join(vcpus);
        assert_eq!(run_control.take_exit_reason(), Some("killed"));
    });
}

#[test]
fn all_vcpus_leave_when_one_ends_the_run() {
    check(|| {
        let run_control = run_control(2);
        let ending = vcpu(&run_control, 0, {
            let run_control = Arc::clone(&run_control);
            move || run_control.finish("reset")
        });
        let other = vcpu(&run_control, 1, || ());

        run_control.suspend(|| ());

        join([ending, other]);
        assert_eq!(run_control.take_exit_reason(), Some("reset"));
    });
}

#[test]
fn an_end_during_a_restart_is_taken_once() {
    check(|| {
        let run_control = run_control(2);
        let kill = thread::spawn({
            let run_control = Arc::clone(&run_control);
            move || run_control.request_exit("killed")
        });

        let mut reasons = Vec::new();
        while reasons.last() != Some(&"killed") {
            let other = vcpu(&run_control, 1, || ());
            while run_control.wait_until_runnable(0) {
                if reasons.is_empty() {
                    run_control.finish("reset");
                } else {
                    run_control.wait_for_kick(0);
                }
            }
            other.join().unwrap();
            reasons.push(run_control.take_exit_reason().unwrap());
        }

        kill.join().unwrap();
        assert!(matches!(reasons[..], ["killed"] | ["reset", "killed"]), "{reasons:?}");
        assert!(run_control.wait_until_runnable(0), "no request is left");
    });
}

/// A VM's board as far as pausing goes: whether it is paused.
type Board = Arc<Mutex<bool>>;

fn pause(run_control: &RunControl, board: &Board) {
    run_control.pause(|| *board.lock().unwrap() = true);
}

fn unpause(run_control: &RunControl, board: &Board) {
    run_control.unpause(|| *board.lock().unwrap() = false);
}

#[test]
fn pause_and_unpause_of_two_handles_keep_board_and_vcpus_equal() {
    check(|| {
        let (run_control, board) = (run_control(1), Board::default());
        let vcpu = vcpu(&run_control, 0, {
            let board = Arc::clone(&board);
            move || assert!(!*board.lock().unwrap(), "a vCPU runs beside a paused board")
        });
        let other = thread::spawn({
            let (run_control, board) = (Arc::clone(&run_control), Arc::clone(&board));
            move || pause(&run_control, &board)
        });

        pause(&run_control, &board);
        unpause(&run_control, &board);

        other.join().unwrap();
        assert_eq!(*board.lock().unwrap(), run_control.is_paused());
        run_control.finish("reset");
        vcpu.join().unwrap();
    });
}

#[test]
fn a_board_that_starts_beside_a_pause_is_paused() {
    check(|| {
        let (run_control, board) = (run_control(1), Board::default());
        let start = thread::spawn({
            let (run_control, board) = (Arc::clone(&run_control), Arc::clone(&board));
            move || run_control.publish_board(|paused| *board.lock().unwrap() = paused)
        });

        pause(&run_control, &board);

        start.join().unwrap();
        assert!(*board.lock().unwrap() && run_control.is_paused());
    });
}

#[test]
fn a_suspend_beside_a_pause_leaves_the_vm_paused() {
    check(|| {
        let (run_control, board) = (run_control(1), Board::default());
        let vcpu = vcpu(&run_control, 0, || ());
        let suspend = thread::spawn({
            let run_control = Arc::clone(&run_control);
            move || run_control.suspend(|| assert!(run_control.is_paused()))
        });

        pause(&run_control, &board);

        suspend.join().unwrap();
        assert!(*board.lock().unwrap() && run_control.is_paused());
        run_control.finish("reset");
        vcpu.join().unwrap();
    });
}
