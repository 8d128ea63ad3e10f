// SPDX-License-Identifier: GPL-2.0-only OR ISC

//! The difference of the guest's clock and the host's, with one sign everywhere.

use super::Comparison;

/// Guest − host at one moment, in nanoseconds: positive if the guest's clock is ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestMinusHost(i64);

impl GuestMinusHost {
    /// A difference of `nanos` nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// The difference in nanoseconds, guest − host.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Nanoseconds by which the guest's clock has to be set forward to show the host's time: host −
    /// guest, at least −[`i64::MAX`].
    pub const fn correction(self) -> i64 {
        self.0.saturating_neg()
    }

    /// How far the clocks are apart, in nanoseconds, 0 or more.
    pub const fn distance(self) -> i64 {
        self.0.saturating_abs()
    }
}

impl Comparison {
    /// The difference of the clocks. The host is taken to have answered in the middle between the
    /// guest's two readings.
    pub const fn guest_minus_host(self) -> GuestMinusHost {
        GuestMinusHost(self.offset())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_ahead_is_positive_and_corrected_backwards() {
        let ahead = GuestMinusHost::from_nanos(5);
        assert_eq!(
            (ahead.nanos(), ahead.correction(), ahead.distance()),
            (5, -5, 5)
        );
    }
}
