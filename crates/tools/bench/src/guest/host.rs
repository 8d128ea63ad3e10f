//! The host's clock, through the control device.

use std::{io, path::Path};

use vmmci_protocol::{Registers, register};
use vmmci_sysfs::{Bar, FUNCTIONS, Function};

/// The time registers of vmmci. Reading the seconds latches both, and nothing else is touched: a driver may be at work in
/// the kernel.
pub(super) struct Host(Bar);

impl Host {
    /// Finds the device.
    pub(super) fn open() -> io::Result<Self> {
        let function = Function::find(Path::new(FUNCTIONS)).map_err(io::Error::other)?;
        // Where a driver has the function, it is on already, and sysfs may refuse.
        let opened = if function.driver().is_some() { function.peek() } else { function.open() };
        Ok(Self(Bar::new(opened.map_err(io::Error::other)?.bar)))
    }

    /// Latches the time; gives its seconds.
    pub(super) fn latch(&self) -> u32 {
        self.0.read(register::SECONDS)
    }

    /// The time that was latched, of which these are the seconds, in microseconds since 1970.
    pub(super) fn latched(&self, seconds: u32) -> u64 {
        u64::from(seconds) * 1_000_000 + u64::from(self.0.read(register::MICROS))
    }

    /// The host's time in microseconds since 1970.
    pub(super) fn micros(&self) -> u64 {
        self.latched(self.latch())
    }
}
