//! Firmware: loads an image as vmd does, and detects whether it is OpenBSD's.

use std::{fs, path::Path};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;

/// End of the firmware: 4 GiB.
const TOP: u64 = 1 << 32;
/// End of the copy below 1 MiB.
const LOW_TOP: u64 = 1 << 20;
/// Shortest image in bytes: from the reset vector to the end (`loadfile_bios` in x86_vm.c).
const IMAGE_MIN: u64 = 15;
/// Longest image in bytes.
const IMAGE_MAX: u64 = 4 << 20;

/// A firmware image in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Firmware {
    /// Whether it is OpenBSD's build of SeaBIOS (package vmm-firmware), which knows vmd. Any other
    /// image is treated as stock SeaBIOS, which knows QEMU.
    pub(crate) knows_vmd: bool,
}

/// Loads the image at `path` as vmd does: all of it so that it ends at 4 GiB, and its tail so that
/// it ends at 1 MiB and starts at or above `low_memory_end` (bytes): up to 384 KiB, from 7.9 on 448
/// KiB. The guest may write both copies (`loadfile_bios` in x86_vm.c).
pub(super) fn load(path: &Path, memory: &GuestMemoryMmap, low_memory_end: u64) -> Result<Firmware, Error> {
    let image = fs::read(path).map_err(|source| Error::Read {
        what: "the firmware",
        path: path.to_owned(),
        source,
    })?;
    let size = image.len() as u64;
    if !(IMAGE_MIN..=IMAGE_MAX).contains(&size) {
        return Err(Error::FirmwareSize { path: path.to_owned(), size });
    }
    let low = size.min(LOW_TOP - low_memory_end);
    let tail = &image[(size - low) as usize..];
    for (bytes, address) in [(&image[..], TOP - size), (tail, LOW_TOP - low)] {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|source| Error::AllocateMemory { source: Box::new(source) })?;
    }
    Ok(Firmware { knows_vmd: knows_vmd(&image) })
}

/// Whether the image is OpenBSD's build, whose version string and tables contain "OpenBSD"
/// (`golden/dump`: BIOS version 1.16.3p1-OpenBSD-vmm).
fn knows_vmd(image: &[u8]) -> bool {
    const MARK: &[u8] = b"OpenBSD";
    image.windows(MARK.len()).any(|window| window == MARK)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn memory() -> GuestMemoryMmap {
        let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(TOP - IMAGE_MAX), IMAGE_MAX as usize)];
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    fn load_bytes(image: &[u8], memory: &GuestMemoryMmap) -> Result<Firmware, Error> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(image).unwrap();
        load(file.path(), memory, 640 << 10)
    }

    #[test]
    fn both_copies_end_where_they_should() {
        for size in [0x1000, 0x4_0000, 0x8_0000] {
            let memory = memory();
            let image: Vec<u8> = (0..size).map(|i: u32| (i / 7) as u8).collect();
            load_bytes(&image, &memory).unwrap();
            let mut high = vec![0; image.len()];
            memory.read_slice(&mut high, GuestAddress(TOP - u64::from(size))).unwrap();
            assert_eq!(high, image);
            let low = image.len().min(384 << 10);
            let mut tail = vec![0; low];
            memory.read_slice(&mut tail, GuestAddress((1 << 20) - low as u64)).unwrap();
            assert_eq!(tail, image[image.len() - low..]);
        }
    }

    #[test]
    fn the_low_copy_has_448_kib_above_576_kib_of_low_memory() {
        let memory = memory();
        let image: Vec<u8> = (0..0x8_0000_u32).map(|i| (i / 7) as u8).collect();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        load(file.path(), &memory, 576 << 10).unwrap();
        let mut copy = vec![0; 448 << 10];
        memory.read_slice(&mut copy, GuestAddress(576 << 10)).unwrap();
        assert_eq!(copy, image[64 << 10..]);
    }

    #[test]
    fn only_openbsds_build_knows_vmd() {
        let memory = memory();
        let mut image = vec![0u8; 4096];
        assert!(!load_bytes(&image, &memory).unwrap().knows_vmd);
        image[100..120].copy_from_slice(b"1.16.3p1-OpenBSD-vmm");
        assert!(load_bytes(&image, &memory).unwrap().knows_vmd);
    }

    #[test]
    fn sizes_that_vmd_refuses_are_refused() {
        let memory = memory();
        for size in [0, 14, (4 << 20) + 1] {
            assert!(matches!(load_bytes(&vec![0; size], &memory), Err(Error::FirmwareSize { .. })), "{size}");
        }
    }
}
