// SPDX-License-Identifier: GPL-2.0

//! The system clock against the host's.

use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

use crate::{
    bar::Registers,
    protocol::{
        Comparison,
        Driver, //
    },
};

/// How many times the clocks are compared for one result. Most of what makes a comparison bad, the
/// host doing something else, does not happen twice in a row.
const COMPARISONS: usize = 5;

/// Compares CLOCK_REALTIME with the host's clock, if the host's can be read.
pub(crate) fn compare(driver: &Driver<Registers<'_>>) -> Option<Comparison> {
    Comparison::best(
        (0..COMPARISONS).filter_map(|_| driver.host_time_between(now).and_then(Comparison::new)),
    )
}

/// Sets CLOCK_REALTIME back by so many nanoseconds, in one step.
///
/// CLOCK_MONOTONIC goes on, timers of CLOCK_REALTIME and those who wait for its setting are served,
/// and NTP starts anew, as after `clock_settime()`. The RTC is left alone.
pub(crate) fn set_back(offset: i64) -> Result {
    let time = timespec(now().checked_sub(offset).ok_or(ERANGE)?);
    // SAFETY: `time` is valid; this is process context.
    to_result(unsafe { bindings::do_settimeofday64(&time) })
}

/// CLOCK_REALTIME in nanoseconds.
fn now() -> i64 {
    // SAFETY: Safe to call in any context once timekeeping runs.
    unsafe { bindings::ktime_get_real() }
}

/// Nanoseconds as C has them.
pub(crate) const fn timespec(nanos: i64) -> bindings::timespec64 {
    const NANOS_PER_SEC: i64 = bindings::NSEC_PER_SEC as i64;
    bindings::timespec64 {
        tv_sec: nanos.div_euclid(NANOS_PER_SEC),
        // CAST: It is less than a second's.
        tv_nsec: nanos.rem_euclid(NANOS_PER_SEC) as c_long,
    }
}
