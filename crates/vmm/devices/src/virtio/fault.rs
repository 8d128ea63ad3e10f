//! Requests of the guest that end the VM.

use std::sync::{Arc, OnceLock};

use miette::Diagnostic;
use thiserror::Error;

use super::Kind;

/// A request at which a process of vmd exits and ends the VM.
#[derive(Clone, Debug, Diagnostic, Error, PartialEq, Eq)]
pub enum Fault {
    /// The guest notified a queue without an address (`null vring` in vmd's log).
    #[error("{device}: the guest notified queue {queue}, which has no ring")]
    #[diagnostic(help(
        "vmd ends the VM here; the driver must write the queue's address before it notifies it"
    ))]
    NullRing {
        /// The device.
        device: Kind,
        /// The queue's number.
        queue: u16,
    },
    /// A queue's address, or an index into its rings, is outside guest RAM.
    #[error("{device}: queue {queue} is outside guest RAM at {address:#x}")]
    #[diagnostic(help(
        "vmd ends the VM here; the driver must put its rings into RAM that the e820 map lists"
    ))]
    RingOutsideRam {
        /// The device.
        device: Kind,
        /// The queue's number.
        queue: u16,
        /// The guest physical address.
        address: u64,
    },
    /// The guest asked the entropy device for more than 64 KiB at once.
    #[error("{device}: the guest asked for {length} bytes in one descriptor; vmd takes up to {max}")]
    #[diagnostic(help("vmd ends the VM here (`viornd descriptor size too large`)"))]
    RequestTooLarge {
        /// The device.
        device: Kind,
        /// The requested length in bytes.
        length: u32,
        /// vmd's limit in bytes.
        max: u32,
    },
    /// A descriptor chain that vmd never finishes: its vCPU thread loops forever.
    #[error("{device}: a descriptor chain of queue {queue} has no end and no room for the answer")]
    #[diagnostic(help(
        "vmd's vCPU thread spins for ever here; the driver must chain buffers for the whole answer"
    ))]
    EndlessChain {
        /// The device.
        device: Kind,
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
