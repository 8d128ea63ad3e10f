//! The difference of the guest's clock and the host's, as it is measured and shown.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use vmmci_protocol::{Comparison, GuestMinusHost, HostTime};

const NANOS_PER_SEC: i64 = 1_000_000_000;

/// The guest's clock: nanoseconds since 1970.
pub fn realtime() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * NANOS_PER_SEC + now.tv_nsec
}

/// A measured difference of the two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offset {
    /// The difference. In JSON, the field `nanos` has the opposite sign: host − guest in nanoseconds.
    #[serde(rename = "nanos", with = "host_minus_guest")]
    pub guest_minus_host: GuestMinusHost,
    /// Largest error of the difference either way, in nanoseconds: the resolution of 1 µs plus half the duration of the
    /// register read.
    pub uncertainty: i64,
    /// Time of the measurement on the guest's clock, in nanoseconds since 1970.
    pub at: i64,
}

impl From<Comparison> for Offset {
    fn from(comparison: Comparison) -> Self {
        Self {
            guest_minus_host: comparison.guest_minus_host(),
            uncertainty: comparison.error(),
            at: comparison.at(),
        }
    }
}

/// Compares the clocks `times` times and returns the result with the smallest error; `None` if the device answers no time
/// or an impossible one. `read` reads the host's time between two of the guest's, as [`HostTime::read`] does.
pub fn compare(read: impl FnMut() -> Option<(i64, HostTime, i64)>, times: usize) -> Option<Comparison> {
    let readings = std::iter::repeat_with(read).take(times).flatten();
    Comparison::best(readings.filter_map(Comparison::new))
}

/// The difference in words: `42.0 µs ahead of the host, to 9.0 µs`.
pub fn offset_in_words(offset: &Offset) -> String {
    let direction = if offset.guest_minus_host.nanos() <= 0 { "behind" } else { "ahead of" };
    let (distance, sure) = (show(offset.guest_minus_host.distance()), show(offset.uncertainty));
    format!("{} {direction} the host, to {}", &distance[1..], &sure[1..])
}

/// JSON's form of the difference: host − guest in nanoseconds.
mod host_minus_guest {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use vmmci_protocol::GuestMinusHost;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(difference: &GuestMinusHost, to: S) -> Result<S::Ok, S::Error> {
        difference.correction().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GuestMinusHost, D::Error> {
        i64::deserialize(from).map(|nanos| GuestMinusHost::from_nanos(nanos.saturating_neg()))
    }
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
        compare(next, times).map(Offset::from)
    }

    #[test]
    fn the_best_comparison_counts_and_a_guest_behind_is_negative() {
        let start = i64::from(NOW) * NANOS_PER_SEC;
        let offset = measured(&[
            (start, NOW + 9, start + 900_000),
            (start, NOW + 2, start + 80_000),
            (start, NOW + 9, start + 90_000),
        ]);
        let nanos = 2 * NANOS_PER_SEC - 40_000;
        let guest_minus_host = GuestMinusHost::from_nanos(-nanos);
        assert_eq!(offset, Some(Offset { guest_minus_host, uncertainty: 41_000, at: start + 40_000 }));
    }

    #[test]
    fn times_that_cannot_be_are_none() {
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

    #[test]
    fn json_has_the_opposite_sign() {
        let guest_minus_host = GuestMinusHost::from_nanos(-42);
        let offset = Offset { guest_minus_host, uncertainty: 9, at: 7 };
        let json = serde_json::to_string(&offset).unwrap();
        assert_eq!(json, r#"{"nanos":42,"uncertainty":9,"at":7}"#);
        assert_eq!(serde_json::from_str::<Offset>(&json).unwrap(), offset);
    }
}
