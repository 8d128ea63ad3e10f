//! The host's clock, through the control device.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
};

use vmmci::{DEVICE_ID, VENDOR_ID, register};

/// The time registers of vmmci, in its I/O BAR in sysfs, which any kernel has. Reading the seconds latches both, and
/// nothing else is touched: a driver may be at work in the kernel.
pub(super) struct Host(File);

impl Host {
    /// Finds the device.
    pub(super) fn open() -> io::Result<Self> {
        let wanted = (format!("{VENDOR_ID:#06x}"), format!("{DEVICE_ID:#06x}"));
        for entry in fs::read_dir("/sys/bus/pci/devices")? {
            let function = entry?.path();
            let id = |name| fs::read_to_string(function.join(name)).map(|id| id.trim().to_owned());
            if (id("vendor")?, id("device")?) == wanted {
                // Where a driver has the function, it is on already, and sysfs may refuse.
                if fs::read_to_string(function.join("enable"))?.trim() == "0" {
                    fs::write(function.join("enable"), "1")?;
                }
                let bar = OpenOptions::new().read(true).open(function.join("resource0"))?;
                return Ok(Self(bar));
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "this machine has no vmmci"))
    }

    fn register(&self, offset: u16) -> u32 {
        let mut value = [0xff; 4];
        // A device that is gone reads as all ones.
        let _ = self.0.read_exact_at(&mut value, offset.into());
        u32::from_le_bytes(value)
    }

    /// Latches the time; gives its seconds.
    pub(super) fn latch(&self) -> u32 {
        self.register(register::SECONDS)
    }

    /// The time that was latched, of which these are the seconds, in microseconds since 1970.
    pub(super) fn latched(&self, seconds: u32) -> u64 {
        u64::from(seconds) * 1_000_000 + u64::from(self.register(register::MICROS))
    }

    /// The host's time in microseconds since 1970.
    pub(super) fn micros(&self) -> u64 {
        self.latched(self.latch())
    }
}
