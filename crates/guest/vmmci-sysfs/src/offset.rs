//! How far the guest's clock is from the host's.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use vmmci_protocol::{Comparison, HostTime};

const NANOS_PER_SEC: i64 = 1_000_000_000;

/// The guest's clock: nanoseconds since 1970.
pub fn realtime() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * NANOS_PER_SEC + now.tv_nsec
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
    let readings = std::iter::repeat_with(read).take(times).flatten();
    let possible = readings.filter(|(_, host, _)| host.is_plausible());
    let best = Comparison::best(possible.filter_map(Comparison::new))?;
    let nanos = best.offset().checked_neg()?;
    Some(Offset { nanos, uncertainty: best.error(), at: best.at() })
}

/// The clock's offset in words.
pub fn offset_in_words(offset: &Offset) -> String {
    let direction = if offset.nanos >= 0 { "behind" } else { "ahead of" };
    let (distance, sure) = (show(offset.nanos.abs()), show(offset.uncertainty));
    format!("{} {direction} the host, to {}", &distance[1..], &sure[1..])
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
    use super::*;

    const NOW: u32 = 1_795_348_512;

    fn measured(readings: &[(i64, u32, i64)]) -> Option<Offset> {
        let mut readings = readings.iter();
        let times = readings.len();
        let next = || {
            readings.next().map(|&(before, seconds, after)| (before, HostTime { seconds, micros: 0 }, after))
        };
        measure(next, times)
    }

    #[test]
    fn the_surest_comparison_counts_and_a_guest_behind_is_positive() {
        let start = i64::from(NOW) * NANOS_PER_SEC;
        let offset = measured(&[
            (start, NOW + 9, start + 900_000),
            (start, NOW + 2, start + 80_000),
            (start, NOW + 9, start + 90_000),
        ]);
        let nanos = 2 * NANOS_PER_SEC - 40_000;
        assert_eq!(offset, Some(Offset { nanos, uncertainty: 41_000, at: start + 40_000 }));
    }

    #[test]
    fn times_that_cannot_be_are_none() {
        assert_eq!(measured(&[(0, 0, 10)]), None, "a host without a clock");
        assert_eq!(measured(&[(20, NOW, 10)]), None, "the guest's clock was stepped in between");
        assert_eq!(measured(&[]), None);
        assert!(measured(&[(0, NOW, 10)]).is_some(), "the guest's clock may well be wrong");
    }

    #[test]
    fn lengths_are_shown_in_the_unit_that_fits() {
        assert_eq!(show(10_800_000_000_123), "+10800.000 s");
        assert_eq!(show(-250_000), "-250.0 µs");
        assert_eq!(show(1_500_000), "+1.500 ms");
        assert_eq!(show(0), "+0.0 µs");
    }
}
