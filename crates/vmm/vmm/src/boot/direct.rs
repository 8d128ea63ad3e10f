//! Direct boot of Linux by its 64-bit boot protocol (Documentation/arch/x86/boot.rst of the
//! kernel).

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use linux_loader::{
    bootparam::{boot_e820_entry, boot_params, setup_header},
    configurator::{BootConfigurator, BootParams, linux::LinuxBootConfigurator},
    loader::{BzImage, Elf, KernelLoader, KernelLoaderResult},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;

/// Address of the GDT.
pub(super) const GDT: u64 = 0x500;
/// Limit of the GDT.
pub(super) const GDT_LIMIT: u16 = 4 * 8 - 1;
/// Selector of the boot protocol's code segment.
pub(crate) const CODE_SELECTOR: u16 = 0x10;
/// Selector of the boot protocol's data segment.
pub(super) const DATA_SELECTOR: u16 = 0x18;
/// Address of the zero page (`struct boot_params`).
pub(super) const ZERO_PAGE: u64 = 0x7000;
/// End of a small stack, for entry code that uses one before it sets up its own.
pub(super) const STACK_TOP: u64 = 0x6ff0;
/// Address of the page tables: one page each for levels 4 and 3, four for level 2.
pub(super) const PAGE_TABLES: u64 = 0x9000;
/// Address of the command line.
const COMMAND_LINE: u64 = 0x2_0000;
/// Limit of the command line in bytes if the kernel states none (the boot protocol's for old
/// kernels, and a vmlinux's).
const COMMAND_LINE_MAX: usize = 2047;
/// Lowest load address of a kernel.
const HIGH_MEMORY: u64 = 0x10_0000;
/// Offset of a bzImage's 64-bit entry from its load address.
const ENTRY_64: u64 = 0x200;
/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `type_of_loader`: not an assigned one.
const LOADER_OTHER: u8 = 0xff;
/// Page size in bytes.
const PAGE: u64 = 0x1000;

/// Loads `kernel`, initrd, command line and boot parameters. Returns the entry point's address.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    e820: &[u8],
    kernel: &Path,
    initrd: Option<&Path>,
    command_line: &str,
) -> Result<u64, Error> {
    let refuse = |reason: String| Error::Kernel { path: kernel.to_owned(), reason };
    let mut file = open(kernel, "the kernel")?;
    let (loaded, header) = load_image(memory, &mut file).map_err(refuse)?;
    let (entry, mut header) = match header {
        Some(header) if header.xloadflags & XLF_KERNEL_64 == 0 => {
            return Err(refuse("it is a 32-bit kernel, without a 64-bit entry point".into()));
        }
        Some(header) => (loaded.kernel_load.0 + ENTRY_64, header),
        None => (loaded.kernel_load.0, vmlinux_header()),
    };
    // End of the memory that the kernel unpacks itself into; the initrd must lie above.
    let kernel_end = match header.init_size {
        0 => loaded.kernel_end,
        size => (header.pref_address.max(loaded.kernel_load.0) + u64::from(size)).max(loaded.kernel_end),
    };
    let low_ram_end = e820_entries(e820)
        .find(|entry| ({ entry.addr }) == HIGH_MEMORY)
        .map_or(0, |entry| entry.addr + entry.size);
    if kernel_end > low_ram_end {
        return Err(refuse(format!(
            "it needs memory up to {kernel_end:#x}, the guest's ends at {low_ram_end:#x}"
        )));
    }

    header.type_of_loader = LOADER_OTHER;
    header.cmd_line_ptr = COMMAND_LINE as u32;
    let limit = if header.cmdline_size == 0 { COMMAND_LINE_MAX } else { header.cmdline_size as usize };
    write_command_line(memory, command_line, limit)?;
    if let Some(initrd) = initrd {
        let top = match header.initrd_addr_max {
            0 => low_ram_end,
            max => low_ram_end.min(u64::from(max) + 1),
        };
        let (start, size) = load_initrd(memory, initrd, kernel_end, top)?;
        (header.ramdisk_image, header.ramdisk_size) = (start as u32, size as u32);
    }

    let mut params = boot_params { hdr: header, ..Default::default() };
    for (slot, entry) in params.e820_table.iter_mut().zip(e820_entries(e820)) {
        *slot = entry;
        params.e820_entries += 1;
    }
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(ZERO_PAGE)), memory)
        .map_err(|error| refuse(error.to_string()))?;
    write_tables(memory).map_err(|error| refuse(error.to_string()))?;
    Ok(entry)
}

fn open(path: &Path, what: &'static str) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Read { what, path: path.to_owned(), source })
}

/// Loads a bzImage or, failing that, an ELF kernel. Returns the setup header of a bzImage.
fn load_image(
    memory: &GuestMemoryMmap,
    file: &mut File,
) -> Result<(KernelLoaderResult, Option<setup_header>), String> {
    match BzImage::load(memory, None, file, Some(GuestAddress(HIGH_MEMORY))) {
        Ok(loaded) => Ok((loaded, loaded.setup_header)),
        Err(bzimage) => match Elf::load(memory, None, file, Some(GuestAddress(HIGH_MEMORY))) {
            Ok(loaded) => Ok((loaded, None)),
            Err(elf) => Err(format!("as a bzImage: {bzimage}; as a vmlinux: {elf}")),
        },
    }
}

/// Setup header for a vmlinux, which has none, with the fields that the kernel reads.
fn vmlinux_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x20f,
        kernel_alignment: 0x100_0000,
        ..Default::default()
    }
}

fn write_command_line(memory: &GuestMemoryMmap, command_line: &str, limit: usize) -> Result<(), Error> {
    let length = command_line.len();
    let error = || Error::CommandLine { length, limit };
    if length > limit || command_line.contains('\0') {
        return Err(error());
    }
    let mut bytes = command_line.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(COMMAND_LINE)).map_err(|_| error())
}

/// Loads the initrd as high as possible between `bottom` and `top`. Returns its address and size.
fn load_initrd(memory: &GuestMemoryMmap, path: &Path, bottom: u64, top: u64) -> Result<(u64, u64), Error> {
    const WHAT: &str = "the initrd";
    let read_error = |source| Error::Read { what: WHAT, path: PathBuf::from(path), source };
    let mut file = open(path, WHAT)?;
    let size = file.metadata().map_err(read_error)?.len();
    let does_not_fit = || Error::InitrdSize { path: path.to_owned(), size };
    let start = top.checked_sub(size).ok_or_else(does_not_fit)? & !(PAGE - 1);
    if start < bottom {
        return Err(does_not_fit());
    }
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, size as usize)
        .map_err(|error| read_error(std::io::Error::other(error)))?;
    Ok((start, size))
}

/// The entries of an e820 map in the firmware's format: 20 bytes each.
fn e820_entries(e820: &[u8]) -> impl Iterator<Item = boot_e820_entry> {
    e820.chunks_exact(20).map(|entry| boot_e820_entry {
        addr: u64::from_le_bytes(entry[..8].try_into().unwrap()),
        size: u64::from_le_bytes(entry[8..16].try_into().unwrap()),
        r#type: u32::from_le_bytes(entry[16..].try_into().unwrap()),
    })
}

/// Writes the GDT, and page tables that map the lowest 4 GiB one to one in pages of 2 MiB.
pub(crate) fn write_tables(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    const CODE_64: u64 = 0x00af_9b00_0000_ffff;
    const DATA: u64 = 0x00cf_9300_0000_ffff;
    let put = |address: u64, value: u64| memory.write_obj(value.to_le(), GuestAddress(address));
    for (slot, descriptor) in [0, 0, CODE_64, DATA].into_iter().enumerate() {
        put(GDT + 8 * slot as u64, descriptor)?;
    }
    let (level_3, level_2) = (PAGE_TABLES + PAGE, PAGE_TABLES + 2 * PAGE);
    put(PAGE_TABLES, level_3 | PRESENT_WRITABLE)?;
    for gib in 0..4 {
        put(level_3 + 8 * gib, (level_2 + gib * PAGE) | PRESENT_WRITABLE)?;
    }
    for large_page in 0..4 * 512 {
        put(level_2 + 8 * large_page, large_page << 21 | PRESENT_WRITABLE | LARGE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(size: u64) -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap()
    }

    fn e820(size: u64) -> Vec<u8> {
        let mut map = Vec::new();
        for (start, end, kind) in [(0, 0xa_0000, 1u32), (0xa_0000, MIB, 2), (MIB, size, 1)] {
            map.extend(u64::to_le_bytes(start));
            map.extend(u64::to_le_bytes(end - start));
            map.extend(kind.to_le_bytes());
        }
        map
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// The smallest bzImage: a setup sector pair and a page of kernel.
    fn bzimage(xloadflags: u16) -> Vec<u8> {
        let mut image = vec![0; 1024 + 4096];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x202, b"HdrS\x0f\x02");
        put(0x211, &[1]);
        put(0x214, &0x10_0000u32.to_le_bytes());
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x236, &xloadflags.to_le_bytes());
        put(0x238, &255u32.to_le_bytes());
        put(0x258, &0x100_0000u64.to_le_bytes());
        put(0x260, &0x10_0000u32.to_le_bytes());
        put(1024, b"KERNEL");
        image
    }

    #[test]
    fn a_bzimage_is_entered_in_64_bits_with_its_zero_page() {
        let memory = memory(64 * MIB);
        let (kernel, initrd) = (file(&bzimage(XLF_KERNEL_64)), file(&[7; 5000]));
        let entry =
            load(&memory, &e820(64 * MIB), kernel.path(), Some(initrd.path()), "console=ttyS0").unwrap();
        assert_eq!(entry, 0x10_0200);
        let mut text = [0; 6];
        memory.read_slice(&mut text, GuestAddress(0x10_0000)).unwrap();
        assert_eq!(&text, b"KERNEL");
        let params: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        assert_eq!((params.e820_entries, { params.e820_table[2].size }), (3, 63 * MIB));
        let header = params.hdr;
        assert_eq!((header.type_of_loader, { header.ramdisk_size }), (0xff, 5000));
        let initrd_start = u64::from(header.ramdisk_image);
        assert_eq!(initrd_start, 64 * MIB - 2 * PAGE);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(initrd_start + 4999)).unwrap(), 7);
        let mut line = [0; 14];
        memory.read_slice(&mut line, GuestAddress(u64::from(header.cmd_line_ptr))).unwrap();
        assert_eq!(&line, b"console=ttyS0\0");
    }

    #[test]
    fn the_lowest_4_gib_are_mapped_one_to_one() {
        let memory = memory(MIB);
        write_tables(&memory).unwrap();
        let entry = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        for address in [0, 0x10_0200, 0x3fff_ffff, 0xdead_beef, 0xffff_fff0] {
            let pdpt = entry(PAGE_TABLES) & !0xfff;
            let pd = entry(pdpt + 8 * (address >> 30)) & !0xfff;
            let page = entry(pd + 8 * (address >> 21 & 511));
            assert_eq!((page & !0x1f_ffff, page & 0x83), (address & !0x1f_ffff, 0x83));
        }
    }

    #[test]
    fn files_that_cannot_be_booted_are_refused_with_the_reason() {
        let memory = memory(64 * MIB);
        let try_load = |kernel: &[u8], e820: &[u8], line: &str| {
            load(&memory, e820, file(kernel).path(), None, line).unwrap_err().to_string()
        };
        assert!(try_load(b"#!/bin/sh", &e820(64 * MIB), "").contains("as a bzImage"));
        assert!(try_load(&bzimage(0), &e820(64 * MIB), "").contains("32-bit"));
        assert!(try_load(&bzimage(1), &e820(16 * MIB), "").contains("memory"));
        assert!(try_load(&bzimage(1), &e820(64 * MIB), &"x".repeat(256)).contains("256 bytes"));
        assert!(try_load(&bzimage(1), &e820(64 * MIB), "a\0b").contains("NUL"));
    }

    #[test]
    fn an_initrd_that_would_overlap_the_kernel_is_refused() {
        let memory = memory(64 * MIB);
        let (kernel, initrd) = (file(&bzimage(XLF_KERNEL_64)), file(&vec![0; 2 * MIB as usize]));
        let error = load(&memory, &e820(18 * MIB), kernel.path(), Some(initrd.path()), "").unwrap_err();
        assert!(matches!(error, Error::InitrdSize { size: 0x20_0000, .. }), "{error}");
    }
}
