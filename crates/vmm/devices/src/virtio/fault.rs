//! What ends the VM.

use std::sync::{Arc, OnceLock};

use miette::Diagnostic;
use thiserror::Error;

use super::Kind;

/// A request at which a process of vmd dies, and the VM with it.
#[derive(Clone, Debug, Diagnostic, Error, PartialEq, Eq)]
pub enum Fault {
    /// A queue was notified that the guest had given no memory (`null vring` in vmd's log).
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
    /// A queue's address, or an index into its rings, leads outside guest RAM.
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
        /// What was asked for.
        length: u32,
        /// vmd's limit.
        max: u32,
    },
    /// A descriptor chain on which vmd never comes to an end: its vCPU thread spins for ever.
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

/// Where the devices of a machine leave the [`Fault`] that ends it. Clones share the slot.
///
/// Once a fault is in, every virtio device of the machine is dead: accesses are not answered any more.
#[derive(Clone, Debug, Default)]
pub struct FaultSlot(Arc<OnceLock<Fault>>);

impl FaultSlot {
    /// The fault, if there was one. Cheap enough to ask after each exit.
    pub fn get(&self) -> Option<&Fault> {
        self.0.get()
    }

    /// Leaves a fault; the first one stays.
    pub(super) fn set(&self, fault: Fault) {
        tracing::error!(%fault, "the VM ends");
        // A later fault than the first is of no interest: the VM is gone.
        let _ = self.0.set(fault);
    }
}
