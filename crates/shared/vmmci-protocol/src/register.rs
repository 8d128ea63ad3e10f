// SPDX-License-Identifier: GPL-2.0-only OR ISC

//! The accesses to the BAR, its offsets, and the values of the registers that are not numbers.

/// 32-bit accesses to the device's registers.
///
/// A device that is gone reads as all ones; nothing more is expected of an implementation.
pub trait Registers {
    /// Reads the register at `offset`.
    fn read(&self, offset: u16) -> u32;
    /// Writes the register at `offset`.
    fn write(&self, offset: u16, value: u32);
}

impl<R: Registers + ?Sized> Registers for &R {
    fn read(&self, offset: u16) -> u32 {
        (**self).read(offset)
    }

    fn write(&self, offset: u16, value: u32) {
        (**self).write(offset, value);
    }
}

/// Features that the device offers, read-only.
pub const DEVICE_FEATURES: u16 = 0x00;
/// Features that the guest has accepted.
pub const GUEST_FEATURES: u16 = 0x04;
/// A number that stays as written: there are no queues.
pub const QUEUE_PFN: u16 = 0x08;
/// Always 0.
pub const QUEUE_SIZE: u16 = 0x0c;
/// A number that stays as written.
pub const QUEUE_SELECT: u16 = 0x0e;
/// A number that stays as written.
pub const QUEUE_NOTIFY: u16 = 0x10;
/// How far the driver has come: [`STATUS_ACKNOWLEDGE`] and so on.
pub const DEVICE_STATUS: u16 = 0x12;
/// Why the line is up: [`ISR_CONFIG_CHANGE`] or 0. Reading it clears it and lowers the line.
pub const ISR_STATUS: u16 = 0x13;
/// The pending command; what is written here acknowledges it.
pub const COMMAND: u16 = 0x14;
/// The host's time in seconds since 1970, lower 32 bits. Reading it latches the time for
/// [`MICROS`].
pub const SECONDS: u16 = 0x18;
/// Meant for the seconds' upper 32 bits; always 0.
pub const SECONDS_HIGH: u16 = 0x1c;
/// Microseconds of the latched time, 0 to 999,999.
pub const MICROS: u16 = 0x20;
/// Always 0.
pub const MICROS_HIGH: u16 = 0x24;

/// The guest has found the device.
pub const STATUS_ACKNOWLEDGE: u32 = 1;
/// The guest has a driver for it.
pub const STATUS_DRIVER: u32 = 2;
/// The driver is ready: only now does the host send commands.
pub const STATUS_DRIVER_OK: u32 = 4;
/// The guest has given up on the device.
pub const STATUS_FAILED: u32 = 0x80;

/// The command register has changed.
pub const ISR_CONFIG_CHANGE: u32 = 2;
/// The bits that an ISR can have: [`ISR_CONFIG_CHANGE`], and that of the queues, of which there are
/// none.
pub const ISR_ALL: u32 = 3;
