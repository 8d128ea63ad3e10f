//! The paravirtual clock of vmm(4): the structures that it writes into guest memory
//! (`vmm_init_pvclock`, `vmm_update_pvclock`, `vmm_pv_wall_clock` in vmm_machdep.c).
//!
//! The guest sets the address of each of two structures by writing an MSR. vmm rewrites the time at
//! every entry into the guest, and writes the wall clock once.

use std::num::NonZeroU64;

use vmd_release::Capabilities;

use crate::clock::NANOS_PER_SEC;

/// MSR with the address of [`TimeInfo`]. 7.7 and earlier have it too, without announcing it in a
/// KVM leaf.
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// MSR with the address of [`WallClock`], from 7.8 on; earlier, writes have no effect.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;

/// Bit of [`MSR_SYSTEM_TIME`] that enables the clock.
pub const ENABLE: u64 = 1;

const PAGE_SIZE: u64 = 4096;

/// `tsc_shift`: the product of ticks and multiplier has 32 fractional bits; this shifts left by 12.
const SHIFT: i8 = 12;
const FLAG_TSC_STABLE: u8 = 1;

/// The address of the time and whether the clock is enabled, from a value of [`MSR_SYSTEM_TIME`].
///
/// `is_ram` returns whether that many bytes at an address are RAM. Returns `None` if the write must
/// fail with #GP: no RAM, or a structure that crosses a page boundary. The lowest four bits are not
/// part of the address.
pub fn system_time_address(value: u64, is_ram: impl FnOnce(u64, u64) -> bool) -> Option<(u64, bool)> {
    let address = value & !0xf;
    fits(address, TimeInfo::SIZE as u64, is_ram).then_some((address, value & ENABLE != 0))
}

/// The address of the wall clock, from a value of [`MSR_WALL_CLOCK`]; `None` if the write must fail
/// with #GP.
pub fn wall_clock_address(value: u64, is_ram: impl FnOnce(u64, u64) -> bool) -> Option<u64> {
    fits(value, WallClock::SIZE as u64, is_ram).then_some(value)
}

/// Within one page, and within RAM with a byte to spare (`vmm_gpa_is_valid` excludes the last
/// possible address).
fn fits(address: u64, size: u64, is_ram: impl FnOnce(u64, u64) -> bool) -> bool {
    address % PAGE_SIZE + size <= PAGE_SIZE
        && address.checked_add(size + 1).is_some()
        && is_ram(address, size + 1)
}

/// Nanoseconds per TSC tick in vmm's format: 20 fractional bits, where the clock's format has room
/// for 32, so up to 4.8 ppm too small. 0 if the host does not know its TSC's frequency; such a
/// clock makes Linux divide by zero.
pub fn multiplier(tsc_hz: Option<NonZeroU64>) -> u32 {
    tsc_hz.map_or(0, |hz| ((NANOS_PER_SEC << 20) / hz) as u32)
}

/// The host's clocks at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostClocks {
    /// The TSC; guests share it with the host, without an offset.
    pub tsc: u64,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub monotonic: u64,
    /// CLOCK_REALTIME in nanoseconds since 1970.
    pub realtime: u64,
}

/// The time structure, written at every entry into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeInfo {
    /// Even when the rest is whole.
    pub version: u32,
    /// The TSC at `system_time`.
    pub tsc_timestamp: u64,
    /// Nanoseconds: the host's CLOCK_MONOTONIC; up to 7.7 its CLOCK_REALTIME.
    pub system_time: u64,
    /// See [`multiplier`].
    pub tsc_to_system_mul: u32,
}

impl TimeInfo {
    /// Its size in bytes.
    pub const SIZE: usize = 32;

    /// The structure at the `entry`th entry, counted from 1 at the vCPU's first entry with the
    /// clock enabled. The count continues when the guest moves the clock and restarts at a VM
    /// reset.
    pub fn new(capabilities: &Capabilities, entry: u32, now: HostClocks, tsc_hz: Option<NonZeroU64>) -> Self {
        Self {
            version: entry << 1,
            tsc_timestamp: now.tsc,
            system_time: if capabilities.pvclock_monotonic { now.monotonic } else { now.realtime },
            tsc_to_system_mul: multiplier(tsc_hz),
        }
    }

    /// The bytes in guest memory. vmm announces a stable TSC even without knowing it. vmm does not
    /// write the padding, which is zero here.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&self.version.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tsc_timestamp.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.system_time.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.tsc_to_system_mul.to_le_bytes());
        bytes[28..29].copy_from_slice(&SHIFT.to_le_bytes());
        bytes[29] = FLAG_TSC_STABLE;
        bytes
    }
}

/// The wall clock: the time at which [`TimeInfo::system_time`] was 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Even when the rest is whole.
    pub version: u32,
    /// Seconds since 1970.
    pub seconds: u32,
    /// Nanoseconds within the second, 0 to 999,999,999.
    pub nanos: u32,
}

impl WallClock {
    /// Its size in bytes.
    pub const SIZE: usize = 12;

    /// The host's boot time, over memory with `version` in its place; the new version is the next
    /// even number.
    pub fn new(version: u32, now: HostClocks) -> Self {
        let boot = now.realtime.saturating_sub(now.monotonic);
        Self {
            version: (version | 1).wrapping_add(1),
            seconds: (boot / NANOS_PER_SEC) as u32,
            nanos: (boot % NANOS_PER_SEC) as u32,
        }
    }

    /// The bytes in guest memory.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&self.version.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.seconds.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.nanos.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use vmd_release::Generation;

    use super::*;

    const NOW: HostClocks = HostClocks {
        tsc: 0x0123_4567_89ab_cdef,
        monotonic: 80_500_000_000,
        realtime: 1_795_348_512_505_915_777,
    };

    fn hz(value: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(value)
    }

    /// The frequency that Linux computes (`pvclock_tsc_khz`).
    fn khz_in_linux(mul: u32) -> u64 {
        ((1_000_000_u64 << 32) / u64::from(mul)) >> SHIFT
    }

    #[test]
    fn the_structures_have_the_documented_layout() {
        let time = TimeInfo::new(&Generation::V7_8.capabilities(), 3, NOW, hz(2_500_000_000));
        let bytes = time.to_bytes();
        assert_eq!(bytes[..8], [6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], NOW.tsc.to_le_bytes());
        assert_eq!(bytes[16..24], NOW.monotonic.to_le_bytes());
        assert_eq!(bytes[24..], [0x66, 0x66, 0x06, 0, 12, 1, 0, 0]);
    }

    #[test]
    fn linux_gets_a_frequency_that_is_a_few_ppm_too_high() {
        // ppm × 10 by frequency, from the reference.
        for (mhz, tenths) in [(2_500, 8), (3_400, 21), (4_200, 38)] {
            let khz = khz_in_linux(multiplier(hz(mhz * 1_000_000)));
            let ppm_tenths = (khz - mhz * 1000) * 10_000 / mhz;
            assert!(ppm_tenths.abs_diff(tenths) <= 2, "{mhz} MHz: {ppm_tenths}");
        }
    }

    #[test]
    fn without_a_known_tsc_the_multiplier_is_0() {
        assert_eq!(multiplier(None), 0);
    }

    #[test]
    fn up_to_7_7_the_system_time_is_the_wall_clock() {
        let system_time =
            |generation: Generation| TimeInfo::new(&generation.capabilities(), 1, NOW, None).system_time;
        assert_eq!(system_time(Generation::V7_7), NOW.realtime);
        assert_eq!(system_time(Generation::V7_8), NOW.monotonic);
    }

    #[test]
    fn the_wall_clock_is_the_hosts_boot() {
        let wall = WallClock::new(0, NOW);
        assert_eq!(wall, WallClock { version: 2, seconds: 1_795_348_432, nanos: 5_915_777 });
        assert_eq!(WallClock::new(2, NOW).version, 4);
        assert_eq!(WallClock::new(3, NOW).version, 4);
        assert_eq!(wall.to_bytes()[..4], [2, 0, 0, 0]);
    }

    #[test]
    fn invalid_addresses_are_refused() {
        let ram = |address, size| address + size <= 0x2000_0000;
        assert_eq!(system_time_address(0x1001, ram), Some((0x1000, true)));
        assert_eq!(system_time_address(0x1002, ram), Some((0x1000, false)), "low bits are dropped");
        assert_eq!(system_time_address(0x1fe0, ram), Some((0x1fe0, false)));
        assert_eq!(system_time_address(0x1ff1, ram), None, "over the page's end");
        assert_eq!(system_time_address(0x1fff_ffe0, ram), None, "the very last place");
        assert_eq!(system_time_address(0xf000_0001, ram), None);
        assert_eq!(system_time_address(u64::MAX, ram), None);
        assert_eq!(wall_clock_address(0x1ff4, ram), Some(0x1ff4));
        assert_eq!(wall_clock_address(0x1ff5, ram), None);
    }
}
