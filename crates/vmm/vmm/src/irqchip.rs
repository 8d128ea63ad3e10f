//! The machine's interrupt controllers, which 8.0 has more of.

use std::sync::Arc;

use devices::{
    bus::PortAccess,
    clock::{Clock, HostTicks},
    irqchip::{InterruptController, apic::SharedApic, i8259::SharedPic, lapic},
};
use vmd_release::Generation;

/// See the module's text. Clones are the same controllers.
#[derive(Clone)]
pub(crate) enum Interrupts {
    /// The two 8259s: all that there is up to 7.9, and wired to the only virtual CPU.
    Pic(Arc<SharedPic>),
    /// These, the IOAPIC and the LAPICs.
    ///
    /// They are the devices' models and not KVM's, so that a guest's accesses are exits as on vmd and timers are as
    /// late as there. KVM leaves x2APIC's MSRs and CR8 to user space then, too.
    Apic(Arc<SharedApic>),
}

impl Interrupts {
    /// The controllers of a machine with `vcpus` virtual CPUs that was just switched on. `wake` is called when there
    /// may be something to deliver to one of them.
    pub(crate) fn new(
        generation: Generation,
        vcpus: u8,
        clock: Arc<dyn Clock>,
        ticks: HostTicks,
        wake: impl Fn(u8) + Send + Sync + 'static,
    ) -> Self {
        if !generation.capabilities().apic {
            return Self::Pic(Arc::new(SharedPic::new(Box::new(move || wake(0)))));
        }
        Self::Apic(Arc::new(SharedApic::new(vcpus, clock, ticks, Box::new(wake))))
    }

    /// What devices' lines lead to.
    pub(crate) fn controller(&self) -> Arc<dyn InterruptController> {
        match self {
            Self::Pic(pic) => Arc::clone(pic) as _,
            Self::Apic(apic) => Arc::clone(apic) as _,
        }
    }

    /// The controllers of 8.0.
    pub(crate) fn apic(&self) -> Option<&SharedApic> {
        match self {
            Self::Pic(_) => None,
            Self::Apic(apic) => Some(apic),
        }
    }

    /// The controllers of 8.0, if it is one of their MSRs.
    pub(crate) fn apic_with_msr(&self, msr: u32) -> Option<&SharedApic> {
        self.apic().filter(|_| msr == lapic::MSR_APICBASE || lapic::X2APIC_MSRS.contains(&msr))
    }

    /// Whether there is an interrupt to deliver to `vcpu`.
    pub(crate) fn pending(&self, vcpu: u8) -> bool {
        match self {
            Self::Pic(pic) => pic.pending(),
            Self::Apic(apic) => apic.pending(vcpu),
        }
    }

    /// Takes the most urgent interrupt for `vcpu` and gives its vector.
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
