//! The guest's clocks.

use std::{io, time::Duration};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NANOS_PER_SEC: i64 = 1_000_000_000;

/// The guest's clocks.
pub trait Clock {
    /// Nanoseconds since 1970.
    fn realtime(&self) -> i64;
    /// Sets that clock.
    fn set_realtime(&self, nanos: i64) -> io::Result<()>;
    /// A monotonic clock in nanoseconds.
    fn monotonic(&self) -> Duration;
}

/// The system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Clock for System {
    fn realtime(&self) -> i64 {
        vmmci_sysfs::realtime()
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

/// Steps the guest's clock by `nanos` (positive: forward). Returns the time after the step.
pub fn step(clock: &impl Clock, nanos: i64) -> io::Result<i64> {
    let now = clock.realtime().saturating_add(nanos);
    clock.set_realtime(now)?;
    Ok(now)
}
