//! The device models of OpenBSD's vmd(8), quirks included.
//!
//! Every model is a plain struct: it gets its time from a [`clock::Clock`], raises interrupts
//! through an [`irqchip::line::IrqLine`] and answers port accesses through [`bus::PortDevice`].
//! This crate knows nothing about KVM, threads or sleeping; crate `vmm` wires the models together
//! and runs them. Each quirk of vmd is a named, tested behaviour with its source in the doc
//! comment.
//!
//! | module | contents |
//! |---|---|
//! | [`bus`] | port accesses, MMIO accesses, the reset ports |
//! | [`legacy`] | PIT, RTC, UART and the firmware configuration device |
//! | [`irqchip`] | 8259s, IOAPIC, local APICs, MSI, interrupt lines |
//! | [`pci`] | the PCI bus and its functions' configuration space |
//! | [`virtio`] | virtio devices, queues and transports |
//! | [`acpi`] | ACPI tables and the power management block |
//! | [`vmmci`] | vmd's control device |
//! | [`cpuid`], [`pvclock`], [`memory_map`], [`clock`] | CPUID, the paravirtual clock, the memory map, host time |

#![allow(
    clippy::cast_possible_truncation,
    reason = "registers are read and written in parts of their width; masks say which"
)]

pub mod acpi;
pub mod bus;
pub mod clock;
pub mod cpuid;
pub mod irqchip;
pub mod legacy;
pub mod memory_map;
pub mod pci;
pub mod pvclock;
pub mod virtio;
pub mod vmmci;

mod warning_limit;

#[cfg(test)]
mod testing;
