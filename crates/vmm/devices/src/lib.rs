//! The device models of OpenBSD's vmd(8), quirks included.
//!
//! Every model is a plain struct: it gets its time from a [`clock::Clock`], raises interrupts through an
//! [`irq::IrqLine`] and answers port accesses through [`bus::PortDevice`]. Nothing here knows about KVM, threads or
//! sleeping; the `machine` crate wires the models together and runs them. Each quirk of vmd is a named, tested
//! behaviour with its source in the doc comment.

pub mod acpi;
pub mod apic;
pub mod bus;
pub mod clock;
pub mod cpuid;
pub mod fw_cfg;
pub mod i82093aa;
pub mod i8253;
pub mod i8259;
pub mod irq;
pub mod lapic;
pub mod mc146818;
pub mod memory_map;
pub mod mmio;
pub mod msi;
pub mod ns8250;
pub mod pci;
pub mod pvclock;
pub mod reset;
pub mod virtio;
pub mod vmmci;

#[cfg(test)]
mod testing;
