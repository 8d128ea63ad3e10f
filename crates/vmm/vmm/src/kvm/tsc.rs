//! The host's time stamp counter and its rate.

#![allow(unsafe_code)]

use std::{
    arch::x86_64::{__cpuid, CpuidResult},
    num::NonZeroU64,
    time::Duration,
};

use devices::clock::NANOS_PER_SEC;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// The host's TSC.
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: every processor with KVM has a TSC, and Linux lets a process read it that has not set
    // PR_TSC_SIGSEGV.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Rate of the host's TSC in Hz, or `None` if the TSC is not invariant. It is read from CPUID leaf
/// 0x15, which is exact and OpenBSD's source, or else measured against CLOCK_MONOTONIC_RAW for 50
/// ms, which finds the kernel's value to within a few ppm.
///
/// A VM on this host whose TSC is this host's, but whose CPUID does not show it as invariant (as
/// QEMU's without KVM), needs this value as [`crate::Config::tsc_hz`].
pub fn host_tsc_hz() -> Option<NonZeroU64> {
    const EXTENDED: u32 = 0x8000_0000;
    const POWER: u32 = 0x8000_0007;
    const INVARIANT: u32 = 1 << 8;
    const TSC: u32 = 0x15;
    if __cpuid(EXTENDED).eax < POWER || __cpuid(POWER).edx & INVARIANT == 0 {
        return None;
    }
    if __cpuid(0).eax >= TSC
        && let Some(hz) = leaf_15_hz(__cpuid(TSC))
    {
        return Some(hz);
    }
    let start = TscReading::now_both();
    std::thread::sleep(Duration::from_millis(50));
    let hz = TscReading::now_both().rate_since(&start);
    // The guest is told this rate and SystemClock counts with it: the two agree even if it is a
    // little off.
    tracing::debug!(hz, "CPUID lacks the TSC's rate: measured it, to within a few ppm");
    NonZeroU64::new(hz)
}

/// TSC and CLOCK_MONOTONIC_RAW, in nanoseconds, at one moment.
struct TscReading {
    tsc: u64,
    nanos: u64,
}

impl TscReading {
    /// The best of 16 readings: the one with the least time between the TSC before and the TSC
    /// after the clock.
    fn now_both() -> Self {
        let readings = (0..16).map(|_| {
            let before = rdtsc();
            let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::MonotonicRaw);
            let width = rdtsc().wrapping_sub(before);
            let nanos = tv_sec.cast_unsigned() * NANOS_PER_SEC + tv_nsec.cast_unsigned();
            (width, Self { tsc: before + width / 2, nanos })
        });
        readings.min_by_key(|(width, _)| *width).map(|(_, reading)| reading).expect("there are 16")
    }

    /// TSC ticks per second since `start`.
    fn rate_since(&self, start: &Self) -> u64 {
        let nanos = u128::from(self.nanos.saturating_sub(start.nanos).max(1));
        (u128::from(self.tsc.wrapping_sub(start.tsc)) * u128::from(NANOS_PER_SEC) / nanos) as u64
    }
}

/// Rate of the TSC in Hz by CPUID leaf 0x15: the crystal's (ECX) times EBX / EAX.
fn leaf_15_hz(leaf: CpuidResult) -> Option<NonZeroU64> {
    let product = u64::from(leaf.ecx) * u64::from(leaf.ebx);
    NonZeroU64::new(product.checked_div(u64::from(leaf.eax))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crystal_and_the_ratio_make_the_rate() {
        let leaf = |eax, ebx, ecx| leaf_15_hz(CpuidResult { eax, ebx, ecx, edx: 0 });
        assert_eq!(leaf(2, 216, 24_000_000), NonZeroU64::new(2_592_000_000));
        assert_eq!(leaf(1, 100, 25_961_400), NonZeroU64::new(2_596_140_000));
        for unknown in [leaf(0, 216, 24_000_000), leaf(2, 0, 24_000_000), leaf(2, 216, 0)] {
            assert_eq!(unknown, None);
        }
    }

    #[test]
    fn a_rate_is_ticks_per_second() {
        let start = TscReading { tsc: u64::MAX - 999, nanos: 1_000 };
        let end = TscReading { tsc: 99_999_000, nanos: 50_001_000 };
        assert_eq!(end.rate_since(&start), 2_000_000_000);
    }
}
