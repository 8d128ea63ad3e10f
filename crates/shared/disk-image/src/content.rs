//! The format of an image by its content.

use std::{fs::File, io};

use crate::file::read_at;

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A disk's bytes, or anything else that has no signature.
    Raw,
    /// A qcow2 image of any version.
    Qcow2,
    /// An image of another program.
    Foreign {
        /// The format's usual name.
        name: &'static str,
        /// qemu-img's name for it.
        qemu: &'static str,
    },
    /// A compressed file or an archive.
    Packed {
        /// What it is, after "is".
        name: &'static str,
        /// The command that unpacks it, without the file's name.
        unpack: &'static str,
    },
}

const fn foreign(name: &'static str, qemu: &'static str) -> Content {
    Content::Foreign { name, qemu }
}

const fn packed(name: &'static str, unpack: &'static str) -> Content {
    Content::Packed { name, unpack }
}

/// Signatures with their offsets in bytes. Version 1 of qcow has that of qcow2 and is told by its version.
const SIGNATURES: &[(usize, &[u8], Content)] = &[
    (0, b"QFI\xfb\0\0\0\x01", foreign("qcow (version 1)", "qcow")),
    (0, b"QFI\xfb", Content::Qcow2),
    (0, b"KDMV", foreign("VMDK", "vmdk")),
    (0, b"COWD", foreign("VMDK", "vmdk")),
    (0, b"# Disk DescriptorFile", foreign("VMDK", "vmdk")),
    (0x40, b"\x7f\x10\xda\xbe", foreign("VDI", "vdi")),
    (0, b"conectix", foreign("VHD", "vpc")),
    (0, b"vhdxfile", foreign("VHDX", "vhdx")),
    (0, b"QED\0", foreign("QED", "qed")),
    (0, b"WithoutFreeSpace", foreign("Parallels", "parallels")),
    (0, b"WithouFreSpacExt", foreign("Parallels", "parallels")),
    (0, b"\x1f\x8b", packed("compressed by gzip", "gzip -dk")),
    (0, b"\xfd7zXZ\0", packed("compressed by xz", "xz -dk")),
    (0, b"\x28\xb5\x2f\xfd", packed("compressed by zstd", "zstd -d")),
    (0, b"BZh", packed("compressed by bzip2", "bzip2 -dk")),
    (0, b"\x04\x22\x4d\x18", packed("compressed by lz4", "lz4 -d")),
    (0, b"PK\x03\x04", packed("a zip archive", "unzip")),
    (257, b"ustar", packed("a tar archive, as an OVA is", "tar -xf")),
];

/// Place of an ISO 9660 volume's identifier.
const ISO: (u64, &[u8; 5]) = (0x8001, b"CD001");

/// Tells the content of a file.
pub(crate) fn detect(file: &File) -> io::Result<Content> {
    let mut start = [0; 512];
    let read = read_at(file, &mut start, 0)?;
    let start = &start[..read];
    let found = SIGNATURES
        .iter()
        .find(|(offset, signature, _)| start.get(*offset..).is_some_and(|rest| rest.starts_with(signature)));
    // Code of a boot sector may begin with the bytes of a signature.
    let is_boot_sector = start.get(510..512) == Some(&[0x55, 0xaa]);
    match found {
        Some((_, _, Content::Packed { .. })) if is_boot_sector => {}
        Some((_, _, content)) => return Ok(*content),
        None => {}
    }
    Ok(Content::Raw)
}

/// Whether a raw file is an image of a CD-ROM.
pub(crate) fn is_iso(file: &File) -> io::Result<bool> {
    let mut identifier = [0; 5];
    let read = read_at(file, &mut identifier, ISO.0)?;
    Ok(read == identifier.len() && &identifier == ISO.1)
}

/// Whether a raw file ends as a fixed VHD does, which is the disk's bytes with a footer.
pub(crate) fn is_fixed_vhd(file: &File, length: u64) -> io::Result<bool> {
    let mut footer = [0; 8];
    Ok(length > 512 && read_at(file, &mut footer, length - 512)? == 8 && &footer == b"conectix")
}
