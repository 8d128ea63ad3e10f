//! Disk images: the storage behind disks and the CD-ROM.

mod format;
mod qcow2;
mod raw;
mod storage;

use std::{
    fs::{File, OpenOptions},
    path::Path,
};

use vmd_release::DiskFormat;

pub use self::{
    qcow2::Qcow2Disk,
    raw::RawDisk,
    storage::{Disk, DiskError},
};

/// Opens an image; with `format` `None` the format is detected.
///
/// A guest that has the image as a raw disk can write any header. An image whose format is detected
/// must therefore not name other files: one with a base image is refused.
pub fn open(path: &Path, format: Option<DiskFormat>, writable: bool) -> Result<Box<dyn Disk>, DiskError> {
    let (file, format) = open_file(path, format, writable)?;
    Ok(match format {
        DiskFormat::Raw => {
            Box::new(RawDisk::new(file).map_err(|source| DiskError::Open { path: path.to_owned(), source })?)
        }
        DiskFormat::Qcow2 => Box::new(Qcow2Disk::open(path, &file, writable)?),
    })
}

/// Checks whether [`open`] would succeed and returns the image's format. Writes nothing and leaves
/// nothing open.
pub fn check(path: &Path, format: Option<DiskFormat>, writable: bool) -> Result<DiskFormat, DiskError> {
    let (file, format) = open_file(path, format, writable)?;
    if format == DiskFormat::Qcow2 {
        Qcow2Disk::open(path, &file, false)?;
    }
    Ok(format)
}

fn open_file(
    path: &Path,
    format: Option<DiskFormat>,
    writable: bool,
) -> Result<(File, DiskFormat), DiskError> {
    let failed = |source| DiskError::Open { path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(writable).open(path).map_err(failed)?;
    if let Some(format) = format {
        return Ok((file, format));
    }
    let format = format::probe(&file).map_err(failed)?;
    if format == DiskFormat::Qcow2 && qcow2::has_base(&file).map_err(failed)? {
        return Err(DiskError::BaseOfDetected { path: path.to_owned() });
    }
    Ok((file, format))
}
