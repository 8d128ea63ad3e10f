//! Formats of disk images.

use std::{fmt, fs::File, io, os::unix::fs::FileExt, str::FromStr};

use thiserror::Error;

/// The first bytes of a qcow2 image.
pub(super) const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// The format of a disk image, as `vmctl create` and vm.conf(5) name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl DiskFormat {
    /// Detects the format from the image's first bytes, as vmctl(8) does if none is given.
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

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An unknown disk format.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("unknown disk format `{0}`: vmd supports raw and qcow2")]
pub struct UnknownDiskFormat(String);

impl FromStr for DiskFormat {
    type Err = UnknownDiskFormat;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        [Self::Raw, Self::Qcow2]
            .into_iter()
            .find(|f| f.as_str() == s)
            .ok_or_else(|| UnknownDiskFormat(s.to_owned()))
    }
}
