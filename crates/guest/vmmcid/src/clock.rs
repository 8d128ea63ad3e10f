//! The guest's clocks.

use std::{io, time::Duration};

use rtime_clock::adjtime::{Timex, clock_adjtime};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use vmmci_protocol::follow::NtpState;

const NANOS_PER_SEC: i64 = 1_000_000_000;

/// The guest's clocks.
pub trait Clock {
    /// Nanoseconds since 1970.
    fn realtime(&self) -> i64;
    /// Sets that clock.
    fn set_realtime(&self, nanos: i64) -> io::Result<()>;
    /// A monotonic clock in nanoseconds.
    fn monotonic(&self) -> Duration;
    /// The state of the clock discipline, which an NTP daemon changes; an error if the kernel does not tell it.
    fn ntp_state(&self) -> io::Result<NtpState>;
}

/// The system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Clock for System {
    fn realtime(&self) -> i64 {
        vmmci_sysfs::realtime()
    }

    fn set_realtime(&self, nanos: i64) -> io::Result<()> {
        let time =
            Timespec { tv_sec: nanos.div_euclid(NANOS_PER_SEC), tv_nsec: nanos.rem_euclid(NANOS_PER_SEC) };
        Ok(clock_settime(ClockId::Realtime, time)?)
    }

    fn monotonic(&self) -> Duration {
        let now = clock_gettime(ClockId::Monotonic);
        Duration::from_secs(now.tv_sec.unsigned_abs()) + Duration::from_nanos(now.tv_nsec.unsigned_abs())
    }

    fn ntp_state(&self) -> io::Result<NtpState> {
        // Without modes the call changes nothing.
        let mut timex = Timex::new();
        clock_adjtime(libc::CLOCK_REALTIME, &mut timex)?;
        Ok(NtpState { status: timex.0.status.cast_unsigned(), frequency: timex.0.freq, tick: timex.0.tick })
    }
}

/// A recurring deadline on the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    period: Duration,
    next: Duration,
}

impl Interval {
    /// A deadline every `period`, the first one at `first`.
    pub fn new(period: Duration, first: Duration) -> Self {
        Self { period, next: first }
    }

    /// Time between two deadlines.
    pub fn period(self) -> Duration {
        self.period
    }

    /// Returns whether the deadline has passed at `now`, and sets the next one. Missed ones are skipped, not replayed.
    pub fn is_due(&mut self, now: Duration) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.period;
        }
        due
    }
}

/// Steps the guest's clock by `nanos` (positive: forward). Returns the time after the step.
pub fn step(clock: &impl Clock, nanos: i64) -> io::Result<i64> {
    let now = clock.realtime().saturating_add(nanos);
    clock.set_realtime(now)?;
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_due_once_however_many_were_missed() {
        let mut interval = Interval::new(Duration::from_secs(16), Duration::from_secs(5));

        let due: Vec<_> = (0..60).filter(|second| interval.is_due(Duration::from_secs(*second))).collect();
        let late = interval.is_due(Duration::from_mins(10));
        let again = interval.is_due(Duration::from_secs(615));

        assert_eq!(due, [5, 21, 37, 53]);
        assert_eq!((late, again), (true, false));
    }

    #[test]
    fn every_process_is_told_the_state_of_the_clock_discipline() {
        let state = System.ntp_state().unwrap();

        // 1 s / USER_HZ, give or take what adjtimex(2) allows.
        assert!((9_000..=11_000).contains(&state.tick), "{state:?}");
    }
}
