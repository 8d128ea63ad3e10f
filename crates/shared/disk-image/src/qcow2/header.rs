//! The header of a qcow2 image.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::file::read_at;

/// Length of the part that vmd reads, and of QEMU's field after it.
const LENGTH: usize = 105;
/// Bytes of a version 3 header that vmd reads.
const LENGTH_OF_VMD: usize = 104;
/// Sizes of clusters that the format allows, as powers of two.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Length of the longest base name in bytes (`PATH_MAX` on OpenBSD without the terminator).
const MAX_BASE_NAME: u32 = 1022;
/// Largest number of L1 entries that QEMU makes (32 MiB of them).
const MAX_L1: u32 = 4 << 20;

/// Incompatible features that vmd does not know, by bit.
const FEATURES: [(u64, &str); 3] = [
    (2, "keeps its data in another file"),
    (3, "is compressed with zstd or another new method"),
    (4, "has extended L2 entries"),
];
/// Incompatible features known to vmd: dirty and corrupt.
const KNOWN: u64 = 0b11;

/// What a header says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    version: u32,
    base_offset: u64,
    base_length: u32,
    /// Size of a cluster in bytes, as a power of two.
    pub(super) cluster_bits: u32,
    encryption: u32,
    /// Number of entries in the L1 table.
    pub(super) l1_entries: u32,
    /// Offset of the L1 table in bytes.
    pub(super) l1_offset: u64,
    features: u64,
    refcount_order: u32,
}

impl Header {
    /// Reads the header of a file of `length` bytes. The inner error says why the image cannot be looked through.
    pub(super) fn read(file: &File, length: u64) -> io::Result<Result<Self, String>> {
        let mut bytes = [0; LENGTH];
        if read_at(file, &mut bytes, 0)? < LENGTH_OF_VMD {
            return Ok(Err("the file is shorter".to_owned()));
        }
        let u32_at = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        let header = Self {
            version: u32_at(4),
            base_offset: u64_at(8),
            base_length: u32_at(16),
            cluster_bits: u32_at(20),
            encryption: u32_at(32),
            l1_entries: u32_at(36),
            l1_offset: u64_at(40),
            features: u64_at(72),
            refcount_order: u32_at(96),
        };
        let l1_end = header.l1_offset.checked_add(u64::from(header.l1_entries) * 8);
        Ok(if !CLUSTER_BITS.contains(&header.cluster_bits) {
            Err(format!("clusters of 2^{} bytes", header.cluster_bits))
        } else if header.l1_entries > MAX_L1 || l1_end.is_none_or(|end| end > length) {
            Err("the table of its clusters lies behind its end".to_owned())
        } else {
            Ok(header)
        })
    }

    /// Why vmd refuses the image (`qc2_open` in vioqcow2.c), each with what it does.
    pub(super) fn refusals(&self) -> Vec<(String, &'static str)> {
        const REFUSES: &str = "vmd does not start the VM";
        let mut refusals = Vec::new();
        match self.version {
            3 => {
                let known = FEATURES.iter().filter(|(bit, _)| self.features & 1 << bit != 0);
                refusals.extend(known.map(|(_, what)| ((*what).to_owned(), REFUSES)));
                let others =
                    FEATURES.iter().fold(self.features & !KNOWN, |rest, (bit, _)| rest & !(1 << bit));
                if others != 0 {
                    refusals.push((format!("has unknown features {others:#x}"), REFUSES));
                }
                if self.refcount_order != 4 {
                    let bits = 1_u64.checked_shl(self.refcount_order).unwrap_or_default();
                    refusals.push((format!("has refcounts of {bits} bits instead of 16"), REFUSES));
                }
            }
            // vmd reads fields from it that only version 3 has.
            2 => refusals.push(("has version 2 of the format (compat=0.10)".to_owned(), REFUSES)),
            version => refusals.push((format!("has the unknown version {version} of the format"), REFUSES)),
        }
        if self.encryption != 0 {
            refusals.push(("is encrypted".to_owned(), REFUSES));
        }
        if self.base_length > MAX_BASE_NAME {
            refusals.push(("names a base with too long a name".to_owned(), REFUSES));
        }
        refusals
    }

    /// Whether the L2 tables have entries of 16 bytes.
    pub(super) fn has_extended_entries(&self) -> bool {
        self.version >= 3 && self.features & 1 << 4 != 0
    }

    /// Whether clusters lie in another file.
    pub(super) fn has_data_file(&self) -> bool {
        self.version >= 3 && self.features & 1 << 2 != 0
    }

    /// Whether the image has a base.
    pub(super) fn names_base(&self) -> bool {
        self.base_length != 0
    }

    /// The path of the base image.
    pub(super) fn base(&self, file: &File, path: &Path) -> io::Result<Option<PathBuf>> {
        if self.base_length == 0 || self.base_length > MAX_BASE_NAME {
            return Ok(None);
        }
        let mut name = vec![0; self.base_length as usize];
        let read = read_at(file, &mut name, self.base_offset)?;
        name.truncate(read);
        Ok(Some(relative_to(path, Path::new(OsStr::from_bytes(&name)))))
    }
}

/// A base's path: relative to the image that names it.
fn relative_to(path: &Path, base: &Path) -> PathBuf {
    path.parent().map_or_else(|| base.to_owned(), |directory| directory.join(base))
}
