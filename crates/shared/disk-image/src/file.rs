//! Reading of files at offsets.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// The length of a file or block device in bytes.
pub(crate) fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Reads at `offset` until the buffer is full or the file ends. Returns the number of bytes read.
pub(crate) fn read_at(mut file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    file.seek(SeekFrom::Start(offset))?;
    let mut done = 0;
    while done < buffer.len() {
        match file.read(&mut buffer[done..])? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}
