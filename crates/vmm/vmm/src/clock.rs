//! The host's clocks as the guest sees them: TSC, monotonic and real time of an OpenBSD host.

use std::{
    num::NonZeroU64,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

use devices::{
    clock::{Clock, NANOS_PER_SEC},
    pvclock::HostClocks,
};
use rustix::time::{ClockId, Timespec, clock_gettime};
use vmd_release::SleepingTsc;

use crate::kvm::tsc::rdtsc;

/// Difference from Linux' clocks above which these clocks follow them, in nanoseconds: the host was
/// suspended, or its clock was set.
const MAX_DRIFT: i64 = NANOS_PER_SEC.cast_signed();

/// The clocks of an OpenBSD host.
///
/// OpenBSD counts time with the TSC, at exactly the rate that vmm tells its guests in CPUID and
/// pvclock (`tsc_frequency`), so that a guest that counts with its TSC agrees with vmd's clocks to
/// the last bit. Linux counts with another rate, rounded to kHz and adjusted by NTP. Hence these
/// clocks start at Linux' clocks when the VM is created, count the TSC, and follow Linux' only when
/// they differ by more than a second. Where the TSC's rate is unknown, they are Linux' clocks.
///
/// [`SystemClock::suspend`] simulates a suspend of the host: both clocks jump over it, as OpenBSD's
/// CLOCK_REALTIME and CLOCK_MONOTONIC do on resume (kern_tc.c, `tc_setclock`). What the TSC does
/// depends on the computer ([`SleepingTsc`]). Where it does not count on, a guest that keeps time
/// by it falls behind by the length of the suspend; SYNCRTC exists for that.
#[derive(Debug)]
pub struct SystemClock {
    counter: Option<TscClock>,
    /// Length of all suspends, in nanoseconds.
    suspended: AtomicU64,
    /// TSC offset of guests: guest − host, in ticks modulo 2^64.
    tsc_offset: AtomicU64,
}

impl SystemClock {
    /// Clocks that count a TSC of `tsc_hz`.
    ///
    /// With `trusted` they follow Linux' clocks when these jump. A helper VM's clocks are not
    /// trusted, for its kernel only estimates the TSC's rate.
    pub fn new(tsc_hz: Option<NonZeroU64>, trusted: bool) -> Self {
        let counter = tsc_hz.map(|hz| TscClock::new(hz, trusted, ClockReading::now()));
        Self { counter, suspended: AtomicU64::new(0), tsc_offset: AtomicU64::new(0) }
    }

    /// Moves both clocks forward by `nanos` nanoseconds, and the TSC as `tsc` says. A TSC of
    /// unknown rate stands still.
    pub fn suspend(&self, nanos: u64, tsc: SleepingTsc) {
        self.suspended.fetch_add(nanos, Ordering::SeqCst);
        match tsc {
            SleepingTsc::Stands => {}
            SleepingTsc::Runs => {
                let ticks = self.counter.as_ref().map_or(0, |counter| counter.ticks(nanos));
                self.tsc_offset.fetch_add(ticks, Ordering::SeqCst);
            }
            SleepingTsc::Resets => self.tsc_offset.store(rdtsc().wrapping_neg(), Ordering::SeqCst),
        }
    }

    /// Length of all suspends, in nanoseconds.
    pub fn suspended(&self) -> u64 {
        self.suspended.load(Ordering::SeqCst)
    }

    /// TSC offset of guests: guest − host, in ticks modulo 2^64.
    pub fn tsc_offset(&self) -> u64 {
        self.tsc_offset.load(Ordering::SeqCst)
    }

    /// TSC and both clocks at one moment.
    pub fn now(&self) -> HostClocks {
        let ClockReading { tsc, monotonic, realtime } = match &self.counter {
            None => ClockReading::now(),
            Some(counter) => {
                if counter.trusted {
                    counter.follow(ClockReading::now(), rdtsc());
                }
                counter.at(rdtsc())
            }
        };
        let suspended = self.suspended();
        let tsc = tsc.wrapping_add(self.tsc_offset());
        HostClocks {
            tsc,
            monotonic: monotonic.wrapping_add(suspended),
            realtime: realtime.wrapping_add(suspended),
        }
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> u64 {
        self.now().monotonic
    }

    fn realtime(&self) -> u64 {
        self.now().realtime
    }
}

/// The TSC and Linux' clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct ClockReading {
    tsc: u64,
    /// CLOCK_BOOTTIME in nanoseconds, which includes suspends, as OpenBSD's CLOCK_MONOTONIC does.
    monotonic: u64,
    /// CLOCK_REALTIME in nanoseconds since 1970.
    realtime: u64,
}

impl ClockReading {
    fn now() -> Self {
        let read = |id| {
            let Timespec { tv_sec, tv_nsec } = clock_gettime(id);
            tv_sec.cast_unsigned().wrapping_mul(NANOS_PER_SEC).wrapping_add(tv_nsec.cast_unsigned())
        };
        Self { tsc: rdtsc(), monotonic: read(ClockId::Boottime), realtime: read(ClockId::Realtime) }
    }
}

/// Clocks that count the TSC.
#[derive(Debug)]
struct TscClock {
    hz: NonZeroU64,
    /// Nanoseconds per tick, with [`TscClock::POINT`] bits after the point.
    scale: i128,
    /// Where counting started.
    start: ClockReading,
    trusted: bool,
    /// Corrections from following Linux' clocks, in nanoseconds: clock − TSC count.
    monotonic_correction: AtomicI64,
    realtime_correction: AtomicI64,
}

impl TscClock {
    /// Fraction bits of `scale`. Its rounding error adds up to less than a nanosecond in a year.
    const POINT: u32 = 60;

    fn new(hz: NonZeroU64, trusted: bool, start: ClockReading) -> Self {
        let scale = (u128::from(NANOS_PER_SEC) << Self::POINT) / u128::from(hz.get());
        Self {
            hz,
            scale: scale.cast_signed(),
            start,
            trusted,
            monotonic_correction: AtomicI64::new(0),
            realtime_correction: AtomicI64::new(0),
        }
    }

    /// Ticks in `nanos` nanoseconds.
    fn ticks(&self, nanos: u64) -> u64 {
        (u128::from(nanos) * u128::from(self.hz.get()) / u128::from(NANOS_PER_SEC)) as u64
    }

    fn at(&self, tsc: u64) -> ClockReading {
        // Signed, for a TSC may restart at 0 on resume.
        let ticks = i128::from(tsc.wrapping_sub(self.start.tsc).cast_signed());
        let nanos = ((ticks * self.scale) >> Self::POINT) as i64;
        let monotonic = nanos.wrapping_add(self.monotonic_correction.load(Ordering::Relaxed));
        let realtime = nanos.wrapping_add(self.realtime_correction.load(Ordering::Relaxed));
        ClockReading {
            tsc,
            monotonic: self.start.monotonic.wrapping_add_signed(monotonic),
            realtime: self.start.realtime.wrapping_add_signed(realtime),
        }
    }

    /// Corrects each clock that differs from Linux' by more than [`MAX_DRIFT`]; the monotonic clock
    /// only forward.
    ///
    /// `end` is the TSC after the reading. A reading that took longer than half of that is ignored:
    /// the thread was preempted in between.
    fn follow(&self, host: ClockReading, end: u64) {
        let corrections = [
            self.monotonic_correction.load(Ordering::Relaxed),
            self.realtime_correction.load(Ordering::Relaxed),
        ];
        let ours = self.at(host.tsc);
        let width = self.at(end).monotonic.wrapping_sub(ours.monotonic).cast_signed();
        if !(0..MAX_DRIFT / 2).contains(&width) {
            return;
        }
        // Another thread may have been faster; its correction is as good.
        let add = |to: &AtomicI64, old: i64, more: i64| {
            let _ = to.compare_exchange(old, old.wrapping_add(more), Ordering::Relaxed, Ordering::Relaxed);
        };
        let monotonic = host.monotonic.wrapping_sub(ours.monotonic).cast_signed();
        if monotonic > MAX_DRIFT {
            add(&self.monotonic_correction, corrections[0], monotonic);
        }
        let realtime = host.realtime.wrapping_sub(ours.realtime).cast_signed();
        if realtime.unsigned_abs() > MAX_DRIFT.unsigned_abs() {
            add(&self.realtime_correction, corrections[1], realtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 2_592_000_123;
    const START: ClockReading = ClockReading {
        tsc: u64::MAX - 5,
        monotonic: 7 * NANOS_PER_SEC,
        realtime: 1_795_348_512 * NANOS_PER_SEC,
    };

    fn counter() -> TscClock {
        TscClock::new(NonZeroU64::new(HZ).unwrap(), true, START)
    }

    fn after(seconds: u64) -> u64 {
        START.tsc.wrapping_add(HZ * seconds)
    }

    #[test]
    fn a_year_of_ticks_at_the_announced_rate_is_a_year() {
        const YEAR: u64 = 365 * 86_400;
        let counter = counter();
        assert_eq!(counter.at(START.tsc).monotonic, START.monotonic);
        let later = counter.at(after(YEAR));
        assert!((later.monotonic - START.monotonic).abs_diff(YEAR * NANOS_PER_SEC) <= 1, "{later:?}");
        assert_eq!(later.realtime - START.realtime, later.monotonic - START.monotonic);
    }

    #[test]
    fn a_small_drift_of_the_hosts_clock_is_not_followed() {
        let counter = counter();
        let host = ClockReading {
            tsc: after(1000),
            monotonic: START.monotonic + 1_000_020_000_000,
            realtime: START.realtime + 999_500_000_000,
        };
        let before = counter.at(host.tsc);
        counter.follow(host, host.tsc.wrapping_add(1000));
        let now = counter.at(host.tsc);
        assert_eq!((now.monotonic, now.realtime), (before.monotonic, before.realtime));
    }

    #[test]
    fn both_clocks_follow_a_host_that_was_suspended_and_lost_its_tsc() {
        let counter = counter();
        let host = ClockReading {
            tsc: START.tsc - HZ,
            monotonic: START.monotonic + 3_600 * NANOS_PER_SEC,
            realtime: START.realtime + 3_600 * NANOS_PER_SEC,
        };
        counter.follow(host, host.tsc.wrapping_add(1000));
        let now = counter.at(host.tsc);
        assert_eq!((now.monotonic, now.realtime), (host.monotonic, host.realtime));
        let later = counter.at(host.tsc + HZ).monotonic - host.monotonic;
        assert!(later.abs_diff(NANOS_PER_SEC) <= 1, "{later}");
    }

    #[test]
    fn only_realtime_follows_a_clock_that_is_set_back() {
        let counter = counter();
        let ours = counter.at(after(10));
        counter.follow(
            ClockReading { realtime: ours.realtime - 60 * NANOS_PER_SEC, monotonic: 0, ..ours },
            after(10),
        );
        let now = counter.at(after(10));
        assert_eq!((now.monotonic, now.realtime), (ours.monotonic, ours.realtime - 60 * NANOS_PER_SEC));
    }

    #[test]
    fn a_reading_that_took_long_is_ignored() {
        let counter = counter();
        let ours = counter.at(after(10));
        counter.follow(ClockReading { realtime: ours.realtime + 5 * NANOS_PER_SEC, ..ours }, after(15));
        assert_eq!(counter.at(after(10)).realtime, ours.realtime);
    }

    #[test]
    fn a_suspend_moves_both_clocks() {
        for hz in [None, NonZeroU64::new(HZ)] {
            let clock = SystemClock::new(hz, false);
            let (monotonic, realtime) = (clock.monotonic(), clock.realtime());
            clock.suspend(3_600 * NANOS_PER_SEC, SleepingTsc::Stands);
            assert!(clock.monotonic() >= monotonic + 3_600 * NANOS_PER_SEC);
            assert!(clock.realtime() >= realtime + 3_600 * NANOS_PER_SEC);
            assert_eq!(clock.tsc_offset(), 0);
        }
    }

    #[test]
    fn a_tsc_may_count_on_through_a_suspend() {
        let clock = SystemClock::new(NonZeroU64::new(HZ), false);
        clock.suspend(3_600 * NANOS_PER_SEC, SleepingTsc::Runs);
        assert_eq!(clock.tsc_offset(), 3_600 * HZ);
    }

    #[test]
    fn a_tsc_may_restart_after_a_suspend_and_the_clocks_do_not() {
        let clock = SystemClock::new(NonZeroU64::new(HZ), false);
        let before = clock.now();
        clock.suspend(3_600 * NANOS_PER_SEC, SleepingTsc::Resets);
        let after = clock.now();
        assert!(after.tsc < before.tsc, "{before:?} {after:?}");
        assert!(after.monotonic >= before.monotonic + 3_600 * NANOS_PER_SEC);
    }

    #[test]
    fn realtime_is_this_century() {
        assert!(SystemClock::new(None, true).realtime() > 1_700_000_000 * NANOS_PER_SEC);
    }
}
