//! The host's clocks, as the guest is to see them.

use std::sync::atomic::{AtomicU64, Ordering};

use devices::clock::{Clock, NANOS_PER_SEC};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// The clocks of the host that vmd would run on.
///
/// A laptop that sleeps is simulated by [`SystemClock::nap`]: both clocks jump over it, as OpenBSD's CLOCK_REALTIME
/// and CLOCK_MONOTONIC do on resume (kern_tc.c, `tc_setclock`). The TSC does not take part: it goes on as if the nap
/// had not been, so that a guest that keeps time by it falls behind by the nap, which is what SYNCRTC is for.
#[derive(Debug, Default)]
pub struct SystemClock {
    napped: AtomicU64,
}

impl SystemClock {
    /// The host's clocks as they are.
    pub const fn new() -> Self {
        Self { napped: AtomicU64::new(0) }
    }

    /// Lets both clocks jump forward by `nanos`.
    pub fn nap(&self, nanos: u64) {
        self.napped.fetch_add(nanos, Ordering::SeqCst);
    }

    /// How long all naps together took, in nanoseconds.
    pub fn napped(&self) -> u64 {
        self.napped.load(Ordering::SeqCst)
    }

    fn read(&self, id: ClockId) -> u64 {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(id);
        let host = tv_sec.cast_unsigned().wrapping_mul(NANOS_PER_SEC).wrapping_add(tv_nsec.cast_unsigned());
        host.wrapping_add(self.napped())
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> u64 {
        self.read(ClockId::Monotonic)
    }

    fn realtime(&self) -> u64 {
        self.read(ClockId::Realtime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nap_moves_both_clocks() {
        let clock = SystemClock::new();
        let (monotonic, realtime) = (clock.monotonic(), clock.realtime());
        clock.nap(3_600 * NANOS_PER_SEC);
        assert!(clock.monotonic() >= monotonic + 3_600 * NANOS_PER_SEC);
        assert!(clock.realtime() >= realtime + 3_600 * NANOS_PER_SEC);
    }

    #[test]
    fn realtime_is_this_century() {
        assert!(SystemClock::new().realtime() > 1_700_000_000 * NANOS_PER_SEC);
    }
}
