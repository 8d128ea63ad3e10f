// SPDX-License-Identifier: GPL-2.0

//! The host's clock, and the system clock against it.

use kernel::{
    new_spinlock,
    prelude::*,
    sync::SpinLock,
    time::{
        ntp,
        Delta,
        Instant,
        RealTime, //
    },
};

use crate::{
    io::Registers,
    protocol::{
        follow::NtpState,
        step::{
            self,
            Left, //
        },
        Comparison,
        HostTime, //
    },
};

/// How many times the clocks are compared for one result. Most of what makes a comparison bad, the
/// host doing something else, does not happen twice in a row.
const COMPARISONS: usize = 5;

/// The host's clock.
#[pin_data]
pub(crate) struct HostClock {
    registers: Registers,
    /// Whether the device tells the time. Locked for a reading, because the device latches one time
    /// for all readers: for two port accesses, never for longer. The thread that acknowledges
    /// commands takes the lock too, after it has acknowledged a stop.
    #[pin]
    available: SpinLock<bool>,
}

impl HostClock {
    pub(crate) fn new(registers: Registers) -> impl PinInit<Self> {
        pin_init!(Self {
            registers,
            available <- new_spinlock!(false, "vmmci::HostClock::available"),
        })
    }

    /// Sets whether the device tells the time.
    pub(crate) fn set_available(&self, available: bool) {
        *self.available.lock() = available;
    }

    /// Reads the clock once, with what `now` returns just before and just after the access that
    /// latches the time. `None` if the device tells no plausible time.
    pub(crate) fn read_between<T>(&self, now: impl FnMut() -> T) -> Option<(T, HostTime, T)> {
        let available = self.available.lock();
        if !*available {
            return None;
        }
        HostTime::read(&self.registers, now)
    }

    /// Compares CLOCK_REALTIME with the host's clock. `None` if that cannot be read.
    pub(crate) fn compare(&self) -> Option<Comparison> {
        let now = || Instant::<RealTime>::now().as_unix_nanos();
        Comparison::best(
            (0..COMPARISONS).filter_map(|_| self.read_between(now).and_then(Comparison::new)),
        )
    }

    /// Sets CLOCK_REALTIME to the host's clock, given a comparison of the two, in one step or more:
    /// until it is off by no more than `tolerance` nanoseconds. Returns what is left.
    pub(crate) fn set_system_clock(&self, first: Comparison, tolerance: i64) -> Result<Left> {
        step::set_clock(first, tolerance, || self.compare(), set_back)
    }
}

/// Sets CLOCK_REALTIME back by so many nanoseconds, in one step.
fn set_back(offset: i64) -> Result {
    let time = Instant::<RealTime>::now()
        .as_unix_nanos()
        .checked_sub(offset)
        .and_then(Instant::from_unix_nanos)
        .ok_or(ERANGE)?;
    time.set_clock()
}

/// Returns whether an NTP daemon steers the clock. One that cannot be asked for is taken to do so.
pub(crate) fn is_steered() -> bool {
    ntp::State::read().map_or(true, |state| {
        NtpState {
            status: state.status(),
            frequency: state.frequency(),
            tick: state.tick(),
        }
        .is_steered()
    })
}

/// A number of nanoseconds as a sign, seconds, and microseconds of the second.
pub(crate) fn in_words(nanos: i64) -> (char, i64, i64) {
    let sign = if nanos < 0 { '-' } else { '+' };
    let micros = Delta::from_nanos(nanos.saturating_abs()).as_nanos() / 1_000;
    (sign, micros / 1_000_000, micros % 1_000_000)
}
