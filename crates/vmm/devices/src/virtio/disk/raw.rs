//! Raw images: vmd's vioraw.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

use super::storage::Disk;

/// A raw image: a file, sparse or not, or a block device.
///
/// vmd passes offsets to pwritev(2) unchecked, so a write beyond the end extends a regular file;
/// the size that the guest sees does not change (`virtio_raw_init` in vioraw.c).
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
}

impl RawDisk {
    /// A disk on an open file. Writes fail unless the file is open for writing.
    pub fn new(mut file: File) -> io::Result<Self> {
        // The metadata's length is 0 for a block device, so the end is found by seeking.
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, size })
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&mut self, buffer: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_all_at(buffer, offset)?;
        Ok(buffer.len())
    }
}
