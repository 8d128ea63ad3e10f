//! The paravirtual clock that vmm(4) keeps in guest memory: what it writes there (`vmm_init_pvclock`,
//! `vmm_update_pvclock`, `vmm_pv_wall_clock` in vmm_machdep.c).
//!
//! The guest names a place for each of two structures by writing an MSR. The time is rewritten at every entry into the
//! guest, the wall clock once.

use std::num::NonZeroU64;

use vmd_release::Generation;

use crate::clock::NANOS_PER_SEC;

/// MSR that names the place of [`TimeInfo`] (7.7 and before too, though no leaf of KVM's tells of it).
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// MSR that names the place of [`WallClock`]. vmm has it from 7.8 on: before, writing it does nothing.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;

/// Bit in [`MSR_SYSTEM_TIME`] that turns the clock on.
pub const ENABLE: u64 = 1;

const PAGE_SIZE: u64 = 4096;

/// `tsc_shift`: the product of ticks and multiplier has 32 bits after the point, of which this gives 12 back.
const SHIFT: i8 = 12;
const FLAG_TSC_STABLE: u8 = 1;

/// Where a value of [`MSR_SYSTEM_TIME`] puts the time, and whether it is turned on.
///
/// `is_ram` tells whether so many bytes at an address are RAM. `None`: the value is refused with #GP, since there is no
/// RAM or the structure would cross a page's end. The lowest four bits are not part of the address.
pub fn system_time_address(value: u64, is_ram: impl FnOnce(u64, u64) -> bool) -> Option<(u64, bool)> {
    let address = value & !0xf;
    fits(address, TimeInfo::SIZE as u64, is_ram).then_some((address, value & ENABLE != 0))
}

/// Where a value of [`MSR_WALL_CLOCK`] puts the wall clock; `None`: it is refused with #GP.
pub fn wall_clock_address(value: u64, is_ram: impl FnOnce(u64, u64) -> bool) -> Option<u64> {
    fits(value, WallClock::SIZE as u64, is_ram).then_some(value)
}

/// Within a page, and within RAM with a byte to spare (`vmm_gpa_is_valid` leaves out the last possible place).
fn fits(address: u64, size: u64, is_ram: impl FnOnce(u64, u64) -> bool) -> bool {
    address % PAGE_SIZE + size <= PAGE_SIZE
        && address.checked_add(size + 1).is_some()
        && is_ram(address, size + 1)
}

/// Nanoseconds per tick of the TSC, as vmm gives them: with 20 bits after the point where the clock's format has
/// room for 32, so up to 4.8 ppm too small. 0 if the host does not know its TSC's frequency; such a clock makes
/// Linux divide by zero.
pub fn multiplier(tsc_hz: Option<NonZeroU64>) -> u32 {
    tsc_hz.map_or(0, |hz| ((NANOS_PER_SEC << 20) / hz) as u32)
}

/// The host's side of what goes into the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTime {
    /// The TSC, which guests share with the host without an offset.
    pub tsc: u64,
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub monotonic: u64,
    /// CLOCK_REALTIME, in nanoseconds since 1970.
    pub realtime: u64,
}

/// The time as it is written at an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeInfo {
    /// Even when the rest is whole.
    pub version: u32,
    /// The TSC at `system_time`.
    pub tsc_timestamp: u64,
    /// Nanoseconds: the host's uptime, up to 7.7 its wall clock.
    pub system_time: u64,
    /// See [`multiplier`].
    pub tsc_to_system_mul: u32,
}

impl TimeInfo {
    /// Its size in bytes.
    pub const SIZE: usize = 32;

    /// What the `entry`th entry writes, counting from 1 at the vCPU's first with the clock turned on. The count goes on
    /// when the guest moves the clock; it begins anew with the machine.
    pub fn new(generation: Generation, entry: u32, now: HostTime, tsc_hz: Option<NonZeroU64>) -> Self {
        Self {
            version: entry << 1,
            tsc_timestamp: now.tsc,
            system_time: match generation {
                Generation::V7_7 => now.realtime,
                Generation::V7_8 | Generation::V7_9 | Generation::V8_0 => now.monotonic,
            },
            tsc_to_system_mul: multiplier(tsc_hz),
        }
    }

    /// The bytes in guest memory. vmm says that the TSC is stable even if it knows nothing of it; it leaves alone
    /// what is padding, which is zero here.
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

/// The wall clock: when [`TimeInfo::system_time`] was 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// Even when the rest is whole.
    pub version: u32,
    /// Seconds since 1970.
    pub seconds: u32,
    /// Nanoseconds of the second.
    pub nanos: u32,
}

impl WallClock {
    /// Its size in bytes.
    pub const SIZE: usize = 12;

    /// The time at which the host booted, over memory that had `version` in its place: the next even number.
    pub fn new(version: u32, now: HostTime) -> Self {
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
    use super::*;

    const NOW: HostTime = HostTime {
        tsc: 0x0123_4567_89ab_cdef,
        monotonic: 80_500_000_000,
        realtime: 1_795_348_512_505_915_777,
    };

    fn hz(value: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(value)
    }

    /// What Linux makes of it (`pvclock_tsc_khz`).
    fn khz_in_linux(mul: u32) -> u64 {
        ((1_000_000_u64 << 32) / u64::from(mul)) >> SHIFT
    }

    #[test]
    fn the_bytes() {
        let time = TimeInfo::new(Generation::V7_8, 3, NOW, hz(2_500_000_000));
        let bytes = time.to_bytes();
        assert_eq!(bytes[..8], [6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], NOW.tsc.to_le_bytes());
        assert_eq!(bytes[16..24], NOW.monotonic.to_le_bytes());
        assert_eq!(bytes[24..], [0x66, 0x66, 0x06, 0, 12, 1, 0, 0]);
    }

    #[test]
    fn linux_gets_a_frequency_that_is_a_few_ppm_too_high() {
        // ppm × 10 by frequency, as the reference has them.
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
        let system_time = |generation| TimeInfo::new(generation, 1, NOW, None).system_time;
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
    fn places_that_are_refused() {
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
