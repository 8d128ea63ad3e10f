//! The paravirtual clock: the page that the guest registers, updated before entries.
//!
//! vmm writes the time before each of its entries into the guest. Here it is written before each
//! KVM_RUN. KVM re-enters the guest without an update after exits that it handles itself (CPUID,
//! page faults of its own tables, host interrupts).

use std::num::NonZeroU64;

use devices::pvclock::{HostClocks, TimeInfo, WallClock, system_time_address, wall_clock_address};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmd_release::Capabilities;

/// The paravirtual clock of a vCPU.
pub(crate) struct PvClock<'a> {
    capabilities: Capabilities,
    tsc_hz: Option<NonZeroU64>,
    now: &'a (dyn Fn() -> HostClocks + Sync),
    memory: GuestMemoryMmap,
    /// Where the guest wants the time.
    address: Option<GuestAddress>,
    entries: u32,
}

impl<'a> PvClock<'a> {
    /// A clock that the guest has not enabled. `now` reads the host's clocks.
    pub(crate) fn new(
        capabilities: Capabilities,
        tsc_hz: Option<NonZeroU64>,
        now: &'a (dyn Fn() -> HostClocks + Sync),
        memory: GuestMemoryMmap,
    ) -> Self {
        Self { capabilities, tsc_hz, now, memory, address: None, entries: 0 }
    }

    fn is_ram(&self, address: u64, size: u64) -> bool {
        self.memory.check_range(GuestAddress(address), size as usize)
    }

    /// Handles a write of the system-time MSR, which sets or removes the address. Returns `false`
    /// for #GP.
    pub(crate) fn set_system_time(&mut self, value: u64) -> bool {
        match system_time_address(value, |address, size| self.is_ram(address, size)) {
            Some((address, enabled)) => {
                self.address = enabled.then_some(GuestAddress(address));
                true
            }
            None => false,
        }
    }

    /// Handles a write of the wall-clock MSR, which vmm has from 7.8 on: writes the wall clock.
    /// Returns `false` for #GP.
    pub(crate) fn set_wall_clock(&self, value: u64) -> bool {
        if !self.capabilities.pvclock_wall_clock {
            return true;
        }
        let Some(address) = wall_clock_address(value, |address, size| self.is_ram(address, size)) else {
            return false;
        };
        let address = GuestAddress(address);
        let Ok(version) = self.memory.read_obj(address) else { return false };
        self.memory.write_slice(&WallClock::new(version, (self.now)()).to_bytes(), address).is_ok()
    }

    /// Writes the time if the guest has set an address. Called before each entry.
    pub(crate) fn before_entry(&mut self) {
        let Some(address) = self.address else { return };
        self.entries = self.entries.wrapping_add(1);
        let info = TimeInfo::new(&self.capabilities, self.entries, (self.now)(), self.tsc_hz);
        // Cannot fail: the address was checked when it was set.
        let _ = self.memory.write_slice(&info.to_bytes(), address);
    }
}

#[cfg(test)]
mod tests {
    use vmd_release::Generation;

    use devices::clock::{Clock, ManualClock, NANOS_PER_SEC};

    use super::*;

    fn time(clock: &ManualClock) -> HostClocks {
        HostClocks { tsc: 0, monotonic: clock.monotonic(), realtime: clock.realtime() }
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    #[test]
    fn the_time_is_written_at_each_entry_while_it_is_enabled() {
        let clock = ManualClock::new(5 * NANOS_PER_SEC, 1_700_000_000 * NANOS_PER_SEC);
        let memory = memory();
        let now = || time(&clock);
        let mut pvclock = PvClock::new(
            Generation::V7_8.capabilities(),
            NonZeroU64::new(2_000_000_000),
            &now,
            memory.clone(),
        );
        pvclock.before_entry();
        assert_eq!(memory.read_obj::<[u8; 32]>(GuestAddress(0x1000)).unwrap(), [0; 32]);
        assert!(pvclock.set_system_time(0x1001));
        pvclock.before_entry();
        clock.advance(NANOS_PER_SEC);
        pvclock.before_entry();
        let page: [u8; 32] = memory.read_obj(GuestAddress(0x1000)).unwrap();
        assert_eq!(u32::from_le_bytes(page[..4].try_into().unwrap()), 4);
        assert_eq!(u64::from_le_bytes(page[16..24].try_into().unwrap()), 6 * NANOS_PER_SEC);
        assert!(pvclock.set_system_time(0));
        clock.advance(NANOS_PER_SEC);
        pvclock.before_entry();
        assert_eq!(memory.read_obj::<[u8; 32]>(GuestAddress(0x1000)).unwrap(), page);
    }

    #[test]
    fn addresses_outside_memory_fault() {
        let clock = ManualClock::default();
        let now = || time(&clock);
        let mut pvclock = PvClock::new(Generation::V7_8.capabilities(), None, &now, memory());
        for value in [0x1_0001, 0xffe0_0001, u64::MAX, 0xff1] {
            assert!(!pvclock.set_system_time(value), "{value:#x}");
        }
        assert!(!pvclock.set_wall_clock(0x1_0000));
        assert!(pvclock.set_wall_clock(0x2000));
    }

    #[test]
    fn there_is_no_wall_clock_up_to_7_7() {
        let clock = ManualClock::new(0, NANOS_PER_SEC);
        let memory = memory();
        let now = || time(&clock);
        let pvclock = PvClock::new(Generation::V7_7.capabilities(), None, &now, memory.clone());
        assert!(pvclock.set_wall_clock(0x2000));
        assert_eq!(memory.read_obj::<[u8; 12]>(GuestAddress(0x2000)).unwrap(), [0; 12]);
    }
}
