//! The size of a disk.

use std::fmt;

const MIB: u64 = 1 << 20;

/// Size of a disk in bytes: whole MiB, as vmctl(8) makes disks, from 1 MiB to 2 TiB (the reach of an MBR's sector
/// numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// `bytes` rounded up to whole MiB.
    pub fn from_bytes(bytes: u64) -> Self {
        Self(bytes.div_ceil(MIB) * MIB)
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1 << 30) {
            write!(f, "{}G", self.0 >> 30)
        } else {
            write!(f, "{}M", self.0 >> 20)
        }
    }
}
