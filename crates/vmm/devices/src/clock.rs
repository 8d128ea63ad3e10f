//! The host's clocks and the resolution of its timers, both injected into the models.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
};

/// Nanoseconds in a second.
pub const NANOS_PER_SEC: u64 = 1_000_000_000;

/// The host's clocks. All times are in nanoseconds.
pub trait Clock: Send + Sync {
    /// The host's CLOCK_MONOTONIC: time since boot, never backwards. On resume OpenBSD adds the
    /// duration of the suspend (`tc_setclock` in kern_tc.c), so the clock jumps forward.
    fn monotonic(&self) -> u64;
    /// The host's CLOCK_REALTIME: time since 1970-01-01 00:00 UTC.
    fn realtime(&self) -> u64;
}

/// A clock that moves only when a test or a replay advances it.
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

    /// Advances both clocks by `nanos`.
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

/// The resolution of the host's timers.
///
/// OpenBSD runs timeouts from its clock interrupt, 100 times a second on amd64. A relative timeout
/// of `d` waits for `d` rounded up to whole ticks plus the rest of the current tick, so a 10 ms
/// timer takes 10 to 20 ms and a shorter timer takes just as long (`tsleep_nsec(9)`;
/// `golden/clock/experiment-fixed-count.txt`: counts of 1, 2 and 10 ms all make the guest tick 50
/// times a second).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTicks {
    tick: u64,
}

impl HostTicks {
    /// The highest rate of a host's clock interrupt in Hz. OpenBSD's is 100, on some platforms 1024.
    pub const MAX_HZ: u32 = 10_000;

    /// A host whose clock interrupt fires `hz` times a second, [`HostTicks::MAX_HZ`] at most.
    pub fn new(hz: NonZeroU32) -> Self {
        Self { tick: NANOS_PER_SEC / u64::from(hz.get().min(Self::MAX_HZ)) }
    }

    /// The time at which a timeout of `delay` nanoseconds set at `now` fires, in nanoseconds on the
    /// same clock as `now`.
    pub const fn fires_at(self, now: u64, delay: u64) -> u64 {
        (now / self.tick + delay.div_ceil(self.tick) + 1) * self.tick
    }
}

impl Default for HostTicks {
    /// 100 Hz, the rate of every amd64 OpenBSD.
    fn default() -> Self {
        Self { tick: NANOS_PER_SEC / 100 }
    }
}

/// A model with a deadline.
pub trait Timed {
    /// The time at which the event loop must call [`Timed::expire`], in nanoseconds on
    /// [`Clock::monotonic`]; `None` for never.
    fn deadline(&self) -> Option<u64>;
    /// Processes everything that is due by now. Calling it early or twice changes nothing.
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
    fn a_tick_is_never_empty() {
        let fastest = HostTicks::new(NonZeroU32::MAX);
        assert_eq!(fastest, HostTicks::new(NonZeroU32::new(HostTicks::MAX_HZ).unwrap()));
        assert_eq!(fastest.fires_at(0, 1), 200_000);
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
