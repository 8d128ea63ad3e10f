//! The memory map of a guest, and its representations for the firmware: e820 and CMOS
//! (`create_memory_map`, `init_emulated_hw` in x86_vm.c and fw_cfg.c; PCI_MMIO_BAR_END in pci.h).

use vmd_release::Capabilities;

use crate::acpi;

/// First address of the hole for memory-mapped BARs.
pub const MMIO_START: u64 = 0xf000_0000;
/// Largest memory of a VM: 128 GiB.
pub const MAX_MEMORY: u64 = 128 << 30;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const FOUR_GIB: u64 = 4 << 30;

/// Type of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RAM for the guest.
    Ram,
    /// RAM that the firmware reports as reserved: the range from the end of low memory to 1 MiB,
    /// 8.0's ACPI tables, and the firmware below 4 GiB.
    Reserved,
    /// The hole: no memory.
    Mmio,
}

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// Type of the range.
    pub kind: Kind,
}

impl Range {
    /// First address after the range.
    pub const fn end(&self) -> u64 {
        self.start + self.size
    }

    /// Whether the range is backed by memory.
    pub const fn is_backed(&self) -> bool {
        !matches!(self.kind, Kind::Mmio)
    }
}

/// A memory size outside vmd's limits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a VM cannot have {size} bytes of memory")]
pub struct BadMemorySize {
    /// The requested size in bytes.
    pub size: u64,
}

/// The guest's memory: ranges in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    ranges: Vec<Range>,
}

impl MemoryMap {
    /// The map for `size` bytes of memory, 1 MiB to [`MAX_MEMORY`]. The size includes the reserved
    /// range below 1 MiB but not [`Capabilities::firmware_room`].
    ///
    /// From 7.9 on low memory ends at 0x90000, so that 0x90000–0xfffff is reserved and 8.0's RSDP
    /// at 0x9d000 lies in reserved memory ([`Capabilities::low_memory_end`]).
    pub fn new(capabilities: &Capabilities, size: u64) -> Result<Self, BadMemorySize> {
        if !(MIB..=MAX_MEMORY).contains(&size) {
            return Err(BadMemorySize { size });
        }
        let firmware_size = capabilities.firmware_room;
        let low_memory_end = capabilities.low_memory_end;
        let firmware = FOUR_GIB - firmware_size;
        let mut ranges = Vec::new();
        let mut add = |start, end, kind| ranges.push(Range { start, size: end - start, kind });
        add(0, low_memory_end, Kind::Ram);
        add(low_memory_end, MIB, Kind::Reserved);
        let rest = size - MIB;
        // From 8.0 on the ACPI tables have their own memory between RAM and the hole.
        let has_acpi = capabilities.acpi;
        if rest <= firmware_size {
            // A VM of this size loses its memory above 1 MiB, and up to 7.9 its firmware starts one
            // byte early.
            if has_acpi {
                add(acpi::AREA, MMIO_START, Kind::Reserved);
                add(firmware, FOUR_GIB, Kind::Reserved);
            } else {
                add(firmware - 1, FOUR_GIB - 1, Kind::Reserved);
            }
            return Ok(Self { ranges });
        }
        let ram_end = if has_acpi { acpi::AREA } else { MMIO_START };
        let below_mmio = rest.min(ram_end - MIB);
        add(MIB, MIB + below_mmio, Kind::Ram);
        if has_acpi {
            add(acpi::AREA, MMIO_START, Kind::Reserved);
        }
        add(MMIO_START, firmware, Kind::Mmio);
        add(firmware, FOUR_GIB, Kind::Reserved);
        if rest > below_mmio {
            add(FOUR_GIB, FOUR_GIB + rest - below_mmio, Kind::Ram);
        }
        Ok(Self { ranges })
    }

    /// All ranges, the MMIO hole included.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The file `etc/e820` for the firmware: for each range its start and size, 64 bits each, and
    /// its type, 32 bits, little-endian. The MMIO hole is reported as reserved.
    pub fn e820(&self) -> Vec<u8> {
        const USABLE: u32 = 1;
        const RESERVED: u32 = 2;
        self.ranges
            .iter()
            .flat_map(|range| {
                let kind = if range.kind == Kind::Ram { USABLE } else { RESERVED };
                let mut entry = range.start.to_le_bytes().to_vec();
                entry.extend(range.size.to_le_bytes());
                entry.extend(kind.to_le_bytes());
                entry
            })
            .collect()
    }

    /// The memory sizes for CMOS.
    pub fn cmos(&self) -> CmosMemory {
        let size_at = |start| {
            self.ranges
                .iter()
                .find(|range| range.start == start && range.kind == Kind::Ram)
                .map_or(0, |range| range.size)
        };
        CmosMemory { above_16_mib: size_at(MIB).saturating_sub(15 * MIB), above_4_gib: size_at(FOUR_GIB) }
    }
}

/// Memory sizes in CMOS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CmosMemory {
    /// Bytes between 16 MiB and the MMIO hole.
    pub above_16_mib: u64,
    /// Bytes above 4 GiB.
    pub above_4_gib: u64,
}

impl CmosMemory {
    /// The CMOS registers with the sizes in units of 64 KiB: 16 bits at 0x34 and 24 bits at 0x5b.
    pub const fn registers(self) -> [(u8, u8); 5] {
        let low = (self.above_16_mib / (64 * KIB)).to_le_bytes();
        let high = (self.above_4_gib / (64 * KIB)).to_le_bytes();
        [(0x34, low[0]), (0x35, low[1]), (0x5b, high[0]), (0x5c, high[1]), (0x5d, high[2])]
    }
}

#[cfg(test)]
mod tests {
    use vmd_release::Generation;

    use super::*;

    fn map(size: u64) -> MemoryMap {
        map_of(Generation::V7_8, size)
    }

    fn map_of(generation: Generation, size: u64) -> MemoryMap {
        MemoryMap::new(&generation.capabilities(), size).unwrap()
    }

    fn ram(map: &MemoryMap) -> Vec<(u64, u64)> {
        map.ranges().iter().filter(|r| r.kind == Kind::Ram).map(|r| (r.start, r.end())).collect()
    }

    /// The end of RAM from `tests/golden/dmesg/k73.dmesg.txt` and the CMOS from
    /// `tests/golden/pit_rtc/k73.pittest.txt`.
    #[test]
    fn the_recorded_map_of_512_mib() {
        let map = map(512 * MIB);
        assert_eq!(ram(&map), [(0, 0xa_0000), (0x10_0000, 0x2000_0000)]);
        assert_eq!(map.ranges()[3], Range { start: MMIO_START, size: 0x0fc0_0000, kind: Kind::Mmio });
        assert_eq!(map.cmos().registers(), [(0x34, 0), (0x35, 0x1f), (0x5b, 0), (0x5c, 0), (0x5d, 0)]);
        assert_eq!(map.e820().len(), 5 * 20);
        assert_eq!(
            map.e820()[20..40],
            [0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 2, 0, 0, 0],
            "640 KiB to 1 MiB is reserved"
        );
    }

    #[test]
    fn memory_beyond_the_hole_starts_at_4_gib() {
        let map = map(8 << 30);
        assert_eq!(ram(&map)[1..], [(MIB, MMIO_START), (FOUR_GIB, (8 << 30) + (FOUR_GIB - MMIO_START))]);
        assert_eq!(map.cmos().above_4_gib, (4 << 30) + (256 << 20));
        assert_eq!(map.cmos().registers()[2..], [(0x5b, 0), (0x5c, 0x10), (0x5d, 0x01)]);
    }

    #[test]
    fn the_hole_is_2_mib_longer_up_to_7_7() {
        let map = map_of(Generation::V7_7, 512 * MIB);
        assert_eq!(map.ranges()[3].end(), 0xffe0_0000);
        assert_eq!(map.ranges()[4], Range { start: 0xffe0_0000, size: 2 * MIB, kind: Kind::Reserved });
    }

    #[test]
    fn from_8_0_on_the_acpi_tables_end_where_the_hole_begins() {
        for (size, ram_end) in [(512 * MIB, 512 * MIB), (8 << 30, acpi::AREA)] {
            let map = map_of(Generation::V8_0, size);
            assert_eq!(ram(&map)[1], (MIB, ram_end));
            assert_eq!(map.ranges()[3], Range { start: acpi::AREA, size: 0x1_0000, kind: Kind::Reserved });
            assert_eq!(map.ranges()[4].start, MMIO_START);
        }
        let tiny = map_of(Generation::V8_0, 5 * MIB);
        assert_eq!(tiny.ranges()[3], Range { start: 0xffc0_0000, size: 4 * MIB, kind: Kind::Reserved });
    }

    #[test]
    fn low_memory_ends_at_576_kib_from_7_9_on() {
        let low = Generation::ALL.map(|generation| map_of(generation, 512 * MIB).ranges()[..2].to_vec());
        let expected = |end| {
            let ram = Range { start: 0, size: end, kind: Kind::Ram };
            vec![ram, Range { start: end, size: MIB - end, kind: Kind::Reserved }]
        };
        assert_eq!(low, [0xa_0000, 0xa_0000, 0x9_0000, 0x9_0000].map(expected));
    }

    #[test]
    fn the_rsdp_of_8_0_lies_in_reserved_memory() {
        let map = map_of(Generation::V8_0, 512 * MIB);
        let rsdp = acpi::tables::RSDP..acpi::tables::RSDP + acpi::tables::rsdp().len() as u64;
        let reserved = map.ranges().iter().filter(|range| range.kind == Kind::Reserved);
        assert_eq!(reserved.filter(|r| r.start <= rsdp.start && rsdp.end <= r.end()).count(), 1);
    }

    #[test]
    fn a_tiny_vm_loses_its_memory_above_1_mib() {
        let map = map(5 * MIB);
        assert_eq!(ram(&map), [(0, 0xa_0000)]);
        assert_eq!(map.ranges()[2], Range { start: 0xffbf_ffff, size: 4 * MIB, kind: Kind::Reserved });
        assert_eq!(map.cmos(), CmosMemory::default());
    }

    #[test]
    fn ranges_are_complete_and_ascending_for_every_size() {
        for generation in Generation::ALL {
            for size in [6 * MIB, 16 * MIB, 17 * MIB, MMIO_START, MMIO_START + MIB, FOUR_GIB, MAX_MEMORY] {
                let map = map_of(generation, size);
                assert!(map.ranges().windows(2).all(|pair| pair[0].end() <= pair[1].start));
                let backed: u64 = map.ranges().iter().filter(|r| r.is_backed()).map(|r| r.size).sum();
                let tables = if generation == Generation::V8_0 { acpi::AREA_SIZE } else { 0 };
                assert_eq!(backed, size + generation.capabilities().firmware_room + tables);
            }
        }
    }

    #[test]
    fn invalid_sizes_are_refused() {
        for size in [0, MIB - 1, MAX_MEMORY + 1, u64::MAX] {
            assert_eq!(MemoryMap::new(&Generation::V7_8.capabilities(), size), Err(BadMemorySize { size }));
        }
    }
}
