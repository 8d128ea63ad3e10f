//! The clusters of one image of a backing chain.

use std::{collections::HashSet, fs::File, io};

use super::header::Header;
use crate::file::read_at;

/// Bits of an entry that hold an offset of the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// An L2 entry of a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// An L2 entry of a cluster that reads as zeroes.
const ZERO: u64 = 1;

/// Bytes of L2 tables that are looked through: those of 8 TiB in clusters of 64 KiB. A guest that writes such a header
/// to its raw disk can name tables without end in the holes of a sparse file.
pub(super) const MAX_TABLES: u64 = 1 << 30;

/// One image of the chain.
pub(super) struct Layer {
    pub(super) header: Header,
    pub(super) file: File,
}

/// What looking through the L2 tables finds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Compressed clusters.
    pub(super) compressed: u64,
    /// Clusters and tables whose place is behind the file's end.
    pub(super) beyond: u64,
    /// Whether there are more tables than were looked through.
    pub(super) is_cut_short: bool,
}

impl Layer {
    /// Looks through the L2 tables of an image of `length` bytes, up to `most` bytes of them. Each is read once.
    pub(super) fn survey(&self, length: u64, most: u64) -> io::Result<Survey> {
        let mut survey = Survey::default();
        let mut table = vec![0; 1 << self.header.cluster_bits];
        let mut seen = HashSet::new();
        let mut left = most;
        for offset in self.l1()? {
            if offset == 0 || !seen.insert(offset) {
                continue;
            }
            if offset >= length {
                survey.beyond += 1;
                continue;
            }
            let Some(after) = left.checked_sub(table.len() as u64) else {
                survey.is_cut_short = true;
                break;
            };
            left = after;
            let read = read_at(&self.file, &mut table, offset)?;
            let stride = if self.header.has_extended_entries() { 16 } else { 8 };
            for entry in table[..read].chunks_exact(stride).map(entry) {
                if entry & COMPRESSED != 0 {
                    survey.compressed += 1;
                } else if !self.header.has_data_file() && entry & OFFSET >= length {
                    survey.beyond += 1;
                }
            }
        }
        Ok(survey)
    }

    /// The offsets of the L2 tables, 0 for those that are missing.
    fn l1(&self) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; self.header.l1_entries as usize * 8];
        let read = read_at(&self.file, &mut bytes, self.header.l1_offset)?;
        Ok(bytes[..read].chunks_exact(8).map(|bytes| entry(bytes) & OFFSET).collect())
    }

    /// The L2 entry of the cluster with this number; 0 if it has none.
    fn l2_entry(&self, cluster: u64) -> io::Result<u64> {
        let entries = 1_u64 << (self.header.cluster_bits - 3);
        let (table, index) = (cluster / entries, cluster % entries);
        if table >= u64::from(self.header.l1_entries) {
            return Ok(0);
        }
        let mut bytes = [0; 8];
        read_at(&self.file, &mut bytes, self.header.l1_offset + table * 8)?;
        let table = entry(&bytes) & OFFSET;
        if table == 0 {
            return Ok(0);
        }
        let mut bytes = [0; 8];
        read_at(&self.file, &mut bytes, table + index * 8)?;
        Ok(entry(&bytes))
    }
}

/// Reads a sector of the guest's disk through the chain, from the image itself to its last base. `None` if it lies in a
/// compressed cluster.
pub(super) fn sector(layers: &[Layer], number: u64) -> io::Result<Option<[u8; 512]>> {
    let mut data = [0; 512];
    for layer in layers {
        let offset = number * 512;
        let bits = layer.header.cluster_bits;
        let l2 = layer.l2_entry(offset >> bits)?;
        if l2 & COMPRESSED != 0 {
            return Ok(None);
        }
        if l2 & ZERO != 0 {
            break;
        }
        if l2 & OFFSET != 0 {
            read_at(&layer.file, &mut data, (l2 & OFFSET) + (offset & ((1 << bits) - 1)))?;
            break;
        }
    }
    Ok(Some(data))
}

/// A big-endian entry: the first 8 bytes.
fn entry(bytes: &[u8]) -> u64 {
    bytes[..8].iter().fold(0, |entry, byte| entry << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An image with clusters of 512 bytes and an L1 table of four entries in the second one.
    #[test]
    fn no_more_tables_are_read_than_allowed() {
        let mut bytes = vec![0; 4096];
        for (at, value) in [(4, 3_u32), (20, 9), (36, 4), (44, 512), (96, 4)] {
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        for (entry, offset) in [1024_u64, 1536, 1024, 2048].into_iter().enumerate() {
            bytes[512 + entry * 8..][..8].copy_from_slice(&offset.to_be_bytes());
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let header = Header::read(&file, 4096).unwrap().unwrap();
        let layer = Layer { header, file };

        let (all, two) = (layer.survey(4096, 3 * 512).unwrap(), layer.survey(4096, 2 * 512).unwrap());

        assert_eq!((all.is_cut_short, two.is_cut_short), (false, true));
    }
}
