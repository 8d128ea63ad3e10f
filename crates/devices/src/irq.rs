//! Interrupt lines.

use std::{fmt, sync::Arc};

/// What devices raise their lines on: the machine's pair of 8259s (or an IOAPIC from 8.0 on).
pub trait InterruptController: Send + Sync {
    /// Raises line `irq` (0 to 15).
    fn assert_irq(&self, irq: u8);
    /// Lowers line `irq` (0 to 15).
    fn deassert_irq(&self, irq: u8);
    /// Makes line `irq` (0 to 15) level-triggered (`true`) or edge-triggered, as the PCI bus asks for the lines it
    /// hands out (`intr_toggle_el` in vmd). A controller that knows no difference does nothing.
    fn set_level_triggered(&self, _irq: u8, _level: bool) {}
}

/// A device's end of an interrupt line.
#[derive(Clone)]
pub struct IrqLine {
    irq: u8,
    controller: Arc<dyn InterruptController>,
}

impl IrqLine {
    /// Line `irq` (0 to 15) of `controller`.
    pub fn new(controller: Arc<dyn InterruptController>, irq: u8) -> Self {
        Self { irq, controller }
    }

    /// The line's number.
    pub const fn irq(&self) -> u8 {
        self.irq
    }

    /// Raises the line.
    pub fn assert(&self) {
        self.controller.assert_irq(self.irq);
    }

    /// Lowers the line.
    pub fn deassert(&self) {
        self.controller.deassert_irq(self.irq);
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({})", self.irq)
    }
}
