//! The guest's clocks, and how far they are from the host's.

use std::{io, time::Duration};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use serde::{Deserialize, Serialize};
use vmmci::HostTime;

const NANOS_PER_SEC: i64 = 1_000_000_000;
/// Before this nothing of this program ran: 2026-01-01. A host that says so has a clock that is not set.
const TOO_EARLY: i64 = 1_767_225_600 * NANOS_PER_SEC;

/// The guest's clocks.
pub trait Clock {
    /// Nanoseconds since 1970.
    fn realtime(&self) -> i64;
    /// Sets that clock.
    fn set_realtime(&self, nanos: i64) -> io::Result<()>;
    /// A clock that nobody sets.
    fn monotonic(&self) -> Duration;
}

/// The system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Clock for System {
    fn realtime(&self) -> i64 {
        let now = clock_gettime(ClockId::Realtime);
        now.tv_sec * NANOS_PER_SEC + now.tv_nsec
    }

    fn set_realtime(&self, nanos: i64) -> io::Result<()> {
        let time =
            Timespec { tv_sec: nanos.div_euclid(NANOS_PER_SEC), tv_nsec: nanos.rem_euclid(NANOS_PER_SEC) };
        Ok(clock_settime(ClockId::Realtime, time)?)
    }

    fn monotonic(&self) -> Duration {
        let now = clock_gettime(ClockId::Monotonic);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
    }
}

/// How far apart the two clocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offset {
    /// Host − guest in nanoseconds: positive if the guest is behind.
    pub nanos: i64,
    /// By how much that may be wrong either way, in nanoseconds: the host's clock counts microseconds, and when
    /// it was read is known as well only as the access took.
    pub uncertainty: i64,
    /// When it was measured: nanoseconds since 1970 on the guest's clock.
    pub at: i64,
}

/// Compares the clocks so many times and gives the surest result; `None` if the host does not tell the time, or
/// tells one that cannot be. `read` gives the host's time between two of the guest's, as [`HostTime::read`] does.
pub fn measure(read: impl FnMut() -> Option<(i64, HostTime, i64)>, times: usize) -> Option<Offset> {
    std::iter::repeat_with(read)
        .take(times)
        .filter_map(|reading| reading.and_then(|(before, host, after)| compare(before, host, after)))
        .min_by_key(|offset| offset.uncertainty)
}

fn compare(before: i64, host: HostTime, after: i64) -> Option<Offset> {
    // The microseconds are cut off: on average the time is half of one later.
    let host = i64::from(host.seconds) * NANOS_PER_SEC + i64::from(host.micros) * 1000 + 500;
    let took = after.checked_sub(before).filter(|took| *took >= 0)?;
    let at = before + took / 2;
    (host >= TOO_EARLY).then_some(Offset { nanos: host - at, uncertainty: took / 2 + 500, at })
}

/// Sets the guest's clock forward by `nanos`, or back. Returns when that was: what the clock then said.
pub fn step(clock: &impl Clock, nanos: i64) -> io::Result<i64> {
    let now = clock.realtime().saturating_add(nanos);
    clock.set_realtime(now)?;
    Ok(now)
}

/// A length of time with its sign, for people: `+10800.000 s`, `-0.250 ms`.
pub fn show(nanos: i64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let value = nanos as f64;
    match nanos.unsigned_abs() {
        0..1_000_000 => format!("{:+.1} µs", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:+.3} ms", value / 1e6),
        _ => format!("{:+.3} s", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u32 = 1_795_348_512;

    #[test]
    fn the_latching_access_is_taken_to_happen_half_way() {
        let start = i64::from(NOW) * NANOS_PER_SEC;
        let host = HostTime { seconds: NOW + 2, micros: 100 };
        let offset = compare(start, host, start + 80_000).unwrap();
        assert_eq!(
            offset,
            Offset { nanos: 2 * NANOS_PER_SEC + 60_500, uncertainty: 40_500, at: start + 40_000 }
        );
    }

    #[test]
    fn times_that_cannot_be_are_none() {
        let host = |seconds| HostTime { seconds, micros: 0 };
        assert_eq!(compare(0, host(0), 10), None, "a host without a clock");
        assert_eq!(compare(20, host(NOW), 10), None, "the guest's clock was stepped in between");
        assert!(compare(0, host(NOW), 10).is_some(), "the guest's clock may well be wrong");
    }

    #[test]
    fn lengths_are_shown_in_the_unit_that_fits() {
        assert_eq!(show(10_800_000_000_123), "+10800.000 s");
        assert_eq!(show(-250_000), "-250.0 µs");
        assert_eq!(show(1_500_000), "+1.500 ms");
        assert_eq!(show(0), "+0.0 µs");
    }

    proptest! {
        /// Whatever the access takes, what comes out is within its own uncertainty of the truth.
        #[test]
        fn the_uncertainty_holds(
            truth in -5_000_000_000_000i64..5_000_000_000_000, took in 0i64..50_000_000, part in 0.0f64..=1.0,
        ) {
            let before = i64::from(NOW) * NANOS_PER_SEC + 123_456_789;
            #[allow(clippy::cast_precision_loss)]
            let latched = before + (took as f64 * part) as i64 + truth;
            let host = HostTime {
                seconds: u32::try_from(latched / NANOS_PER_SEC).unwrap(),
                micros: u32::try_from(latched % NANOS_PER_SEC / 1000).unwrap(),
            };
            let offset = compare(before, host, before + took).unwrap();
            prop_assert!((offset.nanos - truth).abs() <= offset.uncertainty + 1);
        }
    }
}
