//! Interrupt lines: a device's connection to the interrupt controllers.

use std::{fmt, sync::Arc};

use super::{
    InterruptController,
    msi::{Messages, NO_VECTOR},
};

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

    /// The line of a PCI function that can signal by `messages` (MSI or MSI-X) instead.
    #[must_use]
    pub fn with_messages(self, messages: Arc<Messages>) -> Self {
        Self { messages: Some(messages), ..self }
    }

    /// The line's number.
    pub const fn irq(&self) -> u8 {
        self.irq
    }

    /// Raises the line, or sends the message if MSI is enabled.
    pub fn assert(&self) {
        self.assert_vector(NO_VECTOR);
    }

    /// Signals an interrupt the way that the driver has enabled: by the line, by the MSI message,
    /// or by the message of MSI-X's `vector`.
    pub fn assert_vector(&self, vector: u16) {
        if !self.messages.as_ref().is_some_and(|messages| messages.signal(vector)) {
            self.controller.assert_irq(self.irq);
        }
    }

    /// Lowers the line. With MSI or MSI-X enabled the line is not in use and this does nothing.
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
