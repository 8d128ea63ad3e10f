//! The storage behind a disk as the device models use it, and errors of opening an image.

use std::{io, path::PathBuf};

use thiserror::Error;

/// The storage behind a disk.
pub trait Disk: Send {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Reads into `buffer` at `offset` (bytes from the start). Returns the number of bytes read,
    /// fewer than the buffer's length at the end of the disk.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes `buffer` at `offset` (bytes from the start). Returns the number of bytes written.
    fn write_at(&mut self, buffer: &[u8], offset: u64) -> io::Result<usize>;
}

/// Errors of opening a disk image.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The file cannot be opened or read.
    #[error("cannot open the disk image {}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The qcow2 image is damaged, or its base cannot be opened.
    #[error("cannot use the qcow2 image {}", path.display())]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// The error of the format driver.
        source: io::Error,
    },
    /// A qcow2 image whose format was detected, not given, and which has a base image.
    #[error("the disk image {} names a base image, and its format was not given", path.display())]
    BaseOfDetected {
        /// The image.
        path: PathBuf,
    },
    /// A qcow2 image that is shorter than its tables say.
    #[error("the qcow2 image {} is truncated: it ends before {missing}", path.display())]
    Truncated {
        /// The image.
        path: PathBuf,
        /// What is missing.
        missing: &'static str,
    },
    /// A qcow2 image that vmd refuses.
    #[error("vmd refuses the qcow2 image {}: {reason}", path.display())]
    Refused {
        /// The image.
        path: PathBuf,
        /// The reason of the refusal.
        reason: String,
    },
}
