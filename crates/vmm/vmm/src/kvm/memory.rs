//! Guest memory for vmd's memory map.

use devices::memory_map::MemoryMap;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmd_release::Capabilities;

use crate::error::Error;

/// Page size in bytes.
const PAGE: u64 = 4096;

/// The memory map of a VM with `size` bytes.
///
/// Refuses the few MiB at which vmd misplaces the firmware by a byte: KVM maps whole pages, and no
/// guest could start.
pub(crate) fn map(capabilities: &Capabilities, size: u64) -> Result<MemoryMap, Error> {
    let map = MemoryMap::new(capabilities, size)?;
    let whole_pages =
        map.ranges().iter().all(|r| r.start.is_multiple_of(PAGE) && r.size.is_multiple_of(PAGE));
    if whole_pages { Ok(map) } else { Err(Error::MemorySize { size }) }
}

/// Allocates zeroed memory for all ranges of `map` that are backed. Adjacent ranges share one
/// mapping.
pub(crate) fn allocate(map: &MemoryMap) -> Result<GuestMemoryMmap, Error> {
    let mut blocks: Vec<(GuestAddress, usize)> = Vec::new();
    let mut end = 0;
    for range in map.ranges().iter().filter(|range| range.is_backed()) {
        let size = usize::try_from(range.size).map_err(|_| Error::MemorySize { size: range.size })?;
        match blocks.last_mut() {
            Some((_, block)) if end == range.start => *block += size,
            _ => blocks.push((GuestAddress(range.start), size)),
        }
        end = range.end();
    }
    GuestMemoryMmap::from_ranges(&blocks).map_err(|source| Error::AllocateMemory { source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryBackend;
    use vmd_release::Generation;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn everything_but_the_hole_is_backed() {
        let memory = allocate(&map(&Generation::V7_8.capabilities(), 64 * MIB).unwrap()).unwrap();
        for (address, backed) in [
            (0, true),
            (0xb_8000, true),
            (64 * MIB - 1, true),
            (64 * MIB, false),
            (0xf000_0000, false),
            (0xfec0_0000, false),
            (0xffc0_0000, true),
            (0xffff_fff0, true),
        ] {
            assert_eq!(memory.address_in_range(GuestAddress(address)), backed, "{address:#x}");
        }
        assert_eq!(memory.num_regions(), 2);
    }

    #[test]
    fn sizes_that_cannot_be_mapped_are_refused() {
        assert!(map(&Generation::V7_8.capabilities(), 8 * MIB).is_ok());
        for size in [0, MIB - 1, 5 * MIB, 64 * MIB + 1, 1 << 40] {
            assert!(map(&Generation::V7_8.capabilities(), size).is_err(), "{size}");
        }
    }
}
