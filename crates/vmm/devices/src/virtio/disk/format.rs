//! Detection of a disk image's format.

use std::{fs::File, io, os::unix::fs::FileExt};

use vmd_release::DiskFormat;

/// The first bytes of a qcow2 image.
pub(super) const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Detects the format from the image's first bytes, as vmctl(8) does if none is given.
pub(super) fn probe(file: &File) -> io::Result<DiskFormat> {
    let mut magic = [0; QCOW2_MAGIC.len()];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == QCOW2_MAGIC => Ok(DiskFormat::Qcow2),
        Ok(()) => Ok(DiskFormat::Raw),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(DiskFormat::Raw),
        Err(error) => Err(error),
    }
}
