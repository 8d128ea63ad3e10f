//! The end of a VM: its exit report, and what follows if it does not end when it is ordered to.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vmm_control::{Answer, ExitReport};

use crate::exit_status::failure;

/// The end of a VM, awaited by any number of threads.
#[derive(Default)]
pub(crate) struct Ending {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    report: Option<ExitReport>,
    /// When the VM is given up: set by the first order to end by force.
    limit: Option<Instant>,
    /// The report is [`Ending::force`]'s: the VM has not ended.
    given_up: bool,
}

impl Ending {
    /// Sets the exit report, unless there is one.
    pub(crate) fn set(&self, report: ExitReport) {
        self.state.lock().report.get_or_insert(report);
        self.ended.notify_all();
    }

    /// The exit report, if the VM has ended or was given up.
    pub(crate) fn get(&self) -> Option<ExitReport> {
        self.state.lock().report.clone()
    }

    /// Blocks until the VM has ended or was given up.
    pub(crate) fn wait(&self) -> ExitReport {
        let mut state = self.state.lock();
        loop {
            if let Some(report) = &state.report {
                return report.clone();
            }
            self.ended.wait(&mut state);
        }
    }

    /// Blocks until the VM, which was ordered to end by force, has ended. If it has not `patience`
    /// after the first such order, it is given up: the exit report becomes a failure, and so does
    /// the answer to this and every later order.
    pub(crate) fn force(&self, patience: Duration) -> Result<Answer, String> {
        let mut state = self.state.lock();
        let limit = *state.limit.get_or_insert_with(|| Instant::now() + patience);
        while state.report.is_none() {
            if self.ended.wait_until(&mut state, limit).timed_out() && state.report.is_none() {
                let text = format!(
                    "the guest did not end within {} s of the order to end it by force: its VM is given up",
                    patience.as_secs()
                );
                let help =
                    "the VM's threads may wait for a disk or a network of the host that does not answer";
                state.report = Some(failure(text, Some(help.to_owned())));
                state.given_up = true;
                self.ended.notify_all();
            }
        }
        match &state.report {
            Some(report) if state.given_up => Err(report.text.clone()),
            _ => Ok(Answer::Done),
        }
    }

    /// Whether the VM was ordered to end by force.
    pub(crate) fn forced(&self) -> bool {
        self.state.lock().limit.is_some()
    }

    /// Whether the VM was given up: its threads may still run.
    pub(crate) fn given_up(&self) -> bool {
        self.state.lock().given_up
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::FAILED;

    #[test]
    fn a_vm_that_does_not_end_is_given_up_and_its_waiters_are_answered() {
        let ending = Ending::default();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| ending.wait());
            let answer = ending.force(Duration::ZERO).unwrap_err();
            assert!(answer.contains("did not end"), "{answer}");
            assert_eq!(waiter.join().unwrap().status, FAILED);
        });
        ending.set(failure("late".to_owned(), None));
        assert!(ending.given_up() && ending.force(Duration::MAX / 4).is_err());
        assert_ne!(ending.get().unwrap().text, "late", "the first report counts");
    }

    #[test]
    fn an_order_is_answered_when_the_vm_has_ended() {
        let ending = Ending::default();
        thread::scope(|scope| {
            let order = scope.spawn(|| ending.force(Duration::from_hours(1)));
            while !ending.forced() {
                thread::yield_now();
            }
            assert_eq!(ending.get(), None);
            ending.set(failure("killed".to_owned(), None));
            assert_eq!(order.join().unwrap(), Ok(Answer::Done));
        });
        assert!(!ending.given_up());
    }
}
