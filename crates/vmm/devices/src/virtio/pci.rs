//! A virtio device as a PCI function: a model behind a transport.

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use vmd_release::Generation;

use super::{Fault, FaultSlot, GuestRam, Kind, ring, transport_legacy, transport_modern};
use crate::{
    bus::{PortAccess, Width},
    irq::IrqLine,
    msi::NO_VECTOR,
    pci::{Identity, PciFunction},
};

/// ISR bit: a queue was served.
const ISR_QUEUE: u8 = 1;
/// ISR bit: the configuration changed, or the device needs a reset.
const ISR_CONFIG: u8 = 2;

/// What a device is connected to.
#[derive(Clone, Debug)]
pub struct VirtioResources {
    /// The generation of vmd to be.
    pub generation: Generation,
    /// Guest RAM.
    pub ram: GuestRam,
    /// The device's INTA.
    pub irq: IrqLine,
    /// Where a request that ends the VM is reported.
    pub faults: FaultSlot,
}

/// What a device does behind its transport's registers.
pub trait VirtioDevice: Send {
    /// Which device it is.
    const KIND: Kind;

    /// Its feature bits 0 to 31.
    fn features(&self, generation: Generation) -> u32;

    /// Reads `offset` of the virtio 1.x device configuration: what goes into EAX, `None` for no answer.
    fn read_config(&self, offset: u8, width: Width) -> Option<u32>;

    /// Reads `offset` of the virtio 0.9 device configuration by a guest whose EAX is `eax`.
    fn read_legacy_config(&self, offset: u8, width: Width, eax: u32) -> Option<u32>;

    /// Serves queue `queue`, which may be any number that the guest wrote. Returns whether to raise the line.
    fn notify(&mut self, queue: u16, io: &mut DeviceState) -> Result<bool, Fault>;

    /// The driver reset the device.
    fn reset(&mut self) {}

    /// The machine was switched on.
    fn power_on(&mut self) {
        self.reset();
    }
}

/// The part of a device that its model and its transport share.
pub struct DeviceState {
    pub(super) generation: Generation,
    pub(super) ram: GuestRam,
    pub(super) irq: IrqLine,
    pub(super) kind: Kind,
    pub(super) queues: Vec<ring::Queue>,
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
    /// Interrupts because `queue` was served, or, where the ISR register has it, because of the configuration.
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
        if self.generation >= Generation::V8_0 { self.queues.len() as u16 + 1 } else { 0 }
    }

    /// Whether the device is part of vmd's VM process.
    pub(super) fn in_vm_process(&self) -> bool {
        self.kind.in_vm_process(self.generation)
    }

    /// Whether the driver said that it is ready.
    pub(super) const fn driver_ok(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK as u8 != 0
    }

    /// Whether the device has asked for a reset.
    pub(super) const fn needs_reset(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_NEEDS_RESET as u8 != 0
    }

    /// The rings of a queue.
    pub(super) fn ring(&self, queue: u16) -> Result<ring::Ring<'_>, Fault> {
        let missing = Fault::NullRing { device: self.kind, queue };
        ring::Ring::new(&self.ram, self.kind, queue, self.queues.get(usize::from(queue)).ok_or(missing)?)
    }

    /// Marks that a queue was served, next to what the ISR register has.
    pub(super) const fn mark_served(&mut self) {
        self.isr |= ISR_QUEUE;
    }

    /// Marks that a queue was served, instead of what the ISR register has: the devices in vmd's VM process assign.
    pub(super) const fn mark_only_served(&mut self) {
        self.isr = ISR_QUEUE;
    }

    /// Asks the driver for a reset. The caller raises the line.
    pub(super) fn request_reset(&mut self) {
        tracing::warn!(device = %self.kind, "malformed request: the device asks for a reset");
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET as u8;
        self.isr |= ISR_CONFIG;
    }
}

/// A transport's registers.
enum Registers {
    Legacy(transport_legacy::Registers),
    Modern(transport_modern::Registers),
}

/// A virtio device of vmd in its PCI slot.
pub struct VirtioPci<M> {
    model: M,
    io: DeviceState,
    registers: Registers,
    faults: FaultSlot,
}

impl<M: VirtioDevice> VirtioPci<M> {
    /// Attaches a device, on the transport of the attachment's generation.
    pub fn new(model: M, attachment: VirtioResources) -> Self {
        let VirtioResources { generation, ram, irq, faults } = attachment;
        let (io, registers) = power_on(&model, generation, ram, irq);
        Self { model, io, registers, faults }
    }

    /// The model.
    pub const fn model(&self) -> &M {
        &self.model
    }

    /// The model, to be changed from outside.
    pub const fn model_mut(&mut self) -> &mut M {
        &mut self.model
    }

    /// Lets the model work outside of an access of the guest, and raises the line if it says so.
    pub(super) fn work(&mut self, work: impl FnOnce(&mut M, &mut DeviceState) -> Result<bool, Fault>) {
        if self.faults.get().is_some() {
            return;
        }
        match work(&mut self.model, &mut self.io) {
            // Only a NIC works by itself, and then it has received.
            Ok(true) => self.io.interrupt(0),
            Ok(false) => {}
            Err(fault) => self.faults.set(fault),
        }
    }

    #[cfg(test)]
    pub(super) fn replace_ram(&mut self, ram: GuestRam) {
        self.io.ram = ram;
    }

    /// The state that the model shares with the transport.
    pub(super) const fn io(&self) -> &DeviceState {
        &self.io
    }
}

fn power_on<M: VirtioDevice>(
    model: &M,
    generation: Generation,
    ram: GuestRam,
    irq: IrqLine,
) -> (DeviceState, Registers) {
    let legacy = generation == Generation::V7_7;
    let features = u64::from(model.features(generation));
    let queue = if legacy { ring::Queue::legacy } else { ring::Queue::modern };
    let io = DeviceState {
        generation,
        ram,
        irq,
        kind: M::KIND,
        queues: vec![queue(M::KIND.queue_size()); M::KIND.queues().into()],
        isr: 0,
        status: 0,
        device_features: if legacy { features } else { features | transport_modern::VERSION_1 },
        driver_features: 0,
        config_vector: NO_VECTOR,
        queue_vectors: vec![NO_VECTOR; M::KIND.queues().into()],
    };
    let registers = if legacy {
        Registers::Legacy(transport_legacy::Registers::default())
    } else {
        Registers::Modern(transport_modern::Registers::default())
    };
    (io, registers)
}

impl<M: VirtioDevice> PciFunction for VirtioPci<M> {
    fn identity(&self) -> Identity {
        M::KIND.identity(self.io.generation)
    }

    fn vectors(&self) -> u16 {
        self.io.vectors()
    }

    fn capabilities(&self) -> Vec<Vec<u8>> {
        match self.registers {
            Registers::Legacy(_) => Vec::new(),
            Registers::Modern(_) => transport_modern::capabilities(M::KIND),
        }
    }

    fn bar_access(&mut self, offset: u16, access: &mut PortAccess) {
        if self.faults.get().is_some() {
            return;
        }
        let done = match &mut self.registers {
            Registers::Legacy(registers) => registers.access(&mut self.io, &mut self.model, offset, access),
            Registers::Modern(registers) => registers.access(&mut self.io, &mut self.model, offset, access),
        };
        if let Err(fault) = done {
            self.faults.set(fault);
        }
    }

    fn reset(&mut self) {
        self.model.power_on();
        let (io, registers) =
            power_on(&self.model, self.io.generation, self.io.ram.clone(), self.io.irq.clone());
        (self.io, self.registers) = (io, registers);
    }
}
