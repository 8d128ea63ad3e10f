//! The host's clocks, as the guest is to see them.

use std::{
    num::NonZeroU64,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

use devices::{
    clock::{Clock, NANOS_PER_SEC},
    pvclock::HostTime,
};
use rustix::time::{ClockId, Timespec, clock_gettime};
use vmd_release::SleepingTsc;

use crate::kvm::tsc::rdtsc;

/// How far the clocks may be from the host's own before these are believed, in nanoseconds: the host was asleep, or
/// somebody has set its clock.
const ADRIFT: i64 = NANOS_PER_SEC.cast_signed();

/// The clocks of the host that vmd would run on.
///
/// OpenBSD counts time with the TSC, at the very rate that vmm tells its guests in CPUID and pvclock (`tsc_frequency`),
/// so that a guest that counts with its TSC agrees with vmd's clocks to the last bit. The rate that Linux counts with
/// is another one, rounded to kHz and bent by NTP. Hence these clocks count the TSC from where Linux' clocks are when
/// the machine is made, and take no notice of Linux' until they are a second apart. Where the TSC's rate is not known,
/// they are Linux'.
///
/// A laptop that sleeps is simulated by [`SystemClock::nap`]: both clocks jump over it, as OpenBSD's CLOCK_REALTIME
/// and CLOCK_MONOTONIC do on resume (kern_tc.c, `tc_setclock`). What becomes of the TSC depends on the computer
/// ([`SleepingTsc`]). Where it does not count on, a guest that keeps time by it falls behind by the nap, which is what
/// SYNCRTC is for.
#[derive(Debug)]
pub struct SystemClock {
    counter: Option<Counter>,
    napped: AtomicU64,
    /// How far the TSC that guests see is ahead of this host's, after naps.
    tsc_ahead: AtomicU64,
}

impl SystemClock {
    /// Clocks that count a TSC of `tsc_hz`.
    ///
    /// With `trusted` they follow when the host's own clocks jump. Not to be trusted are those of a helper VM, whose
    /// kernel has but guessed the TSC's rate.
    pub fn new(tsc_hz: Option<NonZeroU64>, trusted: bool) -> Self {
        let counter = tsc_hz.map(|hz| Counter::new(hz, trusted, Reading::now()));
        Self { counter, napped: AtomicU64::new(0), tsc_ahead: AtomicU64::new(0) }
    }

    /// Lets both clocks jump forward by `nanos`, and the TSC do what it does meanwhile. A TSC whose rate is not known
    /// cannot count on, and stands.
    pub fn nap(&self, nanos: u64, tsc: SleepingTsc) {
        self.napped.fetch_add(nanos, Ordering::SeqCst);
        match tsc {
            SleepingTsc::Stands => {}
            SleepingTsc::Runs => {
                let ticks = self.counter.as_ref().map_or(0, |counter| counter.ticks(nanos));
                self.tsc_ahead.fetch_add(ticks, Ordering::SeqCst);
            }
            SleepingTsc::Resets => self.tsc_ahead.store(rdtsc().wrapping_neg(), Ordering::SeqCst),
        }
    }

    /// How far the TSC that guests see is ahead of this host's, modulo 2^64.
    pub fn tsc_ahead(&self) -> u64 {
        self.tsc_ahead.load(Ordering::SeqCst)
    }

    /// How long all naps together took, in nanoseconds.
    pub fn napped(&self) -> u64 {
        self.napped.load(Ordering::SeqCst)
    }

    /// TSC and both clocks at one moment.
    pub fn now(&self) -> HostTime {
        let Reading { tsc, monotonic, realtime } = match &self.counter {
            None => Reading::now(),
            Some(counter) => {
                if counter.trusted {
                    counter.follow(Reading::now(), rdtsc());
                }
                counter.at(rdtsc())
            }
        };
        let napped = self.napped();
        let tsc = tsc.wrapping_add(self.tsc_ahead());
        HostTime { tsc, monotonic: monotonic.wrapping_add(napped), realtime: realtime.wrapping_add(napped) }
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

/// The host's TSC and its own clocks, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Reading {
    tsc: u64,
    /// CLOCK_BOOTTIME, which counts on while the host sleeps, as OpenBSD's CLOCK_MONOTONIC does.
    monotonic: u64,
    realtime: u64,
}

impl Reading {
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
struct Counter {
    hz: NonZeroU64,
    /// Nanoseconds per tick, with [`Counter::POINT`] bits after the point.
    scale: i128,
    start: Reading,
    trusted: bool,
    /// How much later the clocks are than they are by the TSC, in nanoseconds.
    monotonic_ahead: AtomicI64,
    realtime_ahead: AtomicI64,
}

impl Counter {
    /// Rounding `scale` costs less than a nanosecond in a year.
    const POINT: u32 = 60;

    fn new(hz: NonZeroU64, trusted: bool, start: Reading) -> Self {
        let scale = (u128::from(NANOS_PER_SEC) << Self::POINT) / u128::from(hz.get());
        Self {
            hz,
            scale: scale.cast_signed(),
            start,
            trusted,
            monotonic_ahead: AtomicI64::new(0),
            realtime_ahead: AtomicI64::new(0),
        }
    }

    /// The ticks in so many nanoseconds.
    fn ticks(&self, nanos: u64) -> u64 {
        (u128::from(nanos) * u128::from(self.hz.get()) / u128::from(NANOS_PER_SEC)) as u64
    }

    fn at(&self, tsc: u64) -> Reading {
        // Signed, for a TSC may begin anew when the host wakes up.
        let ticks = i128::from(tsc.wrapping_sub(self.start.tsc).cast_signed());
        let nanos = ((ticks * self.scale) >> Self::POINT) as i64;
        let monotonic = nanos.wrapping_add(self.monotonic_ahead.load(Ordering::Relaxed));
        let realtime = nanos.wrapping_add(self.realtime_ahead.load(Ordering::Relaxed));
        Reading {
            tsc,
            monotonic: self.start.monotonic.wrapping_add_signed(monotonic),
            realtime: self.start.realtime.wrapping_add_signed(realtime),
        }
    }

    /// Believes the host's own clocks where they are far from these. CLOCK_MONOTONIC never goes back.
    ///
    /// `end` is the TSC when the reading was complete: one during which this thread was put aside tells nothing.
    fn follow(&self, host: Reading, end: u64) {
        let ahead =
            [self.monotonic_ahead.load(Ordering::Relaxed), self.realtime_ahead.load(Ordering::Relaxed)];
        let ours = self.at(host.tsc);
        let width = self.at(end).monotonic.wrapping_sub(ours.monotonic).cast_signed();
        if !(0..ADRIFT / 2).contains(&width) {
            return;
        }
        // Another thread may have been faster; then its correction is as good.
        let add = |to: &AtomicI64, old: i64, more: i64| {
            let _ = to.compare_exchange(old, old.wrapping_add(more), Ordering::Relaxed, Ordering::Relaxed);
        };
        let monotonic = host.monotonic.wrapping_sub(ours.monotonic).cast_signed();
        if monotonic > ADRIFT {
            add(&self.monotonic_ahead, ahead[0], monotonic);
        }
        let realtime = host.realtime.wrapping_sub(ours.realtime).cast_signed();
        if realtime.unsigned_abs() > ADRIFT.unsigned_abs() {
            add(&self.realtime_ahead, ahead[1], realtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 2_592_000_123;
    const START: Reading =
        Reading { tsc: u64::MAX - 5, monotonic: 7 * NANOS_PER_SEC, realtime: 1_795_348_512 * NANOS_PER_SEC };

    fn counter() -> Counter {
        Counter::new(NonZeroU64::new(HZ).unwrap(), true, START)
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
    fn a_host_whose_clock_is_bent_a_little_is_not_followed() {
        let counter = counter();
        let host = Reading {
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
    fn a_host_that_slept_and_lost_its_tsc_takes_both_clocks_along() {
        let counter = counter();
        let host = Reading {
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
    fn a_clock_that_is_set_back_takes_realtime_along_only() {
        let counter = counter();
        let ours = counter.at(after(10));
        counter.follow(
            Reading { realtime: ours.realtime - 60 * NANOS_PER_SEC, monotonic: 0, ..ours },
            after(10),
        );
        let now = counter.at(after(10));
        assert_eq!((now.monotonic, now.realtime), (ours.monotonic, ours.realtime - 60 * NANOS_PER_SEC));
    }

    #[test]
    fn a_reading_that_took_long_is_not_believed() {
        let counter = counter();
        let ours = counter.at(after(10));
        counter.follow(Reading { realtime: ours.realtime + 5 * NANOS_PER_SEC, ..ours }, after(15));
        assert_eq!(counter.at(after(10)).realtime, ours.realtime);
    }

    #[test]
    fn a_nap_moves_both_clocks() {
        for hz in [None, NonZeroU64::new(HZ)] {
            let clock = SystemClock::new(hz, false);
            let (monotonic, realtime) = (clock.monotonic(), clock.realtime());
            clock.nap(3_600 * NANOS_PER_SEC, SleepingTsc::Stands);
            assert!(clock.monotonic() >= monotonic + 3_600 * NANOS_PER_SEC);
            assert!(clock.realtime() >= realtime + 3_600 * NANOS_PER_SEC);
            assert_eq!(clock.tsc_ahead(), 0);
        }
    }

    #[test]
    fn a_tsc_may_count_on_through_a_nap() {
        let clock = SystemClock::new(NonZeroU64::new(HZ), false);
        clock.nap(3_600 * NANOS_PER_SEC, SleepingTsc::Runs);
        assert_eq!(clock.tsc_ahead(), 3_600 * HZ);
    }

    #[test]
    fn a_tsc_may_begin_anew_after_a_nap_and_the_clocks_do_not() {
        let clock = SystemClock::new(NonZeroU64::new(HZ), false);
        let before = clock.now();
        clock.nap(3_600 * NANOS_PER_SEC, SleepingTsc::Resets);
        let after = clock.now();
        assert!(after.tsc < before.tsc, "{before:?} {after:?}");
        assert!(after.monotonic >= before.monotonic + 3_600 * NANOS_PER_SEC);
    }

    #[test]
    fn realtime_is_this_century() {
        assert!(SystemClock::new(None, true).realtime() > 1_700_000_000 * NANOS_PER_SEC);
    }
}
