//! A virtio device as a PCI function: a model behind a transport.

use vmd_release::Capabilities;

use super::{
    device::{DeviceState, VirtioDevice, VirtioResources},
    fault::{Fault, FaultSlot},
    queue::GuestRam,
    transport::Registers,
};
use crate::{
    bus::PortAccess,
    irqchip::{line::IrqLine, msi::NO_VECTOR},
    pci::{Identity, PciFunction},
};

/// A virtio device of vmd in its PCI slot.
pub struct VirtioPci<M> {
    model: M,
    state: DeviceState,
    registers: Registers,
    faults: FaultSlot,
}

impl<M: VirtioDevice> VirtioPci<M> {
    /// A device at power-on, on the transport that `resources` ask for.
    pub fn new(model: M, resources: VirtioResources) -> Self {
        let VirtioResources { capabilities, ram, irq, faults } = resources;
        let (state, registers) = power_on(&model, capabilities, ram, irq);
        Self { model, state, registers, faults }
    }

    /// The model.
    pub const fn model(&self) -> &M {
        &self.model
    }

    /// The model, mutable for changes from outside the guest.
    pub const fn model_mut(&mut self) -> &mut M {
        &mut self.model
    }

    /// Runs `work` on the model for `queue` outside a guest access, and raises the line if it
    /// returns true.
    pub(super) fn work(
        &mut self,
        queue: u16,
        work: impl FnOnce(&mut M, &mut DeviceState) -> Result<bool, Fault>,
    ) {
        if self.faults.get().is_some() {
            return;
        }
        match work(&mut self.model, &mut self.state) {
            Ok(true) => self.state.interrupt(queue),
            Ok(false) => {}
            Err(fault) => self.faults.set(fault),
        }
    }

    #[cfg(test)]
    pub(super) fn replace_ram(&mut self, ram: GuestRam) {
        self.state.ram = ram;
    }

    /// The state that the model shares with the transport.
    pub(super) const fn state(&self) -> &DeviceState {
        &self.state
    }
}

fn power_on<M: VirtioDevice>(
    model: &M,
    capabilities: Capabilities,
    ram: GuestRam,
    irq: IrqLine,
) -> (DeviceState, Registers) {
    let registers = Registers::new(&capabilities);
    let state = DeviceState {
        capabilities,
        ram,
        irq,
        device_type: M::DEVICE_TYPE,
        queues: vec![registers.new_queue(M::DEVICE_TYPE.queue_size()); M::DEVICE_TYPE.queues().into()],
        isr: 0,
        status: 0,
        device_features: u64::from(model.features(&capabilities)) | registers.features(),
        driver_features: 0,
        config_vector: NO_VECTOR,
        queue_vectors: vec![NO_VECTOR; M::DEVICE_TYPE.queues().into()],
    };
    (state, registers)
}

impl<M: VirtioDevice> PciFunction for VirtioPci<M> {
    fn identity(&self) -> Identity {
        M::DEVICE_TYPE.identity(&self.state.capabilities)
    }

    fn vectors(&self) -> u16 {
        self.state.vectors()
    }

    fn capabilities(&self) -> Vec<Vec<u8>> {
        self.registers.capabilities(M::DEVICE_TYPE)
    }

    fn bar_access(&mut self, offset: u16, access: &mut PortAccess) {
        if self.faults.get().is_some() {
            return;
        }
        if let Err(fault) = self.registers.access(&mut self.state, &mut self.model, offset, access) {
            self.faults.set(fault);
        }
    }

    fn has_deferred(&self) -> bool {
        self.faults.get().is_none() && self.state.queues.iter().any(|queue| queue.deferred)
    }

    fn run_deferred(&mut self) {
        for queue in 0..M::DEVICE_TYPE.queues() {
            if std::mem::take(&mut self.state.queues[usize::from(queue)].deferred) {
                self.work(queue, |model, state| model.notify(queue, state));
            }
        }
    }

    fn reset(&mut self) {
        self.model.power_on();
        let (state, registers) =
            power_on(&self.model, self.state.capabilities, self.state.ram.clone(), self.state.irq.clone());
        (self.state, self.registers) = (state, registers);
    }
}
