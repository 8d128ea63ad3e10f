//! The registers.

use std::{cell::Cell, fs::File, io, os::unix::fs::FileExt};

use rustix::io::Errno;
use vmmci_protocol::{HostTime, Registers};

use crate::{Offset, compare, realtime};

/// The device's registers, by accesses of 4 bytes to `resource0`, which Linux makes one IN or OUT of.
#[derive(Debug)]
pub struct Bar {
    file: File,
    failure: Cell<Option<Errno>>,
}

impl Bar {
    /// The registers in an opened `resource0`.
    pub fn new(file: File) -> Self {
        Self { file, failure: Cell::new(None) }
    }

    /// Why the last access came to nothing, if it did: the device is gone, or may not be reached.
    pub fn failure(&self) -> Option<Errno> {
        self.failure.get()
    }

    /// Compares the guest's clock with the host's so many times and gives the surest result, as [`compare`] does. Nothing
    /// is written to the device.
    pub fn offset(&self, times: usize) -> Option<Offset> {
        compare(|| HostTime::read(self, realtime), times).map(Offset::from)
    }

    fn note<T>(&self, result: io::Result<T>) -> Option<T> {
        let errno = |error| Errno::from_io_error(error).unwrap_or(Errno::IO);
        self.failure.set(result.as_ref().err().map(errno));
        result.ok()
    }
}

impl Registers for Bar {
    fn read(&self, offset: u16) -> u32 {
        let mut value = [0; 4];
        match self.note(self.file.read_exact_at(&mut value, offset.into())) {
            Some(()) => u32::from_le_bytes(value),
            None => u32::MAX,
        }
    }

    fn write(&self, offset: u16, value: u32) {
        let result = self.file.write_at(&value.to_le_bytes(), offset.into());
        self.note(result.and_then(|written| if written == 4 { Ok(()) } else { Err(Errno::IO.into()) }));
    }
}
