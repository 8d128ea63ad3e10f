//! File types by their first bytes.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Number of bytes read: up to the end of a bzImage's magic number.
const LENGTH: u64 = 0x206;

/// The first bytes of a file, or all bytes of a shorter one.
pub(crate) struct FileMagic(Vec<u8>);

impl FileMagic {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut start = Vec::new();
        File::open(path)?.take(LENGTH).read_to_end(&mut start)?;
        Ok(Self(start))
    }

    /// By its setup header (Documentation/arch/x86/boot.rst).
    pub(crate) fn is_bzimage(&self) -> bool {
        self.0.get(0x202..) == Some(b"HdrS")
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn is_elf(&self) -> bool {
        self.0.starts_with(b"\x7fELF")
    }
}
