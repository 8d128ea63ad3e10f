// SPDX-License-Identifier: GPL-2.0-only OR ISC

//! The slow follower: whether the guest's clock is to be stepped to the host's without the host
//! asking for it.
//!
//! vmd sends SYNCRTC when the host's clock has jumped forward by more than 5 s. A host whose clock
//! is stepped by less, or backwards, says nothing, and the guest's clock stays wrong by as much. A
//! guest that follows compares the clocks every so many seconds, and steps its own when it is off
//! by more than [`STEP`].
//!
//! A clock that an NTP daemon steers is left alone, see [`NtpState::is_steered`].

use super::Comparison;

/// The shortest interval between two comparisons, in seconds. OpenBSD's own driver compares as
/// often.
pub const MIN_INTERVAL: u32 = 15;

/// The smallest difference of the clocks that is corrected, in nanoseconds: 128 ms, from which on
/// ntpd steps a clock as well.
///
/// The host's NTP daemon corrects the rate of the host's clock, not of its TSC, by which the
/// guest's clock runs: the clocks drift apart by some 10 to 50 ppm. A smaller value would have the
/// clock stepped more often than every hour for that alone.
pub const STEP: i64 = 128_000_000;

/// Returns the interval between two comparisons in seconds, for one that was asked for; `None`
/// (from 0) for never.
pub const fn interval(asked: u32) -> Option<u32> {
    match asked {
        0 => None,
        1..=MIN_INTERVAL => Some(MIN_INTERVAL),
        _ => Some(asked),
    }
}

/// The state of the kernel's clock discipline, as adjtimex(2) reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NtpState {
    /// The status bits `STA_…`.
    pub status: u32,
    /// The correction of the clock's rate, in units of 2⁻¹⁶ ppm.
    pub frequency: i64,
    /// The length of a tick of user space in microseconds.
    pub tick: i64,
}

impl NtpState {
    /// The state after boot: nothing has touched the clock.
    pub const UNTOUCHED: Self = Self {
        status: Self::UNSYNC,
        frequency: 0,
        tick: Self::NOMINAL_TICK,
    };

    /// `STA_UNSYNC`: no daemon says that the clock is right.
    const UNSYNC: u32 = 0x40;
    /// `STA_PLL`, `STA_PPSFREQ`, `STA_PPSTIME` and `STA_FLL`: a loop of the kernel's steers the
    /// clock.
    const LOOPS: u32 = 0x0f;
    /// 1 s / `USER_HZ`, which is 100 on the machines that vmd emulates.
    const NOMINAL_TICK: i64 = 10_000;

    /// Returns whether an NTP daemon steers the clock.
    ///
    /// `STA_UNSYNC` is clear while a daemon says that the clock is right, and set again 9 hours
    /// after it has said so last. Some daemons never clear it (chronyd without `rtcsync`), but all
    /// of them change the clock's rate or switch a loop on. That outlives the daemon: a guest that
    /// is to follow after one has run has to be booted again, or to have `adjtimex --status 64
    /// --frequency 0 --tick 10000` run.
    pub const fn is_steered(self) -> bool {
        self.status & Self::UNSYNC == 0
            || self.status & Self::LOOPS != 0
            || self.frequency != 0
            || self.tick != Self::NOMINAL_TICK
    }
}

/// Returns whether the clock is to be set, given how it compares with the host's: it is off by more
/// than [`STEP`] for sure.
pub const fn is_due(comparison: Comparison) -> bool {
    comparison
        .offset()
        .saturating_abs()
        .saturating_sub(comparison.error())
        > STEP
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::HostTime;

    const HOST: HostTime = HostTime {
        seconds: 1_795_348_512,
        micros: 0,
    };

    fn off_by(offset: i64, width: i64) -> Comparison {
        let now = HOST.nanos() + offset;
        Comparison::new((now - width / 2, HOST, now + width / 2)).unwrap()
    }

    #[test]
    fn the_host_is_asked_every_15_s_at_most_and_never_by_default() {
        assert_eq!(interval(0), None);
        assert_eq!(
            [1, 15, 16, 3600].map(interval),
            [15, 15, 16, 3600].map(Some)
        );
    }

    #[test]
    fn what_the_host_does_not_tell_is_corrected() {
        for seconds in [-50, -3, 3, 50] {
            assert!(is_due(off_by(seconds * 1_000_000_000, 50_000)), "{seconds}");
        }
        assert!(is_due(off_by(500_000_000, 50_000)));
    }

    #[test]
    fn small_and_doubtful_differences_are_left() {
        assert!(!is_due(off_by(127_000_000, 50_000)));
        assert!(!is_due(off_by(-127_000_000, 50_000)));
        assert!(!is_due(off_by(300_000_000, 400_000_000)));
    }

    #[test]
    fn a_clock_that_nothing_has_touched_is_not_steered() {
        assert!(!NtpState::UNTOUCHED.is_steered());
    }

    #[test]
    fn each_trace_of_a_daemon_counts() {
        // systemd-timesyncd, chronyd with `rtcsync`, ntpd; chronyd without; adjtimex(8).
        for (status, frequency, tick) in [
            (0, 0, 10_000),
            (0x2001, 0, 10_000),
            (0x41, 0, 10_000),
            (0x40, -1, 10_000),
            (0x40, 0, 10_001),
        ] {
            let state = NtpState {
                status,
                frequency,
                tick,
            };
            assert!(state.is_steered(), "{state:?}");
        }
    }

    proptest! {
        /// A clock that is right is never set, however bad the comparison.
        #[test]
        fn a_clock_that_is_right_is_left(
            latched in 0..10_i64.pow(9),
            out in 0..10_i64.pow(10),
            back in 0..10_i64.pow(10),
        ) {
            let now = HOST.nanos() + latched % 1_000;
            let comparison = Comparison::new((now - out, HOST, now + back)).unwrap();
            prop_assert!(!is_due(comparison));
        }
    }
}
