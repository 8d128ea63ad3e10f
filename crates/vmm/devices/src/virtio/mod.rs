//! vmd's virtio devices: rng, net, blk and the SCSI CD-ROM, on both of vmd's transports.
//!
//! A device is a [`VirtioPci`]: a [`VirtioDevice`] (the model) behind registers in an I/O BAR. Up
//! to 7.7 these are virtio 0.9's ([`transport::legacy`]), from 7.8 on virtio 1.x's
//! ([`transport::modern`]). A queue notification is processed in the vCPU exit that wrote it; a NIC
//! also receives by [`VirtioPci::receive`] when its backend has frames. Interrupts leave through
//! the device's [`crate::irqchip::line::IrqLine`].
//!
//! # Hostile guests
//!
//! vmd answers a malformed request in one of three ways, and so do these models: the request fails
//! (an I/O error in its status), the device asks for a reset (DEVICE_NEEDS_RESET and a
//! configuration interrupt), or vmd's process exits and ends the VM. The last is a [`Fault`],
//! stored in the [`FaultSlot`] that all devices of a VM share; the board checks the slot after each
//! exit and ends the VM with that diagnosis.

mod device;
mod device_type;
mod fault;
mod pci;
mod queue;
pub mod transport;

pub mod blk;
pub mod disk;
pub mod net;
pub mod rng;
pub mod scsi;

#[cfg(test)]
mod tests;

pub use device::{DeviceState, VirtioDevice, VirtioResources};
pub use device_type::DeviceType;
pub use fault::{Fault, FaultSlot};
pub use pci::VirtioPci;
pub use queue::GuestRam;
