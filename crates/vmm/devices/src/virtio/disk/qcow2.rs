//! qcow2 images: vmd's vioqcow2.
//!
//! Crate `imago`, by a maintainer of the format, reads and writes the images, in its synchronous
//! variant. This module adds vmd's refusals, and opens base images where vmd finds them, never for
//! writing.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};

use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, qcow2::Qcow2};

use super::{
    format::QCOW2_MAGIC,
    storage::{Disk, DiskError},
};

/// Length of the part of the header that vmd reads.
const HEADER: usize = 104;
/// Incompatible features known to vmd: dirty and corrupt.
const KNOWN_FEATURES: u64 = 0b11;
/// Largest number of entries of the L1 table: 32 MiB, QEMU's limit.
const MAX_L1_ENTRIES: u32 = 4 << 20;
/// Offset in the file in an entry of the L1 table or, if not [`COMPRESSED`], of an L2 table.
const HOST_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// L2 entry: the cluster is compressed, and fewer bits are its offset.
const COMPRESSED: u64 = 1 << 62;
/// Largest number of images in a backing chain (`VM_MAX_BASE_PER_DISK`).
const MAX_DEPTH: usize = 4;
/// Length of the longest base name in bytes (`PATH_MAX` on OpenBSD without the terminator).
const MAX_BASE_NAME: u32 = 1022;

type Image = FormatAccess<imago::file::File>;

/// A qcow2 image with its base images.
#[derive(Debug)]
pub struct Qcow2Disk {
    image: Image,
}

impl Qcow2Disk {
    /// Opens the image at `path`; `file` is the same file, open at least for reading.
    pub fn open(path: &Path, file: &File, writable: bool) -> Result<Self, DiskError> {
        Ok(Self { image: open(path, file, writable, None, 1)? })
    }
}

fn open(
    path: &Path,
    file: &File,
    writable: bool,
    upper_cluster_bits: Option<u32>,
    depth: usize,
) -> Result<Image, DiskError> {
    let failed = |source| DiskError::Qcow2 { path: path.to_owned(), source };
    let refused = |reason: String| DiskError::Refused { path: path.to_owned(), reason };

    let header = Header::read(file).map_err(failed)?;
    header.check().map_err(refused)?;
    if let Some(missing) = header.missing(file).map_err(failed)? {
        return Err(DiskError::Truncated { path: path.to_owned(), missing });
    }
    if upper_cluster_bits.is_some_and(|bits| bits != header.cluster_bits) {
        return Err(refused("its clusters are not as large as those of the image above it".into()));
    }
    let base = match header.base(path, file).map_err(failed)? {
        None => None,
        Some(_) if depth == MAX_DEPTH => {
            return Err(refused(format!("more than {MAX_DEPTH} images in the backing chain")));
        }
        Some(base) => {
            let lower = File::open(&base).map_err(|source| DiskError::Open { path: base.clone(), source })?;
            Some(open(&base, &lower, false, Some(header.cluster_bits), depth + 1)?)
        }
    };
    let image = Qcow2::<imago::file::File>::builder_path(path)
        .write(writable)
        .backing(base)
        .open(DenyOnlyImplicit::new(path, writable))
        .map_err(failed)?;
    Ok(FormatAccess::new(image))
}

/// Whether the qcow2 image `file` has a base image.
pub(super) fn has_base(file: &File) -> io::Result<bool> {
    // The header of a truncated image is zero where it ends: opening the image refuses it.
    let mut length = [0; 4];
    read_or_zero(file, &mut length, 16)?;
    Ok(u32::from_be_bytes(length) > 0)
}

/// Reads into `bytes` at `offset`, zeroes beyond the end of the file.
fn read_or_zero(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[done..].fill(0);
    Ok(())
}

/// The entries of a table of `bytes` bytes at `offset`.
fn table(file: &File, offset: u64, bytes: usize) -> io::Result<impl Iterator<Item = u64>> {
    let mut table = vec![0; bytes];
    read_or_zero(file, &mut table, offset)?;
    Ok((0..bytes / 8).map(move |n| {
        let entry = table[8 * n..][..8].try_into().expect("eight bytes");
        u64::from_be_bytes(entry)
    }))
}

/// Opens the image itself for imago, and no file that the image names.
struct DenyOnlyImplicit<'a> {
    path: &'a Path,
    writable: bool,
    opened: bool,
}

impl<'a> DenyOnlyImplicit<'a> {
    const fn new(path: &'a Path, writable: bool) -> Self {
        Self { path, writable, opened: false }
    }
}

impl imago::format::gate::ImplicitOpenGate<imago::file::File> for DenyOnlyImplicit<'_> {
    fn open_format<F: FormatDriverBuilder<imago::file::File>>(&mut self, builder: F) -> io::Result<Image> {
        DenyImplicitOpenGate::default().open_format(builder)
    }

    fn open_storage(&mut self, options: imago::storage::StorageOpenOptions) -> io::Result<imago::file::File> {
        use imago::storage::Storage;
        if self.opened {
            return DenyImplicitOpenGate::default().open_storage(options);
        }
        self.opened = true;
        imago::file::File::open(options.filename(self.path).write(self.writable))
    }
}

/// The header fields that vmd reads.
struct Header {
    bytes: [u8; HEADER],
    version: u32,
    base_offset: u64,
    base_length: u32,
    cluster_bits: u32,
    encryption: u32,
    l1_entries: u32,
    l1_offset: u64,
    refcount_offset: u64,
    refcount_clusters: u32,
    incompatible: u64,
    refcount_order: u32,
}

impl Header {
    fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; HEADER];
        file.read_exact_at(&mut bytes, 0)?;
        let u32_at = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        Ok(Self {
            version: u32_at(4),
            base_offset: u64_at(8),
            base_length: u32_at(16),
            cluster_bits: u32_at(20),
            encryption: u32_at(32),
            l1_entries: u32_at(36),
            l1_offset: u64_at(40),
            refcount_offset: u64_at(48),
            refcount_clusters: u32_at(56),
            incompatible: u64_at(72),
            refcount_order: u32_at(96),
            bytes,
        })
    }

    /// Checks whether vmd accepts the image (`qc2_open` in vioqcow2.c).
    ///
    /// vmd also reads the fields of version 3 from version 2 images, whose headers are shorter.
    /// There it finds QEMU's extensions, which end in zeroes, as a refcount width of one bit, so it
    /// refuses such images although version 2 passes the version check.
    fn check(&self) -> Result<(), String> {
        if self.bytes[..4] != QCOW2_MAGIC {
            return Err("the qcow2 magic number is missing".into());
        }
        if self.incompatible & !KNOWN_FEATURES != 0 {
            let unknown = self.incompatible & !KNOWN_FEATURES;
            return Err(format!("unknown incompatible features {unknown:#x}"));
        }
        if self.refcount_order != 4 {
            let version2 = if self.version == 2 { " (as every version 2 image)" } else { "" };
            return Err(format!("its refcounts are not 16 bits wide{version2}"));
        }
        if !matches!(self.version, 2 | 3) {
            return Err(format!("version {} is unknown", self.version));
        }
        if self.encryption != 0 {
            return Err("it is encrypted".into());
        }
        if !(9..=21).contains(&self.cluster_bits) || self.l1_entries > MAX_L1_ENTRIES {
            return Err("its header has sizes that no qcow2 image has".into());
        }
        if self.base_length > MAX_BASE_NAME {
            return Err("the name of its base image is too long".into());
        }
        Ok(())
    }

    /// The first of the image's parts that lies beyond the end of `file`, where all drivers read
    /// zeroes; `None` if the image is whole. The last cluster may be short.
    fn missing(&self, mut file: &File) -> io::Result<Option<&'static str>> {
        let length = file.seek(SeekFrom::End(0))?;
        let cluster = 1u64 << self.cluster_bits;
        let end = length.next_multiple_of(cluster);
        let is_whole = |offset: u64, bytes: u64| offset.checked_add(bytes).is_some_and(|at| at <= end);
        let l1_bytes = 8 * u64::from(self.l1_entries);
        if !is_whole(self.refcount_offset, u64::from(self.refcount_clusters) * cluster) {
            return Ok(Some("its refcount table"));
        }
        if !is_whole(self.l1_offset, l1_bytes) {
            return Ok(Some("its L1 table"));
        }
        let compressed_offset = (1 << (62 - (self.cluster_bits - 8))) - 1;
        // Each table is read once, however many entries of the L1 table name it.
        let mut seen = HashSet::new();
        for entry in table(file, self.l1_offset, l1_bytes as usize)? {
            let l2_offset = entry & HOST_OFFSET;
            if l2_offset == 0 || !seen.insert(l2_offset) {
                continue;
            }
            if !is_whole(l2_offset, cluster) {
                return Ok(Some("one of its L2 tables"));
            }
            let mut data = table(file, l2_offset, cluster as usize)?
                .map(|entry| entry & if entry & COMPRESSED == 0 { HOST_OFFSET } else { compressed_offset });
            if data.any(|offset| offset >= length) {
                return Ok(Some("some of its data"));
            }
        }
        Ok(None)
    }

    /// The base image, relative to the image that names it.
    fn base(&self, path: &Path, file: &File) -> io::Result<Option<PathBuf>> {
        if self.base_length == 0 {
            return Ok(None);
        }
        let mut name = vec![0; self.base_length as usize];
        file.read_exact_at(&mut name, self.base_offset)?;
        let name = Path::new(OsStr::from_bytes(&name));
        Ok(Some(path.parent().map_or_else(|| name.to_owned(), |directory| directory.join(name))))
    }
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.image.size()
    }

    /// A read beyond the end returns no bytes at all, unlike on a raw image (`qc2_pread`).
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.holds(offset, buffer.len()) {
            return Ok(0);
        }
        let length = buffer.len();
        self.image.read(buffer, offset)?;
        Ok(length)
    }

    /// Writes `buffer` and the image's changed tables, as vmd does (`qc2_pwrite`): no guest can ask
    /// for it later, because vioblk has no FLUSH.
    fn write_at(&mut self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        if !self.holds(offset, buffer.len()) {
            return Ok(0);
        }
        self.image.write(buffer, offset)?;
        self.image.flush()?;
        Ok(buffer.len())
    }
}

impl Qcow2Disk {
    fn holds(&self, offset: u64, length: usize) -> bool {
        offset.checked_add(length as u64).is_some_and(|end| end <= self.size())
    }
}
