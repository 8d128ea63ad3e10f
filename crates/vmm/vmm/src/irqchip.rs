//! The IRQ chip: two 8259s up to 7.9, with an IOAPIC and LAPICs in 8.0.

use std::sync::Arc;

use devices::{
    bus::PortAccess,
    clock::{Clock, HostTicks},
    irqchip::{InterruptController, apic::SharedApic, i8259::SharedPic, lapic},
};
use vmd_release::Capabilities;

/// The interrupt controllers of a VM. Clones share them.
///
/// They have a lock of their own inside: vCPU threads ask for interrupts on every entry, without
/// the board's lock.
#[derive(Clone)]
pub(crate) enum IrqChip {
    /// The two 8259s, wired to the only vCPU.
    Pic(Arc<SharedPic>),
    /// The two 8259s, the IOAPIC and the LAPICs.
    ///
    /// The models of `devices` and not KVM's, so that a guest's accesses are exits as on vmd and
    /// timers are as late as there. Without its own APICs, KVM passes x2APIC's MSRs and CR8 on to
    /// user space, too.
    Apic(Arc<SharedApic>),
}

impl IrqChip {
    /// The controllers of a VM with `vcpus` vCPUs at power-on. They call `wake` with the number of
    /// a vCPU that may have an interrupt to take.
    pub(crate) fn new(
        capabilities: &Capabilities,
        vcpus: u8,
        clock: Arc<dyn Clock>,
        ticks: HostTicks,
        wake: impl Fn(u8) + Send + Sync + 'static,
    ) -> Self {
        if !capabilities.apic {
            return Self::Pic(Arc::new(SharedPic::new(Box::new(move || wake(0)))));
        }
        Self::Apic(Arc::new(SharedApic::new(vcpus, clock, ticks, Box::new(wake))))
    }

    /// The end of all devices' interrupt lines.
    pub(crate) fn controller(&self) -> Arc<dyn InterruptController> {
        match self {
            Self::Pic(pic) => Arc::clone(pic) as _,
            Self::Apic(apic) => Arc::clone(apic) as _,
        }
    }

    /// IOAPIC and LAPICs, if the VM has them.
    pub(crate) fn apic(&self) -> Option<&SharedApic> {
        match self {
            Self::Pic(_) => None,
            Self::Apic(apic) => Some(apic),
        }
    }

    /// IOAPIC and LAPICs, if the VM has them and `msr` is one of their MSRs.
    pub(crate) fn apic_with_msr(&self, msr: u32) -> Option<&SharedApic> {
        self.apic().filter(|_| msr == lapic::MSR_APICBASE || lapic::X2APIC_MSRS.contains(&msr))
    }

    /// Whether `vcpu` has an interrupt to take.
    pub(crate) fn pending(&self, vcpu: u8) -> bool {
        match self {
            Self::Pic(pic) => pic.pending(),
            Self::Apic(apic) => apic.pending(vcpu),
        }
    }

    /// Acknowledges the most urgent interrupt for `vcpu` and returns its vector.
    pub(crate) fn acknowledge(&self, vcpu: u8) -> Option<u8> {
        match self {
            Self::Pic(pic) => pic.acknowledge(),
            Self::Apic(apic) => apic.acknowledge(vcpu),
        }
    }

    /// Handles an access to a port of the 8259s.
    pub(crate) fn access(&self, access: &mut PortAccess) {
        match self {
            Self::Pic(pic) => pic.access(access),
            Self::Apic(apic) => apic.access(access),
        }
    }
}
