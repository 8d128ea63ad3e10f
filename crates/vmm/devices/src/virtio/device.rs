//! What a virtio device is made of: its model, the state it shares with the transport, and what it
//! is connected to.

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use vmd_release::Capabilities;

use super::{
    device_type::DeviceType,
    fault::{Fault, FaultSlot},
    queue::{GuestRam, Queue, Ring},
};
use crate::{
    bus::Width,
    irqchip::{line::IrqLine, msi::NO_VECTOR},
    warning_limit::warn_limited,
};

/// ISR bit: a queue was served.
const ISR_QUEUE: u8 = 1;
/// ISR bit: the configuration changed, or the device needs a reset.
const ISR_CONFIG: u8 = 2;

/// The resources of a virtio device.
#[derive(Clone, Debug)]
pub struct VirtioResources {
    /// The emulated vmd's capabilities.
    pub capabilities: Capabilities,
    /// Guest RAM.
    pub ram: GuestRam,
    /// The device's interrupt line.
    pub irq: IrqLine,
    /// Receives a request that ends the VM.
    pub faults: FaultSlot,
}

/// The model of a device, behind the registers of its transport.
pub trait VirtioDevice: Send + 'static {
    /// The device type.
    const DEVICE_TYPE: DeviceType;

    /// Feature bits 0 to 31.
    fn features(&self, capabilities: &Capabilities) -> u32;

    /// Reads `offset` of the virtio 1.x device configuration. Returns the new EAX, or `None` where
    /// there is no register: the transport answers then, unless the device is part of vmd's VM
    /// process.
    fn read_config(&self, offset: u8, width: Width) -> Option<u32>;

    /// Reads `offset` of the virtio 0.9 device configuration for a guest whose EAX is `eax`.
    /// Returns the new EAX, or `None` for no answer.
    fn read_legacy_config(&self, offset: u8, width: Width, eax: u32) -> Option<u32>;

    /// Processes queue `queue`, which can be any number that the guest wrote. Returns whether to
    /// raise the line.
    fn notify(&mut self, queue: u16, io: &mut DeviceState) -> Result<bool, Fault>;

    /// Handles a reset by the driver.
    fn reset(&mut self) {}

    /// Returns the model to its power-on state.
    fn power_on(&mut self) {
        self.reset();
    }
}

/// The state that a device's model and its transport share.
pub struct DeviceState {
    pub(super) capabilities: Capabilities,
    pub(super) ram: GuestRam,
    pub(super) irq: IrqLine,
    pub(super) device_type: DeviceType,
    pub(super) queues: Vec<Queue>,
    pub(super) isr: u8,
    pub(super) status: u8,
    pub(super) device_features: u64,
    pub(super) driver_features: u64,
    /// MSI-X vector of configuration changes.
    pub(super) config_vector: u16,
    /// MSI-X vectors of the queues.
    pub(super) queue_vectors: Vec<u16>,
}

impl DeviceState {
    /// Signals that `queue` was processed or, if the ISR register says so, a configuration change.
    pub(super) fn interrupt(&self, queue: u16) {
        let vector = if self.isr & ISR_CONFIG != 0 {
            self.config_vector
        } else {
            self.queue_vectors.get(usize::from(queue)).copied().unwrap_or(NO_VECTOR)
        };
        self.irq.assert_vector(vector);
    }

    /// Number of MSI-X vectors: one for configuration changes, one for each queue; none up to 7.9.
    pub(super) fn vectors(&self) -> u16 {
        if self.capabilities.msi { self.queues.len() as u16 + 1 } else { 0 }
    }

    /// Whether the device is part of vmd's VM process.
    pub(super) fn in_vm_process(&self) -> bool {
        self.device_type.in_vm_process(&self.capabilities)
    }

    /// Whether the driver has set DRIVER_OK.
    pub(super) const fn driver_ok(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK as u8 != 0
    }

    /// Whether the device has asked for a reset.
    pub(super) const fn needs_reset(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_NEEDS_RESET as u8 != 0
    }

    /// The rings of a queue.
    pub(super) fn ring(&self, queue: u16) -> Result<Ring<'_>, Fault> {
        let missing = Fault::NullRing { device: self.device_type, queue };
        Ring::new(&self.ram, self.device_type, queue, self.queues.get(usize::from(queue)).ok_or(missing)?)
    }

    /// Sets the queue bit of the ISR register and keeps its other bits.
    pub(super) const fn mark_served(&mut self) {
        self.isr |= ISR_QUEUE;
    }

    /// Sets the ISR register to the queue bit alone: the devices in vmd's VM process assign it.
    pub(super) const fn mark_only_served(&mut self) {
        self.isr = ISR_QUEUE;
    }

    /// Asks the driver for a reset. The caller raises the line.
    pub(super) fn request_reset(&mut self) {
        warn_limited!(device = %self.device_type, "malformed request: device sets NEEDS_RESET");
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET as u8;
        self.isr |= ISR_CONFIG;
    }
}
