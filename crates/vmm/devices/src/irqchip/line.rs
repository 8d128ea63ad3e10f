//! Interrupt lines: a device's connection to the interrupt controllers.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use super::{
    InterruptController,
    msi::{Messages, NO_VECTOR},
};

/// Number of lines.
const LINES: u8 = 16;

/// A device's end of an interrupt line. Clones share where it leads.
#[derive(Clone)]
pub struct IrqLine {
    irq: Arc<AtomicU8>,
    controller: Arc<dyn InterruptController>,
    messages: Option<Arc<Messages>>,
}

impl IrqLine {
    /// Line `irq` (0 to 15) of `controller`.
    pub fn new(controller: Arc<dyn InterruptController>, irq: u8) -> Self {
        Self { irq: Arc::new(AtomicU8::new(irq)), controller, messages: None }
    }

    /// The line of a PCI function that can signal by `messages` (MSI or MSI-X) instead.
    #[must_use]
    pub fn with_messages(self, messages: Arc<Messages>) -> Self {
        Self { messages: Some(messages), ..self }
    }

    /// The line's number.
    pub fn irq(&self) -> u8 {
        self.irq.load(Ordering::Relaxed)
    }

    /// Leads to line `irq` from now on; from 16 on to none.
    pub fn route(&self, irq: u8) {
        self.irq.store(irq, Ordering::Relaxed);
    }

    /// The line's number, if there is such a line.
    fn line(&self) -> Option<u8> {
        Some(self.irq()).filter(|irq| *irq < LINES)
    }

    /// Raises the line, or sends the message if MSI is enabled.
    pub fn assert(&self) {
        self.assert_vector(NO_VECTOR);
    }

    /// Signals an interrupt the way that the driver has enabled: by the line, by the MSI message,
    /// or by the message of MSI-X's `vector`.
    pub fn assert_vector(&self, vector: u16) {
        let signalled = self.messages.as_ref().is_some_and(|messages| messages.signal(vector));
        if let Some(irq) = self.line().filter(|_| !signalled) {
            self.controller.assert_irq(irq);
        }
    }

    /// Lowers the line. With MSI or MSI-X enabled the line is not in use and this does nothing.
    pub fn deassert(&self) {
        let legacy = self.messages.as_ref().is_none_or(|messages| messages.is_legacy());
        if let Some(irq) = self.line().filter(|_| legacy) {
            self.controller.deassert_irq(irq);
        }
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({})", self.irq())
    }
}
