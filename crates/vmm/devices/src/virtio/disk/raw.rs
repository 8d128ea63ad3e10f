//! Raw images: vmd's vioraw.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

use super::Disk;

/// A raw image: a file, sparse or not, or a block device.
///
/// vmd hands offsets to pwritev(2) unchecked, so that a guest which writes beyond the end makes a regular file grow;
/// the size that the guest sees stays what it was at the start (`virtio_raw_init` in vioraw.c).
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
}

impl RawDisk {
    /// A disk on an open file. Writes fail unless it was opened for writing.
    pub fn new(mut file: File) -> io::Result<Self> {
        // Not the metadata's length, which is 0 for a block device.
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

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
