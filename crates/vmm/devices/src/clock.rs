//! Time: the host's clocks and the grain of its timers, both injected.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
};

/// Nanoseconds in a second.
pub const NANOS_PER_SEC: u64 = 1_000_000_000;

/// The host's clocks. All times are in nanoseconds.
pub trait Clock: Send + Sync {
    /// CLOCK_MONOTONIC of the host: since it booted, never backwards. OpenBSD adds the time a suspend took to it on
    /// resume (`tc_setclock` in kern_tc.c), so that it jumps forward over a nap.
    fn monotonic(&self) -> u64;
    /// CLOCK_REALTIME of the host: since 1970-01-01 00:00 UTC.
    fn realtime(&self) -> u64;
}

/// A clock that moves only when told to, for tests and replay.
#[derive(Debug, Default)]
pub struct ManualClock {
    monotonic: AtomicU64,
    realtime: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `monotonic` and `realtime`, both in nanoseconds.
    pub const fn new(monotonic: u64, realtime: u64) -> Self {
        Self { monotonic: AtomicU64::new(monotonic), realtime: AtomicU64::new(realtime) }
    }

    /// Lets `nanos` pass on both clocks.
    pub fn advance(&self, nanos: u64) {
        self.monotonic.fetch_add(nanos, Ordering::SeqCst);
        self.realtime.fetch_add(nanos, Ordering::SeqCst);
    }

    /// Sets the realtime clock, as an administrator or a resume does.
    pub fn set_realtime(&self, nanos: u64) {
        self.realtime.store(nanos, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> u64 {
        self.monotonic.load(Ordering::SeqCst)
    }

    fn realtime(&self) -> u64 {
        self.realtime.load(Ordering::SeqCst)
    }
}

/// The grain of the host's timers.
///
/// OpenBSD runs timeouts from its clock interrupt, 100 times a second on amd64. A relative timeout of `d` waits for
/// `d` rounded up to whole ticks plus the rest of the current tick, so a 10 ms timer takes 10 to 20 ms and a shorter
/// one no less (`tsleep_nsec(9)`; `golden/clock/experiment-fixed-count.txt`: counts of 1, 2 and 10 ms all make the
/// guest tick 50 times a second).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTicks {
    tick: u64,
}

impl HostTicks {
    /// A host whose clock interrupts `hz` times a second.
    pub fn new(hz: NonZeroU32) -> Self {
        Self { tick: NANOS_PER_SEC / u64::from(hz.get()) }
    }

    /// When a timeout of `delay` nanoseconds that is set at `now` fires.
    pub const fn fires_at(self, now: u64, delay: u64) -> u64 {
        (now / self.tick + delay.div_ceil(self.tick) + 1) * self.tick
    }
}

impl Default for HostTicks {
    /// 100 Hz, what every amd64 OpenBSD has.
    fn default() -> Self {
        Self { tick: NANOS_PER_SEC / 100 }
    }
}

/// A model that wants to be called at a time.
pub trait Timed {
    /// When [`Timed::expire`] wants to be called, on [`Clock::monotonic`]; `None` for never.
    fn deadline(&self) -> Option<u64>;
    /// Does what is due by now. Calling it early or twice does no harm.
    fn expire(&mut self);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn short_timeouts_of_a_100_hz_host_all_take_two_ticks_from_a_tick() {
        let ticks = HostTicks::default();
        for delay in [1, MS, 2 * MS, 10 * MS] {
            assert_eq!(ticks.fires_at(500 * MS, delay), 520 * MS);
        }
    }

    #[test]
    fn a_timeout_never_fires_early_and_is_at_most_two_ticks_late() {
        let ticks = HostTicks::new(NonZeroU32::new(1000).unwrap());
        for now in (0..5 * MS).step_by(333_333) {
            for delay in (0..5 * MS).step_by(77_777) {
                let late = ticks.fires_at(now, delay) - (now + delay);
                assert!(late <= 2 * MS, "{now} {delay} {late}");
            }
        }
    }
}
