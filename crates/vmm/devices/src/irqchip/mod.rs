//! Interrupt controllers and the lines and messages that lead to them.
//!
//! Up to 7.9 a VM has two 8259s ([`i8259`]). 8.0 adds an IOAPIC ([`ioapic`]), a local APIC per vCPU
//! ([`lapic`]) and MSI ([`msi`]); [`apic`] joins all of these. A device raises its interrupt
//! through a [`line::IrqLine`].

pub mod apic;
pub mod i8259;
pub mod ioapic;
pub mod lapic;
pub mod line;
pub mod msi;

/// The interrupt controllers that devices raise their lines on: the two 8259s, and from 8.0 on the
/// IOAPIC.
pub trait InterruptController: Send + Sync {
    /// Raises line `irq` (0 to 15).
    fn assert_irq(&self, irq: u8);
    /// Lowers line `irq` (0 to 15).
    fn deassert_irq(&self, irq: u8);
    /// Makes line `irq` (0 to 15) level-triggered (`true`) or edge-triggered; the PCI bus calls it
    /// for the lines it assigns (`intr_toggle_el` in vmd). A controller without trigger modes
    /// ignores it.
    fn set_level_triggered(&self, _irq: u8, _level: bool) {}
    /// A device interrupts by writing `data` to `address`: an MSI or MSI-X message. A controller
    /// without LAPICs ignores it.
    fn message(&self, _address: u64, _data: u32) {}
}
