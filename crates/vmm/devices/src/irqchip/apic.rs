//! The interrupt controllers of 8.0 joined: two 8259s, the IOAPIC and the LAPICs.
//!
//! vmd joins them as follows (`vcpu_assert_irq`, `intr_pending`, `intr_ack` in x86_vm.c,
//! `pci_msi_deliver` in pci.c, September 2026):
//!
//! - Every line goes to the 8259s and to the IOAPIC pin of the same number. Their masks decide
//!   which of them delivers; a guest that unmasks both gets the interrupt twice.
//! - The LAPIC has priority over the 8259s. The 8259s deliver only if LINT0 is set to ExtINT or the
//!   LAPIC is disabled.
//! - An MSI is a fixed, edge-triggered interrupt for the vCPU whose number is in the address. An
//!   MSI with a logical destination, another delivery mode or another address is dropped.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;

use crate::{
    bus::{
        PortAccess, PortDevice,
        mmio::{MmioAccess, MmioRefused},
    },
    clock::{Clock, HostTicks, Timed},
    irqchip::{
        InterruptController,
        i8259::Pic,
        ioapic::{self, Ioapic},
        lapic::{self, GeneralProtection, Lapics, Outcome, StartupIpis},
    },
};

const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_ADDRESS_MASK: u64 = 0xffff_ffff_fff0_0000;
const MSI_LOGICAL: u64 = 1 << 2;
const MSI_DELIVERY_MODE: u32 = 7 << 8;

/// All controllers, without a lock.
#[derive(Debug)]
struct Controllers {
    pic: Pic,
    ioapic: Ioapic,
    lapics: Lapics,
}

impl Controllers {
    fn set_line(&mut self, irq: u8, asserted: bool) {
        if asserted {
            self.pic.assert_irq(irq);
        } else {
            self.pic.deassert_irq(irq);
        }
        self.ioapic.set_pin(irq, asserted, &mut self.lapics);
    }

    fn pending(&self, vcpu: u8) -> bool {
        self.lapics.is_pending(vcpu) || self.pic.pending() && self.lapics.passes_extint(vcpu)
    }

    fn acknowledge(&mut self, vcpu: u8) -> Option<u8> {
        match self.lapics.acknowledge(vcpu) {
            None if self.lapics.passes_extint(vcpu) => self.pic.acknowledge(),
            vector => vector,
        }
    }

    fn finish(&mut self, outcome: Outcome) -> StartupIpis {
        if let Some(vector) = outcome.end_of_interrupt {
            self.ioapic.end_of_interrupt(vector, &mut self.lapics);
        }
        outcome.startup_ipis
    }
}

/// Wakes a vCPU for a pending interrupt; called on the thread that caused it.
pub type Wake = Box<dyn Fn(u8) + Send + Sync>;

/// The controllers behind a lock, shared between the vCPUs' threads and the devices' threads.
pub struct SharedApic {
    controllers: Mutex<Controllers>,
    clock: Arc<dyn Clock>,
    ticks: HostTicks,
    wake: Wake,
}

impl SharedApic {
    /// The controllers of a VM with `vcpus` vCPUs at power-on. After a line was raised, a message
    /// was sent, a timer expired or a register was written, `wake` is called for each vCPU with a
    /// pending interrupt, without a lock held. It must make that vCPU check
    /// [`SharedApic::pending`].
    pub fn new(vcpus: u8, clock: Arc<dyn Clock>, ticks: HostTicks, wake: Wake) -> Self {
        let controllers = Controllers {
            pic: Pic::new(),
            ioapic: Ioapic::new(vcpus),
            lapics: Lapics::new(vcpus, Arc::clone(&clock), ticks),
        };
        Self { controllers: Mutex::new(controllers), clock, ticks, wake }
    }

    /// Whether an interrupt is pending for `vcpu`.
    pub fn pending(&self, vcpu: u8) -> bool {
        self.with(|all| all.pending(vcpu))
    }

    /// Moves `vcpu`'s highest-priority interrupt into service and returns its vector; `None` if
    /// nothing is pending.
    pub fn acknowledge(&self, vcpu: u8) -> Option<u8> {
        self.with(|all| all.acknowledge(vcpu))
    }

    /// Handles an access to a port of the 8259s (see [`super::i8259`]).
    pub fn access(&self, access: &mut PortAccess) {
        // The write can unmask an interrupt for another vCPU than the writing one.
        self.with_wake(|all| all.pic.access(access));
    }

    /// Handles an access by `vcpu` to the IOAPIC's window or the LAPIC page; `None` if the address
    /// is in neither. Returns the INIT and startup IPIs that the access sent.
    pub fn mmio(&self, vcpu: u8, access: &mut MmioAccess) -> Option<Result<StartupIpis, MmioRefused>> {
        let within = |base: u64, size: u64| access.address.wrapping_sub(base) < size;
        if within(lapic::BASE, lapic::SIZE) {
            return Some(self.with_wake(|all| {
                let outcome = all.lapics.mmio(vcpu, access)?;
                Ok(all.finish(outcome))
            }));
        }
        within(ioapic::BASE, ioapic::SIZE).then(|| {
            self.with_wake(|all| all.ioapic.mmio(access, &mut all.lapics));
            Ok(Vec::new())
        })
    }

    /// RDMSR of [`lapic::MSR_APICBASE`] or one of [`lapic::X2APIC_MSRS`].
    pub fn read_msr(&self, vcpu: u8, msr: u32) -> Result<u64, GeneralProtection> {
        self.with(|all| all.lapics.read_msr(vcpu, msr))
    }

    /// WRMSR of [`lapic::MSR_APICBASE`] or one of [`lapic::X2APIC_MSRS`]. Returns the INIT and
    /// startup IPIs that the write sent.
    pub fn write_msr(&self, vcpu: u8, msr: u32, value: u64) -> Result<StartupIpis, GeneralProtection> {
        self.with_wake(|all| {
            let outcome = all.lapics.write_msr(vcpu, msr, value)?;
            Ok(all.finish(outcome))
        })
    }

    /// The guest's CR8: the task priority class, 0 to 15.
    pub fn cr8(&self, vcpu: u8) -> u8 {
        self.with(|all| all.lapics.cr8(vcpu))
    }

    /// Sets the task priority class as a guest's write to CR8 does.
    pub fn set_cr8(&self, vcpu: u8, value: u8) {
        self.with(|all| all.lapics.set_cr8(vcpu, value));
    }

    /// Returns all controllers to their power-on state.
    pub fn reset(&self) {
        self.with(|all| {
            let vcpus = all.lapics.count();
            *all = Controllers {
                pic: Pic::new(),
                ioapic: Ioapic::new(vcpus),
                lapics: Lapics::new(vcpus, Arc::clone(&self.clock), self.ticks),
            };
        });
    }

    /// The time at which the event loop must call [`SharedApic::expire`], in nanoseconds on the
    /// clock's monotonic time.
    pub fn deadline(&self) -> Option<u64> {
        self.with(|all| all.lapics.deadline())
    }

    /// Delivers the LAPIC timers that have expired.
    pub fn expire(&self) {
        self.with_wake(|all| all.lapics.expire());
    }

    fn with<T>(&self, f: impl FnOnce(&mut Controllers) -> T) -> T {
        f(&mut self.controllers.lock())
    }

    /// As [`SharedApic::with`], then wakes every vCPU with a pending interrupt.
    fn with_wake<T>(&self, f: impl FnOnce(&mut Controllers) -> T) -> T {
        let (result, woken) = self.with(|all| {
            let result = f(all);
            let woken =
                (0..all.lapics.count()).filter(|vcpu| all.pending(*vcpu)).fold(0u64, |m, v| m | 1 << v);
            (result, woken)
        });
        for vcpu in (0..64).filter(|vcpu| woken >> vcpu & 1 != 0) {
            (self.wake)(vcpu);
        }
        result
    }
}

impl InterruptController for SharedApic {
    fn assert_irq(&self, irq: u8) {
        self.with_wake(|all| all.set_line(irq, true));
    }

    fn deassert_irq(&self, irq: u8) {
        self.with(|all| all.set_line(irq, false));
    }

    fn set_level_triggered(&self, irq: u8, level: bool) {
        self.with(|all| all.pic.set_level_triggered(irq, level));
    }

    fn message(&self, address: u64, data: u32) {
        if address & MSI_ADDRESS_MASK != MSI_ADDRESS
            || address & MSI_LOGICAL != 0
            || data & MSI_DELIVERY_MODE != 0
        {
            tracing::debug!("MSI dropped, as vmd does: {data:#x} to {address:#x}");
            return;
        }
        self.with_wake(|all| all.lapics.request((address >> 12) as u8, data as u8, false));
    }
}

impl fmt::Debug for SharedApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedApic").field("controllers", &self.controllers).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::{bus::Width, clock::ManualClock, irqchip::lapic::StartupIpi};

    struct Machine {
        apic: SharedApic,
        wakes: Arc<AtomicU32>,
    }

    /// One vCPU; the 8259s deliver from vector 0x20 on.
    fn machine() -> Machine {
        let wakes = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&wakes);
        let wake = Box::new(move |vcpu: u8| {
            assert_eq!(vcpu, 0);
            count.fetch_add(1, Ordering::Relaxed);
        });
        let apic = SharedApic::new(1, Arc::new(ManualClock::default()), HostTicks::default(), wake);
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1)] {
            apic.access(&mut PortAccess::output(port, Width::Byte, value));
        }
        Machine { apic, wakes }
    }

    /// Three vCPUs with enabled LAPICs, and a function that returns the bit map of vCPUs woken
    /// since its last call.
    fn three() -> (SharedApic, impl Fn() -> u32) {
        let woken = Arc::new(AtomicU32::new(0));
        let map = Arc::clone(&woken);
        let wake = Box::new(move |vcpu: u8| {
            map.fetch_or(1 << vcpu, Ordering::Relaxed);
        });
        let apic = SharedApic::new(3, Arc::new(ManualClock::default()), HostTicks::default(), wake);
        for vcpu in 0..3 {
            set_of(&apic, vcpu, SVR, 0x1ff);
        }
        (apic, move || woken.swap(0, Ordering::Relaxed))
    }

    fn set_of(apic: &SharedApic, vcpu: u8, address: u64, value: u32) -> StartupIpis {
        apic.mmio(vcpu, &mut MmioAccess::write(address, 4, value.into())).unwrap().unwrap()
    }

    fn set(apic: &SharedApic, address: u64, value: u32) {
        set_of(apic, 0, address, value);
    }

    fn redirect(apic: &SharedApic, pin: u32, low: u32) {
        set(apic, ioapic::BASE, 0x10 + 2 * pin);
        set(apic, ioapic::BASE + 0x10, low);
    }

    const SVR: u64 = lapic::BASE + 0xf0;
    const EOI: u64 = lapic::BASE + 0xb0;
    const LINT0: u64 = lapic::BASE + 0x350;
    const ICR_LOW: u64 = lapic::BASE + 0x300;
    const ICR_HIGH: u64 = lapic::BASE + 0x310;

    #[test]
    fn the_8259s_deliver_directly_until_the_lapic_is_enabled() {
        let Machine { apic, wakes } = machine();
        apic.assert_irq(4);
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        assert_eq!(apic.acknowledge(0), Some(0x24));
        set(&apic, SVR, 0x1ff);
        apic.assert_irq(4);
        assert!(!apic.pending(0), "LINT0 is masked");
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        set(&apic, LINT0, 0x700);
        assert!(apic.pending(0));
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
        assert_eq!(apic.acknowledge(0), Some(0x24));
    }

    #[test]
    fn a_line_reaches_both_controllers_and_the_lapic_has_priority() {
        let Machine { apic, .. } = machine();
        set(&apic, SVR, 0x1ff);
        set(&apic, LINT0, 0x700);
        redirect(&apic, 4, 0x51);
        apic.assert_irq(4);
        assert_eq!(apic.acknowledge(0), Some(0x51));
        assert_eq!(apic.acknowledge(0), Some(0x24));
        assert_eq!(apic.acknowledge(0), None);
    }

    #[test]
    fn eoi_delivers_a_level_interrupt_again_while_the_line_is_high() {
        let Machine { apic, wakes } = machine();
        set(&apic, SVR, 0x1ff);
        redirect(&apic, 9, 1 << 15 | 0x61);
        apic.assert_irq(9);
        assert_eq!(apic.acknowledge(0), Some(0x61));
        let before = wakes.load(Ordering::Relaxed);
        set(&apic, EOI, 0);
        assert_eq!(wakes.load(Ordering::Relaxed), before + 1);
        assert_eq!(apic.acknowledge(0), Some(0x61));
        apic.deassert_irq(9);
        set(&apic, EOI, 0);
        assert_eq!(apic.acknowledge(0), None);
    }

    #[test]
    fn an_ipi_and_a_line_wake_their_target_vcpu_only() {
        let (apic, woken) = three();
        set(&apic, ICR_HIGH, 2 << 24);
        set(&apic, ICR_LOW, 0x4000 | 0x45);
        assert_eq!((woken(), apic.pending(0), apic.pending(1)), (1 << 2, false, false));
        assert_eq!(apic.acknowledge(2), Some(0x45));
        set_of(&apic, 2, EOI, 0);
        assert_eq!(woken(), 0);
        // Line 9, level-triggered, to vCPU 1.
        set(&apic, ioapic::BASE, 0x10 + 2 * 9 + 1);
        set(&apic, ioapic::BASE + 0x10, 1 << 24);
        redirect(&apic, 9, 1 << 15 | 0x61);
        apic.assert_irq(9);
        assert_eq!((woken(), apic.acknowledge(1)), (1 << 1, Some(0x61)));
        // Its EOI on vCPU 1 delivers it there again while the line is high.
        set_of(&apic, 1, EOI, 0);
        assert_eq!((woken(), apic.acknowledge(1)), (1 << 1, Some(0x61)));
        apic.deassert_irq(9);
        set_of(&apic, 1, EOI, 0);
        assert_eq!((woken(), apic.pending(1)), (0, false));
    }

    #[test]
    fn init_and_startup_ipis_are_returned_to_the_sender() {
        let (apic, _) = three();
        // Shorthand "all excluding self", as firmware uses it.
        let others = 3 << 18 | 0x4000;
        let all = |what| vec![(1, what), (2, what)];
        assert_eq!(set_of(&apic, 0, ICR_LOW, others | 0x500), all(StartupIpi::Init));
        assert_eq!(set_of(&apic, 0, ICR_LOW, others | 0x600 | 0x9a), all(StartupIpi::Sipi(0x9a)));
        // INIT has disabled their LAPICs.
        assert_eq!(set_of(&apic, 0, ICR_LOW, others | 0x45), []);
        assert!(!apic.pending(1) && !apic.pending(2));
        // x2APIC mode, one destination.
        let base = lapic::BASE | 0xd00;
        apic.write_msr(0, lapic::MSR_APICBASE, base).unwrap();
        assert_eq!(apic.write_msr(0, 0x830, 1 << 32 | 0x4500), Ok(vec![(1, StartupIpi::Init)]));
        assert_eq!(apic.write_msr(0, 0x830, 2 << 32 | 0x4601), Ok(vec![(2, StartupIpi::Sipi(1))]));
    }

    #[test]
    fn messages_are_fixed_and_physical_or_dropped() {
        let Machine { apic, .. } = machine();
        set(&apic, SVR, 0x1ff);
        for (address, data) in [
            (0xfee0_0004, 0x41),
            (0xfee0_1000, 0x41),
            (0xfec0_0000, 0x41),
            (0x1_fee0_0000, 0x41),
            (0xfee0_0000, 0x141),
            (0xfee0_0000, 0x1f),
        ] {
            apic.message(address, data);
            assert!(!apic.pending(0), "{address:#x} {data:#x}");
        }
        apic.message(0xfee0_0000, 0x4041);
        assert_eq!(apic.acknowledge(0), Some(0x41));
    }

    #[test]
    fn a_reset_clears_all_controllers() {
        let Machine { apic, .. } = machine();
        set(&apic, SVR, 0x1ff);
        apic.message(0xfee0_0000, 0x41);
        apic.reset();
        assert!(!apic.pending(0));
        let mut access = MmioAccess::read(SVR, 4);
        apic.mmio(0, &mut access).unwrap().unwrap();
        assert_eq!(access.value(), 0);
        assert!(apic.mmio(0, &mut MmioAccess::read(0xfed0_0000, 4)).is_none());
    }
}
