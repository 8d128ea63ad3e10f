//! Requests of the guest that end the VM.

use std::sync::{Arc, OnceLock};

use thiserror::Error;

use super::DeviceType;

/// A request at which a process of vmd exits and ends the VM.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// The guest notified a queue without an address (`null vring` in vmd's log).
    #[error("{device}: the guest notified queue {queue}, which has no ring")]
    NullRing {
        /// The device.
        device: DeviceType,
        /// The queue's number.
        queue: u16,
    },
    /// A queue's address, or an index into its rings, is outside guest RAM.
    #[error("{device}: queue {queue} is outside guest RAM at {address:#x}")]
    RingOutsideRam {
        /// The device.
        device: DeviceType,
        /// The queue's number.
        queue: u16,
        /// The guest physical address.
        address: u64,
    },
    /// The guest asked the entropy device for more than 64 KiB at once.
    #[error("{device}: the guest requested {length} bytes in one descriptor; vmd's limit is {max}")]
    RequestTooLarge {
        /// The device.
        device: DeviceType,
        /// The requested length in bytes.
        length: u32,
        /// vmd's limit in bytes.
        max: u32,
    },
    /// A descriptor chain that vmd never finishes: its vCPU thread loops forever.
    #[error("{device}: a descriptor chain of queue {queue} has no end and no room for the answer")]
    EndlessChain {
        /// The device.
        device: DeviceType,
        /// The queue's number.
        queue: u16,
    },
}

/// Holds the first [`Fault`] of a VM's devices. Clones share the slot.
///
/// Once it is set, no virtio device of the VM answers accesses.
#[derive(Clone, Debug, Default)]
pub struct FaultSlot(Arc<OnceLock<Fault>>);

impl FaultSlot {
    /// The fault, if one occurred. Cheap enough to check after each exit.
    pub fn get(&self) -> Option<&Fault> {
        self.0.get()
    }

    /// Stores a fault unless one is stored already.
    pub(super) fn set(&self, fault: Fault) {
        tracing::error!(%fault, "the VM ends");
        // The first fault has ended the VM; later ones are dropped.
        let _ = self.0.set(fault);
    }
}
