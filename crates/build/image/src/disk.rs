//! The disk's layout: an MBR with syslinux's boot code, a FAT partition that boots and an ext4 one that is the root.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use mbrman::{BOOT_ACTIVE, BOOT_INACTIVE, CHS, MBR, MBRPartitionEntry};

use crate::{
    error::{Error, Result},
    identity::Identity,
    size::Size,
};

/// SeaBIOS, vmd and mbrman all count in these.
const SECTOR: u32 = 512;
/// Partitions start at whole MiB, which suits every block size beneath.
const ALIGNMENT: u64 = 1 << 20;
/// MBR partition types: FAT16 by LBA, and Linux.
const TYPE_FAT16_LBA: u8 = 0x0e;
const TYPE_LINUX: u8 = 0x83;
/// Bytes of boot code in an MBR, before the disk signature.
const BOOT_CODE: usize = 440;

/// Where distributions keep syslinux's boot code for an MBR; Debian first.
const MBR_BIN: [&str; 3] =
    ["/usr/lib/syslinux/mbr/mbr.bin", "/usr/lib/syslinux/bios/mbr.bin", "/usr/share/syslinux/mbr.bin"];

/// A partition's place on the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

/// What is where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) size: Size,
    pub(crate) boot: Region,
    pub(crate) root: Region,
}

impl Layout {
    /// Lays out a disk of `size` whose boot partition must take `boot` bytes of files and whose root `root` bytes.
    pub(crate) fn new(size: Size, boot: u64, root: u64) -> Result<Self> {
        // Three times the files: a kernel is replaced by writing the new one beside the old.
        let boot_length = (boot * 3).next_multiple_of(ALIGNMENT).max(64 << 20);
        // ext4's own structures take a few percent and a journal, and a root that is full from the start is of no use.
        let root_length = (root + root / 8).next_multiple_of(ALIGNMENT) + (64 << 20);
        let needed = Size::from_bytes(ALIGNMENT + boot_length + root_length);
        if size < needed {
            return Err(Error::TooSmall { size, needed });
        }
        let boot = Region { start: ALIGNMENT, length: boot_length };
        let start = boot.start + boot.length;
        Ok(Self { size, boot, root: Region { start, length: size.bytes() - start } })
    }
}

/// The PARTUUID that Linux gives the root partition: the disk signature and the partition's number.
pub(crate) fn root_partuuid(identity: &Identity) -> String {
    format!("{:08x}-02", u32::from_le_bytes(signature(identity)))
}

fn signature(identity: &Identity) -> [u8; 4] {
    identity.bytes("disk signature")
}

/// Reads the boot code that the disk starts with.
pub(crate) fn boot_code() -> Result<[u8; BOOT_CODE]> {
    let path = MBR_BIN.iter().map(PathBuf::from).find(|p| p.is_file()).ok_or_else(|| Error::MissingFile {
        file: "syslinux's mbr.bin",
        searched: MBR_BIN.to_vec(),
        package: "syslinux-common",
    })?;
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    let mut code = [0; BOOT_CODE];
    code.get_mut(..bytes.len())
        .ok_or_else(|| {
            Error::setting("boot code", &path.display().to_string(), "it is longer than 440 bytes")
        })?
        .copy_from_slice(&bytes);
    Ok(code)
}

/// Makes the file `path` (which exists) a sparse disk of the layout's size with its partition table.
pub(crate) fn partition(
    path: &Path,
    layout: &Layout,
    code: &[u8; BOOT_CODE],
    identity: &Identity,
) -> Result<()> {
    let write = |e| Error::io("write", path)(e);
    let mut file = File::options().read(true).write(true).open(path).map_err(write)?;
    file.set_len(layout.size.bytes()).map_err(write)?;
    let table = |e: mbrman::Error| write(std::io::Error::other(e));
    let mut mbr = MBR::new_from(&mut file, SECTOR, signature(identity)).map_err(table)?;
    mbr.header.bootstrap_code = *code;
    mbr[1] = entry(layout.boot, BOOT_ACTIVE, TYPE_FAT16_LBA);
    mbr[2] = entry(layout.root, BOOT_INACTIVE, TYPE_LINUX);
    file.seek(SeekFrom::Start(0)).map_err(write)?;
    mbr.write_into(&mut file).map_err(table)?;
    file.flush().map_err(write)
}

/// The sectors in so many bytes. [`Size`] keeps disks within the reach of 32 bits.
fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / u64::from(SECTOR)).expect("disks have at most 2 TiB")
}

fn entry(region: Region, boot: u8, sys: u8) -> MBRPartitionEntry {
    MBRPartitionEntry {
        boot,
        // Nothing that boots here reads cylinders, heads and sectors.
        first_chs: CHS::empty(),
        sys,
        last_chs: CHS::empty(),
        starting_lba: sectors(region.start),
        sectors: sectors(region.length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_follow_each_other_to_the_end_of_the_disk() {
        let layout = Layout::new("4G".parse().unwrap(), 4 << 20, 16 << 20).unwrap();
        assert_eq!(layout.boot, Region { start: 1 << 20, length: 64 << 20 });
        assert_eq!(layout.root, Region { start: 65 << 20, length: (4096 - 65) << 20 });
        let large = Layout::new("4G".parse().unwrap(), 50 << 20, 16 << 20).unwrap();
        assert_eq!(large.boot.length, 150 << 20);
    }

    #[test]
    fn a_disk_that_is_too_small_is_told_what_would_do() {
        let ask = |size: Size| Layout::new(size, 4 << 20, 16 << 20);
        let Err(Error::TooSmall { needed, .. }) = ask("100M".parse().unwrap()) else { panic!() };
        assert!(ask(needed).is_ok());
        assert!(ask(Size::from_bytes(needed.bytes() - 1024 * 1024)).is_err());
    }

    #[test]
    fn the_table_reads_back_and_the_rest_is_a_hole() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        let layout = Layout::new("4G".parse().unwrap(), 4 << 20, 16 << 20).unwrap();
        let identity = Identity::reproducible(1, "x");
        partition(file.path(), &layout, &[0x90; BOOT_CODE], &identity).unwrap();

        let metadata = file.path().metadata().unwrap();
        assert_eq!(metadata.len(), 4 << 30);
        assert!(metadata.blocks() <= 16, "{} blocks", metadata.blocks());
        let mbr = MBR::read_from(&mut File::open(file.path()).unwrap(), 512).unwrap();
        assert_eq!(mbr.header.bootstrap_code, [0x90; BOOT_CODE]);
        assert_eq!(mbr.header.boot_signature, [0x55, 0xaa]);
        assert_eq!(
            (mbr[1].boot, mbr[1].sys, mbr[1].starting_lba, mbr[1].sectors),
            (0x80, 0x0e, 2048, 131_072)
        );
        assert_eq!((mbr[2].boot, mbr[2].sys, mbr[2].starting_lba), (0, 0x83, 133_120));
        assert_eq!(u64::from(mbr[2].starting_lba + mbr[2].sectors) * 512, 4 << 30);
        let expected = format!("{:08x}-02", u32::from_le_bytes(mbr.header.disk_signature));
        assert_eq!(root_partuuid(&identity), expected);
    }

    #[test]
    fn the_installed_boot_code_fits() {
        assert_ne!(boot_code().unwrap(), [0; BOOT_CODE]);
    }
}
