//! The registers between a virtio driver and a device's model: virtio 0.9 up to 7.7, virtio 1.x
//! from 7.8 on.

use vmd_release::Capabilities;

use super::{
    device::{DeviceState, VirtioDevice},
    device_type::DeviceType,
    fault::Fault,
    queue::Queue,
};
use crate::bus::PortAccess;

pub mod legacy;
pub mod modern;

/// The registers of a device's transport.
pub(super) enum Registers {
    /// virtio 0.9.
    Legacy(legacy::Registers),
    /// virtio 1.x.
    Modern(modern::Registers),
}

impl Registers {
    /// The registers of the generation's transport, at power-on.
    pub(super) fn new(capabilities: &Capabilities) -> Self {
        if capabilities.virtio_1 {
            Self::Modern(modern::Registers::default())
        } else {
            Self::Legacy(legacy::Registers::default())
        }
    }

    /// The feature bits that the transport itself offers.
    pub(super) const fn features(&self) -> u64 {
        match self {
            Self::Legacy(_) => 0,
            Self::Modern(_) => modern::VERSION_1,
        }
    }

    /// A queue of `size` entries, at power-on.
    pub(super) fn new_queue(&self, size: u16) -> Queue {
        match self {
            Self::Legacy(_) => Queue::legacy(size),
            Self::Modern(_) => Queue::modern(size),
        }
    }

    /// The transport's capabilities in configuration space; empty for virtio 0.9.
    pub(super) fn capabilities(&self, device_type: DeviceType) -> Vec<Vec<u8>> {
        match self {
            Self::Legacy(_) => Vec::new(),
            Self::Modern(_) => modern::capabilities(device_type),
        }
    }

    /// Handles an access at `offset` in the device's I/O BAR.
    pub(super) fn access<M: VirtioDevice>(
        &mut self,
        state: &mut DeviceState,
        model: &mut M,
        offset: u16,
        access: &mut PortAccess,
    ) -> Result<(), Fault> {
        match self {
            Self::Legacy(registers) => registers.access(state, model, offset, access),
            Self::Modern(registers) => registers.access(state, model, offset, access),
        }
    }
}
