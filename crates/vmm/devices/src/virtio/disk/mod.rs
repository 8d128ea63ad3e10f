//! What disks are made of: image files.

mod qcow2;
mod raw;

use std::{
    fmt,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use miette::Diagnostic;
use thiserror::Error;

pub use qcow2::Qcow2Disk;
pub use raw::RawDisk;

/// The first bytes of a qcow2 image.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// The storage behind a disk.
pub trait Disk: Send {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Reads at `offset` (bytes from the start) and returns how many bytes there were, fewer than asked for at the
    /// end.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at `offset` and returns how many bytes were taken.
    fn write_at(&mut self, buffer: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes sure that what was written survives the loss of power.
    fn flush(&mut self) -> io::Result<()>;
}

/// The format of an image, as `vmctl create` and vm.conf(5) name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk's bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl Format {
    /// By the image's first bytes, as vmctl(8) tells where none is named.
    pub fn probe(file: &File) -> io::Result<Self> {
        let mut magic = [0; QCOW2_MAGIC.len()];
        match file.read_exact_at(&mut magic, 0) {
            Ok(()) if magic == QCOW2_MAGIC => Ok(Self::Qcow2),
            Ok(()) => Ok(Self::Raw),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Self::Raw),
            Err(error) => Err(error),
        }
    }

    /// `raw` or `qcow2`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A disk format that vmd does not have.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is no disk format of vmd; there are raw and qcow2")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        [Self::Raw, Self::Qcow2]
            .into_iter()
            .find(|f| f.as_str() == s)
            .ok_or_else(|| UnknownFormat(s.to_owned()))
    }
}

/// Why an image cannot be used.
#[derive(Debug, Diagnostic, Error)]
pub enum DiskError {
    /// The file cannot be opened or read.
    #[error("cannot open the disk image {}", path.display())]
    #[diagnostic(help("check the path and the permissions; vmd opens disks for reading and writing"))]
    Open {
        /// The image.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The qcow2 image is damaged, or its base cannot be opened.
    #[error("cannot use the qcow2 image {}", path.display())]
    #[diagnostic(help(
        "`qemu-img check` tells whether the image is sound; its base image must be there, too"
    ))]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A qcow2 image that vmd refuses.
    #[error("vmd refuses the qcow2 image {}: {reason}", path.display())]
    #[diagnostic(help(
        "convert it: `qemu-img convert -O qcow2 -o compat=1.1,refcount_bits=16,extended_l2=off OLD NEW`"
    ))]
    Refused {
        /// The image.
        path: PathBuf,
        /// What vmd does not like.
        reason: String,
    },
}

/// Opens an image; the format is probed where `format` is `None`.
pub fn open(path: &Path, format: Option<Format>, writable: bool) -> Result<Box<dyn Disk>, DiskError> {
    let (file, format) = open_file(path, format, writable)?;
    Ok(match format {
        Format::Raw => {
            Box::new(RawDisk::new(file).map_err(|source| DiskError::Open { path: path.to_owned(), source })?)
        }
        Format::Qcow2 => Box::new(Qcow2Disk::open(path, &file, writable)?),
    })
}

/// Whether [`open`] would take the image, and in which format. Nothing is written, and nothing stays open.
pub fn check(path: &Path, format: Option<Format>, writable: bool) -> Result<Format, DiskError> {
    let (file, format) = open_file(path, format, writable)?;
    if format == Format::Qcow2 {
        Qcow2Disk::open(path, &file, false)?;
    }
    Ok(format)
}

fn open_file(path: &Path, format: Option<Format>, writable: bool) -> Result<(File, Format), DiskError> {
    let failed = |source| DiskError::Open { path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(writable).open(path).map_err(failed)?;
    let format = match format {
        Some(format) => format,
        None => Format::probe(&file).map_err(failed)?,
    };
    Ok((file, format))
}
