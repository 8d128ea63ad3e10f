// SPDX-License-Identifier: GPL-2.0-only OR ISC

//! The host's clock against the guest's.

use super::register::{self, Registers};

/// The host's wall clock, to the microsecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostTime {
    /// Seconds since 1970-01-01 00:00 UTC. The device has 32 bits of them: up to the year 2106.
    pub seconds: u32,
    /// Microseconds of the second, 0 to 999,999.
    pub micros: u32,
}

impl HostTime {
    /// 2026-01-01 00:00 UTC in seconds since 1970: before that this driver did not exist. A host
    /// that tells an earlier time has a clock that is not set.
    const EARLIEST: u32 = 1_767_225_600;

    /// Reads it from a device that is known to have it, with what `now` says just before and just
    /// after the access that latches it. Nothing is written to the device, which may be another's.
    ///
    /// `None` from a device that answers nonsense, or all ones to the first reading and something
    /// to the second: one that has just come. `None` as well from a host whose clock is not set,
    /// see [`HostTime::is_plausible`].
    pub fn read<T>(registers: &impl Registers, mut now: impl FnMut() -> T) -> Option<(T, Self, T)> {
        let before = now();
        let seconds = registers.read(register::SECONDS);
        let after = now();
        let micros = registers.read(register::MICROS);
        let time = Self { seconds, micros };
        let possible = seconds != u32::MAX && micros < 1_000_000 && time.is_plausible();
        possible.then_some((before, time, after))
    }

    /// Returns whether the host's clock can be set at all: it shows 2026 or later.
    pub const fn is_plausible(self) -> bool {
        self.seconds >= Self::EARLIEST
    }

    /// Nanoseconds since 1970-01-01 00:00 UTC, at most 4.3 × 10¹⁸.
    pub const fn nanos(self) -> i64 {
        self.seconds as i64 * 1_000_000_000 + self.micros as i64 * 1_000
    }
}

/// One reading of the host's clock between two of a clock of the guest's that means the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    before: i64,
    host: HostTime,
    after: i64,
}

impl Comparison {
    /// From what [`host_time_between`](super::Driver::host_time_between) gives, with the guest's
    /// clock in nanoseconds since 1970. `None` if that clock was set back between the two readings.
    pub const fn new((before, host, after): (i64, HostTime, i64)) -> Option<Self> {
        if after < before {
            return None;
        }
        Some(Self {
            before,
            host,
            after,
        })
    }

    /// When the host answered, by the guest's clock.
    pub const fn at(self) -> i64 {
        self.before.saturating_add(self.width() / 2)
    }

    /// Guest minus host in nanoseconds: positive if the guest is ahead.
    ///
    /// The way to the host and back takes a few microseconds; the host is taken to have answered in
    /// the middle.
    pub const fn offset(self) -> i64 {
        self.at().saturating_sub(self.host.nanos())
    }

    /// By how many nanoseconds [`Comparison::offset`] can be wrong at most, either way.
    pub const fn error(self) -> i64 {
        // The host's microseconds are cut off, not rounded.
        (self.width() / 2).saturating_add(1_000)
    }

    /// Returns whether the guest's clock is as near to the host's as `tolerance` nanoseconds, or as
    /// can be told.
    pub const fn is_within(self, tolerance: i64) -> bool {
        let error = self.error();
        let allowed = if tolerance > error { tolerance } else { error };
        self.offset().saturating_abs() <= allowed
    }

    /// The one that knows best: that between the two closest readings.
    pub fn best(comparisons: impl IntoIterator<Item = Self>) -> Option<Self> {
        comparisons
            .into_iter()
            .min_by_key(|comparison| comparison.width())
    }

    const fn width(self) -> i64 {
        self.after.saturating_sub(self.before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: HostTime = HostTime {
        seconds: 1_795_348_512,
        micros: 505_915,
    };

    /// A device that was not there when the seconds were read.
    struct JustCome;

    impl Registers for JustCome {
        fn read(&self, offset: u16) -> u32 {
            if offset == register::MICROS {
                505_915
            } else {
                u32::MAX
            }
        }

        fn write(&self, _: u16, _: u32) {}
    }

    #[test]
    fn a_device_that_has_just_come_tells_no_time() {
        assert_eq!(HostTime::read(&JustCome, || ()), None);
    }

    /// A device whose host has been up for a minute, and has not set its clock.
    struct Unset;

    impl Registers for Unset {
        fn read(&self, _: u16) -> u32 {
            60
        }

        fn write(&self, _: u16, _: u32) {}
    }

    #[test]
    fn a_host_whose_clock_is_not_set_tells_no_time() {
        assert_eq!(HostTime::read(&Unset, || ()), None);
    }

    #[test]
    fn a_clock_is_within_the_tolerance_or_the_error() {
        let host = HOST.nanos();
        let comparison = Comparison::new((host + 9_000, HOST, host + 11_000)).unwrap();
        assert!(comparison.is_within(10_000) && !comparison.is_within(9_999));
        let wide = Comparison::new((host, HOST, host + 20_000)).unwrap();
        assert!(wide.is_within(0));
    }

    #[test]
    fn the_host_answers_in_the_middle() {
        let host = HOST.nanos();
        assert_eq!(host, 1_795_348_512_505_915_000);
        let comparison = Comparison::new((host - 10_000, HOST, host + 30_000)).unwrap();
        assert_eq!((comparison.offset(), comparison.error()), (10_000, 21_000));
        assert_eq!(Comparison::new((1, HOST, 0)), None);
    }

    #[test]
    fn the_closest_readings_know_best() {
        let close = Comparison::new((5, HOST, 8)).unwrap();
        let wide = Comparison::new((0, HOST, 100)).unwrap();
        assert_eq!(Comparison::best([wide, close, wide]), Some(close));
        assert_eq!(Comparison::best([]), None);
    }

    proptest! {
        /// The true offset is never further away than the error says, wherever in between the host
        /// answered.
        #[test]
        fn the_error_is_a_bound(
            offset in -10_i64.pow(15)..10_i64.pow(15),
            out in 0..10_i64.pow(9),
            back in 0..10_i64.pow(9),
        ) {
            let latched = HOST.nanos() + 999;
            let comparison =
                Comparison::new((latched + offset - out, HOST, latched + offset + back)).unwrap();
            prop_assert!((comparison.offset() - offset).abs() <= comparison.error());
        }

        #[test]
        fn no_reading_overflows(before: i64, seconds: u32, micros in 0u32..1_000_000, after: i64) {
            let host = HostTime { seconds, micros };
            if let Some(comparison) = Comparison::new((before, host, after)) {
                let _ = comparison.offset();
                prop_assert!(comparison.error() >= 1_000);
            }
        }
    }
}
