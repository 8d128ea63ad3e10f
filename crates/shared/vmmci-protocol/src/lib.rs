// SPDX-License-Identifier: GPL-2.0-only OR ISC

//! The protocol of vmmci, the device through which OpenBSD's vmd(8) controls a guest.
//!
//! vmmci is PCI function 0b5d:0777. Its 4 KiB I/O BAR starts with the registers of a legacy virtio
//! device without queues; the device's own registers follow at offset 20. The host sets the command
//! register, raises INTA, and expects the guest to write the same value back: within 3 s for
//! [`Command::Shutdown`] and [`Command::Reboot`], or the VM is killed.
//!
//! - [`register`]: where things are;
//! - [`Command`] and [`Features`]: what is said;
//! - [`Driver`]: the guest's side of it, over any [`Registers`];
//! - [`Comparison`]: what is made of the host's time;
//! - [`step`]: setting the guest's clock to it, with a second look;
//! - [`follow`]: when that is done without the host asking for it.
//!
//! All accesses have to be 32 bits wide. vmd answers an exact offset with 32 bits whatever the
//! width, does not answer offsets inside a register at all, and takes the whole of EAX from a
//! write.
//!
//! This source is compiled into the kernel's driver too, as a module of it
//! (`kernel/overlay/drivers/virt/openbsd`): it names its own items by `super`, and does with the 2021
//! edition and Linux's oldest compiler.
#![no_std]
#![forbid(unsafe_code)]

mod clock;
mod driver;
pub mod follow;
mod offset;
pub mod register;
mod shutdown;
pub mod step;

pub use clock::{Comparison, HostTime};
pub use driver::{power_off, reset, take_interrupt, Action, Driver, ProbeError};
pub use offset::GuestMinusHost;
pub use register::Registers;
pub use shutdown::ShutdownKind;

/// PCI vendor ID of the device: OpenBSD.
pub const VENDOR_ID: u16 = 0x0b5d;
/// PCI device ID of the device.
pub const DEVICE_ID: u16 = 0x0777;
/// PCI subsystem ID of the device.
pub const SUBSYSTEM_ID: u16 = 0xffff;

/// What the host wants of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Command {
    /// Nothing.
    None = 0,
    /// Power off. Written by the guest with no command pending, it tells the host that the guest is
    /// going down by itself.
    Shutdown = 1,
    /// Reboot. It is also what `vmctl stop` sends: the host then does not start the VM again.
    Reboot = 2,
    /// Set the clock: the host's has jumped.
    SyncRtc = 3,
}

impl Command {
    /// The command with number `value`, if there is one.
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::None),
            1 => Some(Self::Shutdown),
            2 => Some(Self::Reboot),
            3 => Some(Self::SyncRtc),
            _ => None,
        }
    }
}

/// Feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u32);

impl Features {
    /// The time registers are there.
    pub const TIME_SYNC: Self = Self(1 << 0);
    /// Commands are to be acknowledged.
    pub const ACK: Self = Self(1 << 1);
    /// [`Command::SyncRtc`] is there; it is sent only to a guest that has accepted this bit.
    pub const SYNC_RTC: Self = Self(1 << 2);
    /// All of them, which is what vmd offers.
    pub const ALL: Self = Self(Self::TIME_SYNC.0 | Self::ACK.0 | Self::SYNC_RTC.0);

    /// Whether all of `other` is in here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_numbers_round_trip_and_there_are_four() {
        for value in 0..=u32::from(u16::MAX) {
            assert_eq!(
                Command::from_u32(value).map(|command| command as u32),
                (value < 4).then_some(value)
            );
        }
        assert_eq!(Command::from_u32(u32::MAX), None);
    }
}
