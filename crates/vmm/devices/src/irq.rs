//! Interrupt lines.

use std::{fmt, sync::Arc};

use crate::msi::{Messages, NO_VECTOR};

/// What devices raise their lines on: the machine's pair of 8259s (or an IOAPIC from 8.0 on).
pub trait InterruptController: Send + Sync {
    /// Raises line `irq` (0 to 15).
    fn assert_irq(&self, irq: u8);
    /// Lowers line `irq` (0 to 15).
    fn deassert_irq(&self, irq: u8);
    /// Makes line `irq` (0 to 15) level-triggered (`true`) or edge-triggered, as the PCI bus asks for the lines it
    /// hands out (`intr_toggle_el` in vmd). A controller that knows no difference does nothing.
    fn set_level_triggered(&self, _irq: u8, _level: bool) {}
    /// A device writes `data` to `address` to interrupt: an MSI or MSI-X message. A controller without LAPICs does not
    /// hear of it.
    fn message(&self, _address: u64, _data: u32) {}
}

/// A device's end of an interrupt line.
#[derive(Clone)]
pub struct IrqLine {
    irq: u8,
    controller: Arc<dyn InterruptController>,
    messages: Option<Arc<Messages>>,
}

impl IrqLine {
    /// Line `irq` (0 to 15) of `controller`.
    pub fn new(controller: Arc<dyn InterruptController>, irq: u8) -> Self {
        Self { irq, controller, messages: None }
    }

    /// The line of a PCI function that can signal by `messages` instead.
    #[must_use]
    pub fn with_messages(self, messages: Arc<Messages>) -> Self {
        Self { messages: Some(messages), ..self }
    }

    /// The line's number.
    pub const fn irq(&self) -> u8 {
        self.irq
    }

    /// Raises the line; where MSI is on, sends its message instead.
    pub fn assert(&self) {
        self.assert_vector(NO_VECTOR);
    }

    /// Raises the line, or sends MSI's message, or that of MSI-X's `vector`, whichever the driver has turned on.
    pub fn assert_vector(&self, vector: u16) {
        if !self.messages.as_ref().is_some_and(|messages| messages.signal(vector)) {
            self.controller.assert_irq(self.irq);
        }
    }

    /// Lowers the line, if it is in use.
    pub fn deassert(&self) {
        if self.messages.as_ref().is_none_or(|messages| messages.is_legacy()) {
            self.controller.deassert_irq(self.irq);
        }
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({})", self.irq)
    }
}
