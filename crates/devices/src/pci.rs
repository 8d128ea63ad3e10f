//! PCI functions as the bus sees them.

use crate::bus::PortAccess;

/// The identifying registers of a function's configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID, offset 0x00.
    pub vendor: u16,
    /// Device ID, offset 0x02.
    pub device: u16,
    /// Revision, offset 0x08.
    pub revision: u8,
    /// Base class, offset 0x0b.
    pub class: u8,
    /// Subclass, offset 0x0a.
    pub subclass: u8,
    /// Subsystem vendor ID, offset 0x2c.
    pub subsystem_vendor: u16,
    /// Subsystem ID, offset 0x2e.
    pub subsystem: u16,
}

/// A PCI function with one 4 KiB I/O BAR and INTA, which is all that vmd's devices have up to 7.9.
pub trait PciFunction: Send {
    /// Its identifying registers.
    fn identity(&self) -> Identity;

    /// Its capabilities, in list order, each as the bytes that follow the "next" pointer's byte pair: the first byte
    /// is the capability ID, the second is left to the bus, the rest is the body. Empty for none.
    fn capabilities(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Handles an access at `offset` (0 to 0xfff) in its I/O BAR.
    fn bar_access(&mut self, offset: u16, access: &mut PortAccess);

    /// Puts it into the state of a machine that was just switched on.
    fn reset(&mut self);
}
