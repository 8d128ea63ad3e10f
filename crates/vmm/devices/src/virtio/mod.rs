//! vmd's virtio devices: rng, net, blk and the SCSI CD-ROM, on both of vmd's transports.
//!
//! A device is a [`VirtioPci`]: a [`VirtioDevice`] (what the device does) behind registers in an I/O BAR. Up to 7.7 these are
//! virtio 0.9's ([`transport_legacy`]), from 7.8 on virtio 1.x's ([`transport_modern`]). Queue notifications are
//! processed where they are written, in the vCPU's exit; a NIC is also fed by [`VirtioPci::receive`] when its backend
//! has frames. Interrupts leave through the device's [`crate::irq::IrqLine`].
//!
//! # Hostile guests
//!
//! vmd answers a malformed request in one of three ways, and so does this: the request fails (an I/O error in its
//! status), the device asks for a reset (DEVICE_NEEDS_RESET and a configuration interrupt), or vmd's process dies and
//! takes the VM along. The last is a [`Fault`], kept in the [`FaultSlot`] that all devices of a machine share; the
//! machine looks there after each exit and ends the VM with that diagnosis.

mod fault;
mod kind;
mod pci;
mod ring;
pub mod transport_legacy;
pub mod transport_modern;

pub mod blk;
pub mod disk;
pub mod net;
pub mod rng;
pub mod scsi;

#[cfg(test)]
mod driver;
#[cfg(test)]
mod tests;

pub use fault::{Fault, FaultSlot};
pub use kind::Kind;
pub use pci::{DeviceState, VirtioDevice, VirtioPci, VirtioResources};

/// Guest RAM as the devices see it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;
