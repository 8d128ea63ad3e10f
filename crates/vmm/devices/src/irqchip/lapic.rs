//! The local APICs of vmd(8) since 8.0: one per vCPU, in xAPIC mode (memory-mapped) or x2APIC mode
//! (MSRs).
//!
//! Sources: lapic.c 1.7 (September 2026) and the MSR handlers of vmm_machdep.c of the same month. A
//! guest can observe:
//!
//! - Registers are matched by exact offset, whatever the access's width; offsets between registers
//!   read as all ones.
//! - The timer's source is 100 MHz. TSC-deadline mode is neither announced nor implemented: the
//!   mode bit is stored in the LVT and the timer runs as a one-shot.
//! - **The timer is polled by a thread that sleeps 200 µs between two polls**, which takes 20 ms on
//!   a host with 100 ticks a second. Periods that end between two polls deliver one interrupt, and
//!   a one-shot is delivered at the next poll. Reading the current count never consumes an expiry.
//! - LVT entries store every written value; only the performance counter's entry stays masked. ESR
//!   never records an error, and no spurious interrupt is delivered.
//! - Disabling by software (SVR) neither masks the LVT nor clears pending requests.
//! - IPIs: fixed, INIT and startup; other delivery modes are dropped. Requests below vector 32 are
//!   dropped.
//! - The logical x2APIC ID is derived from the vCPU's number; destinations are matched against the
//!   number, not the register.

use std::sync::Arc;

use crate::{
    bus::{
        Direction,
        mmio::{MmioAccess, MmioRefused},
    },
    clock::{Clock, HostTicks, Timed},
};

/// First address of the xAPIC registers. They fill one page, which cannot be moved.
pub const BASE: u64 = 0xfee0_0000;
/// Number of bytes at [`BASE`].
pub const SIZE: u64 = 0x1000;

/// `IA32_APIC_BASE`.
pub const MSR_APICBASE: u32 = 0x1b;
/// First and last of the MSRs that vmm treats as x2APIC registers.
pub const X2APIC_MSRS: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;

const APICBASE_BSP: u64 = 1 << 8;
const APICBASE_X2APIC: u64 = 1 << 10;
const APICBASE_ENABLE: u64 = 1 << 11;
const APICBASE_MODE: u64 = APICBASE_X2APIC | APICBASE_ENABLE;
/// Address bits, 12 and up; only [`BASE`] is accepted.
const APICBASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const REG_ID: u16 = 0x020;
const REG_VERSION: u16 = 0x030;
const REG_TPR: u16 = 0x080;
const REG_APR: u16 = 0x090;
const REG_PPR: u16 = 0x0a0;
const REG_EOI: u16 = 0x0b0;
const REG_RRR: u16 = 0x0c0;
const REG_LDR: u16 = 0x0d0;
const REG_DFR: u16 = 0x0e0;
const REG_SVR: u16 = 0x0f0;
const REG_ISR: u16 = 0x100;
const REG_TMR: u16 = 0x180;
const REG_IRR: u16 = 0x200;
const REG_ESR: u16 = 0x280;
const REG_LVT_CMCI: u16 = 0x2f0;
const REG_ICR_LOW: u16 = 0x300;
const REG_ICR_HIGH: u16 = 0x310;
const REG_LVT_TIMER: u16 = 0x320;
const REG_LVT_THERMAL: u16 = 0x330;
const REG_LVT_PERFORMANCE: u16 = 0x340;
const REG_LVT_LINT0: u16 = 0x350;
const REG_LVT_LINT1: u16 = 0x360;
const REG_LVT_ERROR: u16 = 0x370;
const REG_INITIAL_COUNT: u16 = 0x380;
const REG_CURRENT_COUNT: u16 = 0x390;
const REG_DIVIDE: u16 = 0x3e0;

const MSR_ID: u32 = 0x802;
const MSR_LDR: u32 = 0x80d;
const MSR_EOI: u32 = 0x80b;
const MSR_ICR: u32 = 0x830;
const MSR_SELF_IPI: u32 = 0x83f;

/// Seven LVT entries, version 0x10.
const VERSION: u32 = 6 << 16 | 0x10;
const SVR_ENABLE: u32 = 0x100;
const SVR_WRITABLE: u32 = 0x3ff;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TIMER_MODE: u32 = 3 << 17;
const LVT_TIMER_PERIODIC: u32 = 1 << 17;
const DELIVERY_MODE: u32 = 7 << 8;
const DELIVERY_EXTINT: u32 = 7 << 8;
const ICR_LOGICAL: u32 = 1 << 11;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_LEVEL: u32 = 1 << 15;
const ICR_SHORTHAND: u32 = 3 << 18;
/// Vector, delivery mode, destination mode, level, trigger mode and shorthand: all but the
/// read-only status.
const ICR_WRITABLE: u32 = 0xff | DELIVERY_MODE | ICR_LOGICAL | ICR_ASSERT | ICR_LEVEL | ICR_SHORTHAND;
const DFR_FLAT: u32 = 0xffff_ffff;
/// Vectors below this are exceptions; requests for them are dropped.
const FIRST_VECTOR: u8 = 32;

/// Period of the timer's 100 MHz source, in nanoseconds.
const TIMER_PERIOD: u64 = 10;
/// Requested sleep of vmd's timer thread between two polls, in nanoseconds: 200 µs.
const POLL_SLEEP: u64 = 200_000;

/// The access is invalid; vmm injects #GP(0) instead of performing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("general protection fault")]
pub struct GeneralProtection;

/// A set of vectors: 256 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Vectors([u32; 8]);

impl Vectors {
    const fn set(&mut self, vector: u8, on: bool) {
        let bit = 1 << (vector % 32);
        let word = &mut self.0[vector as usize / 32];
        if on {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    /// The highest vector in the set, which has the highest priority.
    fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rfind(|(_, word)| **word != 0)?;
        Some((index as u32 * 32 + word.ilog2()) as u8)
    }
}

/// The timer's state. Times are nanoseconds on [`Clock::monotonic`].
#[derive(Clone, Copy, Debug, Default)]
struct Timer {
    initial: u32,
    divide: u32,
    start: u64,
    running: bool,
    periodic: bool,
}

impl Timer {
    /// Duration of one count, in nanoseconds.
    const fn count_nanos(&self) -> u64 {
        let divisor = match self.divide & 0xb {
            0x0 => 2,
            0x1 => 4,
            0x2 => 8,
            0x3 => 16,
            0x8 => 32,
            0x9 => 64,
            0xa => 128,
            _ => 1,
        };
        TIMER_PERIOD * divisor
    }

    /// Number of counts since the timer was started.
    const fn elapsed(&self, now: u64) -> u64 {
        now.saturating_sub(self.start) / self.count_nanos()
    }

    /// The current count, without consuming an expiry.
    const fn current(&self, now: u64) -> u32 {
        if !self.running || self.initial == 0 {
            return 0;
        }
        let elapsed = self.elapsed(now);
        if self.periodic {
            self.initial - (elapsed % self.initial as u64) as u32
        } else {
            (self.initial as u64).saturating_sub(elapsed) as u32
        }
    }

    /// Whether the timer has expired by `now`. If so, a one-shot is stopped and a periodic timer is
    /// advanced by whole periods, so that late polls do not accumulate.
    const fn take_expiry(&mut self, now: u64) -> bool {
        if !self.running || self.initial == 0 {
            return false;
        }
        let elapsed = self.elapsed(now);
        if elapsed < self.initial as u64 {
            return false;
        }
        if self.periodic {
            let periods = elapsed / self.initial as u64;
            self.start += periods * self.initial as u64 * self.count_nanos();
        } else {
            self.running = false;
        }
        true
    }
}

/// An inter-processor interrupt as the guest wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ipi {
    low: u32,
    destination: u32,
    x2apic: bool,
}

/// Effect of a register access outside the LAPIC's own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    None,
    /// The interrupt of this vector has ended; the IOAPIC must be told.
    EndOfInterrupt(u8),
    Ipi(Ipi),
}

/// One vCPU's local APIC.
#[derive(Clone, Debug)]
struct Lapic {
    number: u8,
    apicbase: u64,
    tpr: u32,
    svr: u32,
    ldr: u32,
    dfr: u32,
    esr: u32,
    icr_low: u32,
    icr_high: u32,
    x2apic_destination: u32,
    lvt_timer: u32,
    lvt_thermal: u32,
    lvt_performance: u32,
    lvt_lint0: u32,
    lvt_lint1: u32,
    lvt_error: u32,
    lvt_cmci: u32,
    isr: Vectors,
    irr: Vectors,
    tmr: Vectors,
    timer: Timer,
}

impl Lapic {
    fn new(number: u8) -> Self {
        Self {
            number,
            apicbase: BASE | APICBASE_ENABLE | if number == 0 { APICBASE_BSP } else { 0 },
            tpr: 0,
            svr: 0,
            ldr: 0,
            dfr: DFR_FLAT,
            esr: 0,
            icr_low: 0,
            icr_high: 0,
            x2apic_destination: 0,
            lvt_timer: LVT_MASKED,
            lvt_thermal: LVT_MASKED,
            lvt_performance: LVT_MASKED,
            lvt_lint0: LVT_MASKED,
            lvt_lint1: LVT_MASKED,
            lvt_error: LVT_MASKED,
            lvt_cmci: LVT_MASKED,
            isr: Vectors::default(),
            irr: Vectors::default(),
            tmr: Vectors::default(),
            timer: Timer::default(),
        }
    }

    /// INIT, or enabling after a disable: resets all registers but the mode.
    fn reset(&mut self) {
        *self = Self { apicbase: self.apicbase, ..Self::new(self.number) };
    }

    const fn hardware_enabled(&self) -> bool {
        self.apicbase & APICBASE_ENABLE != 0
    }

    const fn x2apic(&self) -> bool {
        self.apicbase & APICBASE_MODE == APICBASE_MODE
    }

    const fn enabled(&self) -> bool {
        self.hardware_enabled() && self.svr & SVR_ENABLE != 0
    }

    /// Whether LINT0 passes interrupts of the 8259s: unmasked and in ExtINT mode.
    const fn extint_enabled(&self) -> bool {
        self.enabled()
            && self.lvt_lint0 & LVT_MASKED == 0
            && self.lvt_lint0 & DELIVERY_MODE == DELIVERY_EXTINT
    }

    fn set_apicbase(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let old = self.apicbase & APICBASE_MODE;
        let new = value & APICBASE_MODE;
        if value & !(APICBASE_ADDRESS | APICBASE_BSP | APICBASE_MODE) != 0
            || value & APICBASE_ADDRESS != BASE
            || (value ^ self.apicbase) & APICBASE_BSP != 0
            || new == APICBASE_X2APIC
            || old == APICBASE_MODE && new == APICBASE_ENABLE
        {
            return Err(GeneralProtection);
        }
        if old == 0 && new == APICBASE_ENABLE {
            self.reset();
        }
        if old == APICBASE_ENABLE && new == APICBASE_MODE {
            self.ldr = 0;
            self.icr_high = 0;
            self.x2apic_destination = 0;
        }
        self.apicbase = value;
        Ok(())
    }

    /// The processor priority: the task priority, or the class of the highest interrupt in service
    /// if that is higher.
    fn ppr(&self) -> u32 {
        match self.isr.highest() {
            Some(vector) if u32::from(vector) & 0xf0 > self.tpr & 0xf0 => u32::from(vector) & 0xf0,
            _ => self.tpr & 0xff,
        }
    }

    /// The request that the vCPU would accept now.
    fn pending(&self) -> Option<u8> {
        if !self.enabled() {
            return None;
        }
        let vector = self.irr.highest()?;
        (u32::from(vector) & 0xf0 > self.ppr() & 0xf0).then_some(vector)
    }

    fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.isr.set(vector, true);
        self.irr.set(vector, false);
        Some(vector)
    }

    /// Records a request. Returns `false` if it was dropped.
    fn request(&mut self, vector: u8, level: bool) -> bool {
        if vector < FIRST_VECTOR || !self.enabled() {
            return false;
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
        true
    }

    /// Polls the timer, as vmd's thread does.
    fn poll_timer(&mut self, now: u64) {
        if self.timer.take_expiry(now) && self.lvt_timer & LVT_MASKED == 0 {
            self.request(self.lvt_timer as u8, false);
        }
    }

    fn read(&self, register: u16, now: u64) -> Option<u32> {
        let word = usize::from(register >> 4 & 7);
        Some(match register {
            REG_ID => u32::from(self.number) << 24,
            REG_VERSION => VERSION,
            REG_TPR => self.tpr,
            REG_APR | REG_RRR => 0,
            REG_PPR => self.ppr(),
            REG_LDR => self.ldr,
            REG_DFR => self.dfr,
            REG_SVR => self.svr,
            REG_ISR..=0x17f if register.is_multiple_of(16) => self.isr.0[word],
            REG_TMR..=0x1ff if register.is_multiple_of(16) => self.tmr.0[word],
            REG_IRR..=0x27f if register.is_multiple_of(16) => self.irr.0[word],
            REG_ESR => self.esr,
            REG_ICR_LOW => self.icr_low,
            REG_ICR_HIGH => self.icr_high,
            REG_LVT_TIMER => self.lvt_timer,
            REG_LVT_THERMAL => self.lvt_thermal,
            REG_LVT_PERFORMANCE => self.lvt_performance,
            REG_LVT_LINT0 => self.lvt_lint0,
            REG_LVT_LINT1 => self.lvt_lint1,
            REG_LVT_ERROR => self.lvt_error,
            REG_LVT_CMCI => self.lvt_cmci,
            REG_INITIAL_COUNT => self.timer.initial,
            REG_CURRENT_COUNT => self.timer.current(now),
            REG_DIVIDE => self.timer.divide,
            _ => return None,
        })
    }

    fn write(&mut self, register: u16, value: u32, now: u64) -> Effect {
        match register {
            REG_TPR => self.tpr = value & 0xff,
            REG_EOI => {
                if let Some(vector) = self.isr.highest() {
                    self.isr.set(vector, false);
                    self.tmr.set(vector, false);
                    return Effect::EndOfInterrupt(vector);
                }
            }
            REG_LDR => self.ldr = value,
            REG_DFR => self.dfr = value | 0x0fff_ffff,
            REG_SVR => self.svr = value & SVR_WRITABLE,
            REG_ESR => self.esr &= !value,
            REG_ICR_LOW => {
                self.icr_low = value & ICR_WRITABLE;
                self.x2apic_destination = self.icr_high >> 24;
                return Effect::Ipi(Ipi {
                    low: self.icr_low,
                    destination: self.x2apic_destination,
                    x2apic: false,
                });
            }
            REG_ICR_HIGH => self.icr_high = value & 0xff00_0000,
            REG_LVT_TIMER => {
                self.lvt_timer = value;
                self.timer.periodic = value & LVT_TIMER_MODE == LVT_TIMER_PERIODIC;
            }
            REG_LVT_THERMAL => self.lvt_thermal = value,
            REG_LVT_PERFORMANCE => self.lvt_performance = value | LVT_MASKED,
            REG_LVT_LINT0 => self.lvt_lint0 = value,
            REG_LVT_LINT1 => self.lvt_lint1 = value,
            REG_LVT_ERROR => self.lvt_error = value,
            REG_LVT_CMCI => self.lvt_cmci = value,
            REG_INITIAL_COUNT => {
                self.timer.initial = value;
                self.timer.start = now;
                self.timer.running = value != 0;
                self.timer.periodic = self.lvt_timer & LVT_TIMER_MODE == LVT_TIMER_PERIODIC;
            }
            REG_DIVIDE => self.timer.divide = value & 0xf,
            _ => {}
        }
        Effect::None
    }

    fn access(&mut self, access: &mut MmioAccess, now: u64) -> Effect {
        // The window stays mapped when the LAPIC is disabled or in x2APIC mode; it reads as ones.
        if !self.hardware_enabled() || self.apicbase & APICBASE_X2APIC != 0 {
            if access.direction == Direction::In {
                access.answer_ones();
            }
            return Effect::None;
        }
        let register = (access.address & 0xfff) as u16;
        match access.direction {
            Direction::Out => self.write(register, access.data as u32, now),
            Direction::In => {
                match self.read(register, now) {
                    Some(value) => access.answer_dword(value),
                    // vmd does not write the answer to a read of EOI: the guest gets what lay on
                    // vmd's stack. Here it gets zero.
                    None if register == REG_EOI => {}
                    None => access.answer_ones(),
                }
                Effect::None
            }
        }
    }

    fn read_msr(&self, msr: u32, now: u64) -> Result<u64, GeneralProtection> {
        if !self.x2apic() {
            return Err(GeneralProtection);
        }
        Ok(match msr {
            MSR_ID => u64::from(self.number),
            MSR_LDR => u64::from(self.number >> 4) << 16 | 1 << (self.number & 0xf),
            MSR_ICR => u64::from(self.x2apic_destination) << 32 | u64::from(self.icr_low),
            0x803 | 0x808 | 0x80a | 0x80f | 0x810..=0x828 | 0x82f | 0x832..=0x839 | 0x83e => {
                u64::from(self.read(register_of(msr), now).ok_or(GeneralProtection)?)
            }
            _ => return Err(GeneralProtection),
        })
    }

    fn write_msr(&mut self, msr: u32, value: u64, now: u64) -> Result<Effect, GeneralProtection> {
        if !self.x2apic() || msr != MSR_ICR && value >> 32 != 0 {
            return Err(GeneralProtection);
        }
        Ok(match msr {
            MSR_EOI if value != 0 => return Err(GeneralProtection),
            MSR_SELF_IPI if value > 0xff => return Err(GeneralProtection),
            MSR_ICR => {
                self.icr_low = value as u32 & ICR_WRITABLE;
                self.x2apic_destination = (value >> 32) as u32;
                self.icr_high = self.x2apic_destination << 24;
                Effect::Ipi(Ipi { low: self.icr_low, destination: self.x2apic_destination, x2apic: true })
            }
            MSR_SELF_IPI => Effect::Ipi(Ipi { low: value as u32 | 1 << 18, destination: 0, x2apic: true }),
            0x808 | MSR_EOI | 0x80f | 0x828 | 0x82f | 0x832..=0x838 | 0x83e => {
                self.write(register_of(msr), value as u32, now)
            }
            _ => return Err(GeneralProtection),
        })
    }
}

/// The xAPIC register that an x2APIC MSR stands for.
const fn register_of(msr: u32) -> u16 {
    ((msr & 0xff) << 4) as u16
}

/// An IPI that starts or stops another vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartupIpi {
    /// INIT: the vCPU stops and waits for a startup IPI. Its LAPIC has already been reset.
    Init,
    /// StartupIpi IPI: the vCPU starts in real mode at `vector << 12`. Ignored unless the vCPU
    /// waits for it.
    Sipi(u8),
}

/// INIT and startup IPIs by target vCPU number, in the order in which they were sent.
pub type StartupIpis = Vec<(u8, StartupIpi)>;

/// What the caller must do after an access to a LAPIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The vector whose interrupt ended; pass it to
    /// [`crate::irqchip::ioapic::Ioapic::end_of_interrupt`].
    pub end_of_interrupt: Option<u8>,
    /// vCPUs to start or stop.
    pub startup_ipis: StartupIpis,
}

/// The local APICs of all vCPUs.
pub struct Lapics {
    all: Vec<Lapic>,
    clock: Arc<dyn Clock>,
    ticks: HostTicks,
    next_poll: u64,
}

impl Lapics {
    /// The LAPICs of `vcpus` vCPUs (1 to 64) at power-on. `ticks` is the resolution of the timer
    /// thread's sleep.
    pub fn new(vcpus: u8, clock: Arc<dyn Clock>, ticks: HostTicks) -> Self {
        let next_poll = ticks.fires_at(clock.monotonic(), POLL_SLEEP);
        Self { all: (0..vcpus.clamp(1, 64)).map(Lapic::new).collect(), clock, ticks, next_poll }
    }

    /// Number of LAPICs.
    pub fn count(&self) -> u8 {
        self.all.len() as u8
    }

    /// Handles a read or write of `vcpu` in the LAPIC page.
    pub fn mmio(&mut self, vcpu: u8, access: &mut MmioAccess) -> Result<Outcome, MmioRefused> {
        let now = self.clock.monotonic();
        let Some(lapic) = self.all.get_mut(usize::from(vcpu)) else {
            return Err(MmioRefused::from(&*access));
        };
        let effect = lapic.access(access, now);
        Ok(self.carry_out(vcpu, effect))
    }

    /// RDMSR by `vcpu` of [`MSR_APICBASE`] or one of [`X2APIC_MSRS`].
    pub fn read_msr(&self, vcpu: u8, msr: u32) -> Result<u64, GeneralProtection> {
        let lapic = self.all.get(usize::from(vcpu)).ok_or(GeneralProtection)?;
        if msr == MSR_APICBASE { Ok(lapic.apicbase) } else { lapic.read_msr(msr, self.clock.monotonic()) }
    }

    /// WRMSR by `vcpu` of [`MSR_APICBASE`] or one of [`X2APIC_MSRS`].
    pub fn write_msr(&mut self, vcpu: u8, msr: u32, value: u64) -> Result<Outcome, GeneralProtection> {
        let now = self.clock.monotonic();
        let lapic = self.all.get_mut(usize::from(vcpu)).ok_or(GeneralProtection)?;
        if msr == MSR_APICBASE {
            lapic.set_apicbase(value)?;
            return Ok(Outcome::default());
        }
        let effect = lapic.write_msr(msr, value, now)?;
        Ok(self.carry_out(vcpu, effect))
    }

    /// CR8 of `vcpu`: the upper four bits of the task priority, 0 to 15.
    pub fn cr8(&self, vcpu: u8) -> u8 {
        self.all.get(usize::from(vcpu)).map_or(0, |lapic| (lapic.tpr >> 4) as u8)
    }

    /// Sets CR8 of `vcpu` (bits 0 to 3 of `value`).
    pub fn set_cr8(&mut self, vcpu: u8, value: u8) {
        if let Some(lapic) = self.all.get_mut(usize::from(vcpu)).filter(|l| l.tpr >> 4 != u32::from(value)) {
            lapic.tpr = u32::from(value & 0xf) << 4;
        }
    }

    /// Whether `vcpu`'s LAPIC is enabled by both the MSR and SVR.
    pub fn enabled(&self, vcpu: u8) -> bool {
        self.all.get(usize::from(vcpu)).is_some_and(Lapic::enabled)
    }

    /// Whether the 8259s deliver to `vcpu`: through LINT0, or directly if the LAPIC is disabled.
    pub fn passes_extint(&self, vcpu: u8) -> bool {
        self.all.get(usize::from(vcpu)).is_none_or(|lapic| !lapic.enabled() || lapic.extint_enabled())
    }

    /// Whether `vcpu` has a request above its processor priority.
    pub fn is_pending(&self, vcpu: u8) -> bool {
        self.all.get(usize::from(vcpu)).is_some_and(|lapic| lapic.pending().is_some())
    }

    /// Moves `vcpu`'s highest-priority request into service and returns its vector.
    pub fn acknowledge(&mut self, vcpu: u8) -> Option<u8> {
        self.all.get_mut(usize::from(vcpu))?.acknowledge()
    }

    /// Requests `vector` at `vcpu`'s LAPIC. Returns `false` if it was dropped.
    pub fn request(&mut self, vcpu: u8, vector: u8, level: bool) -> bool {
        self.all.get_mut(usize::from(vcpu)).is_some_and(|lapic| lapic.request(vector, level))
    }

    /// The vCPUs that an xAPIC destination addresses, as a bit map. 0xff addresses all of them in
    /// either mode.
    pub fn targets(&self, destination: u8, logical: bool) -> u64 {
        self.mask_of(|lapic| {
            if destination == 0xff {
                return true;
            }
            if !logical {
                return lapic.number == destination;
            }
            let id = (lapic.ldr >> 24) as u8;
            if lapic.dfr == DFR_FLAT {
                id & destination != 0
            } else {
                // Cluster model: the high nibble is the cluster.
                id >> 4 == destination >> 4 && id & destination & 0xf != 0
            }
        })
    }

    /// The enabled vCPU with the lowest priority among the bit map `targets`; the search starts at
    /// `first`, so that ties rotate.
    pub fn lowest_priority(&self, targets: u64, first: u8) -> Option<u8> {
        let count = self.count();
        (0..count)
            .map(|n| (first % count + n) % count)
            .filter(|vcpu| targets >> vcpu & 1 != 0 && self.enabled(*vcpu))
            .min_by_key(|vcpu| self.all[usize::from(*vcpu)].ppr() & 0xf0)
    }

    fn mask_of(&self, chosen: impl Fn(&Lapic) -> bool) -> u64 {
        self.all.iter().filter(|lapic| chosen(lapic)).fold(0, |mask, lapic| mask | 1 << lapic.number)
    }

    fn ipi_targets(&self, source: u8, ipi: Ipi) -> u64 {
        match ipi.low >> 18 & 3 {
            1 => 1 << source,
            2 => self.mask_of(|_| true),
            3 => self.mask_of(|lapic| lapic.number != source),
            _ if !ipi.x2apic => self.targets(ipi.destination as u8, ipi.low & ICR_LOGICAL != 0),
            _ => self.mask_of(|lapic| {
                ipi.destination == u32::MAX
                    || if ipi.low & ICR_LOGICAL == 0 {
                        u32::from(lapic.number) == ipi.destination
                    } else {
                        u32::from(lapic.number >> 4) == ipi.destination >> 16
                            && ipi.destination >> (lapic.number & 0xf) & 1 != 0
                    }
            }),
        }
    }

    fn carry_out(&mut self, source: u8, effect: Effect) -> Outcome {
        let mut outcome = Outcome::default();
        match effect {
            Effect::None => {}
            Effect::EndOfInterrupt(vector) => outcome.end_of_interrupt = Some(vector),
            Effect::Ipi(ipi) => {
                let targets = self.ipi_targets(source, ipi);
                let vector = ipi.low as u8;
                for vcpu in (0..self.count()).filter(|vcpu| targets >> vcpu & 1 != 0) {
                    match ipi.low >> 8 & 7 {
                        0 => {
                            self.request(vcpu, vector, false);
                        }
                        // A level-triggered deassert is the second half of the old INIT handshake
                        // and has no effect.
                        5 if ipi.low & ICR_LEVEL == 0 || ipi.low & ICR_ASSERT != 0 => {
                            self.all[usize::from(vcpu)].reset();
                            outcome.startup_ipis.push((vcpu, StartupIpi::Init));
                        }
                        6 => outcome.startup_ipis.push((vcpu, StartupIpi::Sipi(vector))),
                        _ => {}
                    }
                }
            }
        }
        outcome
    }

    /// Time between two polls of vmd's thread, in nanoseconds: it sleeps from host tick to host
    /// tick.
    const fn spacing(&self) -> u64 {
        self.ticks.fires_at(self.next_poll, POLL_SLEEP) - self.next_poll
    }
}

impl Timed for Lapics {
    /// The poll that finds the first expiry. vmd also polls when no timer is due, which has no
    /// effect.
    fn deadline(&self) -> Option<u64> {
        self.all
            .iter()
            .map(|lapic| &lapic.timer)
            .filter(|timer| timer.running && timer.initial != 0)
            .map(|timer| timer.start + u64::from(timer.initial) * timer.count_nanos())
            .min()
            .map(|due| {
                self.next_poll + due.saturating_sub(self.next_poll).div_ceil(self.spacing()) * self.spacing()
            })
    }

    fn expire(&mut self) {
        let now = self.clock.monotonic();
        if now < self.next_poll {
            return;
        }
        // A late call acts at the last poll that vmd would have done; what came due after it waits
        // for the next poll.
        let poll = self.next_poll + (now - self.next_poll) / self.spacing() * self.spacing();
        for lapic in &mut self.all {
            lapic.poll_timer(poll);
        }
        self.next_poll = poll + self.spacing();
    }
}

impl std::fmt::Debug for Lapics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lapics")
            .field("all", &self.all)
            .field("next_poll", &self.next_poll)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::ManualClock;

    const MS: u64 = 1_000_000;

    fn lapics(vcpus: u8) -> (Lapics, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(1000 * MS, 0));
        let mut lapics = Lapics::new(vcpus, Arc::clone(&clock) as _, HostTicks::default());
        for vcpu in 0..vcpus {
            set(&mut lapics, vcpu, REG_SVR, 0x1ff);
        }
        (lapics, clock)
    }

    fn set(lapics: &mut Lapics, vcpu: u8, register: u16, value: u32) -> Outcome {
        lapics.mmio(vcpu, &mut MmioAccess::write(BASE + u64::from(register), 4, value.into())).unwrap()
    }

    fn get(lapics: &mut Lapics, vcpu: u8, register: u16) -> u32 {
        let mut access = MmioAccess::read(BASE + u64::from(register), 4);
        lapics.mmio(vcpu, &mut access).unwrap();
        access.value() as u32
    }

    #[test]
    fn registers_after_power_on() {
        let (mut lapics, _) = lapics(2);
        for (register, value) in [
            (REG_ID, 1 << 24),
            (REG_VERSION, 0x0006_0010),
            (REG_DFR, u32::MAX),
            (REG_SVR, 0x1ff),
            (REG_LVT_TIMER, LVT_MASKED),
            (REG_LVT_CMCI, LVT_MASKED),
            (REG_CURRENT_COUNT, 0),
            (REG_APR, 0),
            (0x024, u32::MAX),
            (0x3f0, u32::MAX),
            (0x010, u32::MAX),
        ] {
            assert_eq!(get(&mut lapics, 1, register), value, "{register:#x}");
        }
        assert_eq!(lapics.read_msr(0, MSR_APICBASE), Ok(0xfee0_0900));
        assert_eq!(lapics.read_msr(1, MSR_APICBASE), Ok(0xfee0_0800));
    }

    #[test]
    fn writable_bits() {
        let (mut lapics, _) = lapics(1);
        for (register, kept) in [
            (REG_ID, 0),
            (REG_TPR, 0xff),
            (REG_LDR, u32::MAX),
            (REG_SVR, 0x3ff),
            (REG_LVT_LINT0, u32::MAX),
            (REG_LVT_PERFORMANCE, u32::MAX),
            (REG_ICR_HIGH, 0xff00_0000),
            (REG_DIVIDE, 0xf),
            (REG_INITIAL_COUNT, u32::MAX),
            (REG_ESR, 0),
        ] {
            set(&mut lapics, 0, register, u32::MAX);
            assert_eq!(get(&mut lapics, 0, register), kept, "{register:#x}");
        }
        set(&mut lapics, 0, REG_LVT_PERFORMANCE, 0x400);
        assert_eq!(get(&mut lapics, 0, REG_LVT_PERFORMANCE), LVT_MASKED | 0x400);
        set(&mut lapics, 0, REG_DFR, 0);
        assert_eq!(get(&mut lapics, 0, REG_DFR), 0x0fff_ffff);
    }

    #[test]
    fn a_one_shot_is_delivered_at_the_next_poll_of_a_100_hz_host() {
        let (mut lapics, clock) = lapics(1);
        set(&mut lapics, 0, REG_LVT_TIMER, 0x30);
        set(&mut lapics, 0, REG_DIVIDE, 0xb);
        // 1 ms from 1000 ms on; polls are at 1020, 1040, ...
        set(&mut lapics, 0, REG_INITIAL_COUNT, 100_000);
        assert_eq!(lapics.deadline(), Some(1020 * MS));
        clock.advance(MS / 2);
        assert_eq!(get(&mut lapics, 0, REG_CURRENT_COUNT), 50_000);
        clock.advance(10 * MS);
        lapics.expire();
        assert_eq!(get(&mut lapics, 0, REG_CURRENT_COUNT), 0, "reading does not consume the expiry");
        assert!(!lapics.is_pending(0));
        clock.advance(10 * MS);
        lapics.expire();
        assert_eq!(lapics.acknowledge(0), Some(0x30));
        assert_eq!(lapics.deadline(), None);
    }

    #[test]
    fn periods_between_two_polls_are_one_interrupt_and_do_not_drift() {
        let (mut lapics, clock) = lapics(1);
        set(&mut lapics, 0, REG_LVT_TIMER, LVT_TIMER_PERIODIC | 0x30);
        set(&mut lapics, 0, REG_DIVIDE, 0x3);
        // 4 ms: 25,000 counts of 160 ns.
        set(&mut lapics, 0, REG_INITIAL_COUNT, 25_000);
        let mut interrupts = 0;
        for _ in 0..1000 {
            clock.advance(MS);
            lapics.expire();
            if lapics.acknowledge(0).is_some() {
                interrupts += 1;
                set(&mut lapics, 0, REG_EOI, 0);
            }
        }
        assert_eq!(interrupts, 50, "250 periods, 50 looks");
        assert_eq!(get(&mut lapics, 0, REG_CURRENT_COUNT), 25_000, "2000 ms are a whole number of periods");
    }

    #[test]
    fn a_finer_host_loses_no_period() {
        let clock = Arc::new(ManualClock::new(0, 0));
        let ticks = HostTicks::new(std::num::NonZeroU32::new(10_000).unwrap());
        let mut lapics = Lapics::new(1, Arc::clone(&clock) as _, ticks);
        set(&mut lapics, 0, REG_SVR, 0x1ff);
        set(&mut lapics, 0, REG_LVT_TIMER, LVT_TIMER_PERIODIC | 0x30);
        set(&mut lapics, 0, REG_DIVIDE, 0xb);
        set(&mut lapics, 0, REG_INITIAL_COUNT, 400_000);
        let mut interrupts = 0;
        while clock.monotonic() < 1000 * MS {
            clock.advance(lapics.deadline().unwrap() - clock.monotonic());
            lapics.expire();
            interrupts += u32::from(lapics.acknowledge(0).is_some());
            set(&mut lapics, 0, REG_EOI, 0);
        }
        assert_eq!(interrupts, 250);
    }

    #[test]
    fn tsc_deadline_mode_runs_as_a_one_shot() {
        let (mut lapics, clock) = lapics(1);
        set(&mut lapics, 0, REG_LVT_TIMER, 0x0004_0030);
        assert_eq!(get(&mut lapics, 0, REG_LVT_TIMER), 0x0004_0030);
        set(&mut lapics, 0, REG_INITIAL_COUNT, 10);
        clock.advance(30 * MS);
        lapics.expire();
        assert_eq!(lapics.acknowledge(0), Some(0x30));
    }

    #[test]
    fn a_masked_timer_expires_without_an_interrupt() {
        let (mut lapics, clock) = lapics(1);
        set(&mut lapics, 0, REG_INITIAL_COUNT, 10);
        clock.advance(30 * MS);
        lapics.expire();
        set(&mut lapics, 0, REG_LVT_TIMER, 0x30);
        assert_eq!(lapics.acknowledge(0), None);
        assert_eq!(lapics.deadline(), None);
    }

    #[test]
    fn priorities_nest_by_class() {
        let (mut lapics, _) = lapics(1);
        assert!(lapics.request(0, 0x41, false));
        assert!(lapics.request(0, 0x4f, false));
        assert!(lapics.request(0, 0x52, true));
        assert_eq!(lapics.acknowledge(0), Some(0x52));
        assert_eq!(get(&mut lapics, 0, REG_PPR), 0x50);
        assert_eq!(get(&mut lapics, 0, REG_TMR + 0x20), 1 << 0x12);
        assert_eq!(lapics.acknowledge(0), None, "a lower class waits");
        assert!(lapics.request(0, 0x60, false));
        assert_eq!(lapics.acknowledge(0), Some(0x60));
        for ended in [0x60, 0x52] {
            assert_eq!(set(&mut lapics, 0, REG_EOI, 0).end_of_interrupt, Some(ended));
        }
        assert_eq!(lapics.acknowledge(0), Some(0x4f));
        assert_eq!(lapics.acknowledge(0), None, "the same class waits");
        set(&mut lapics, 0, REG_EOI, 0);
        set(&mut lapics, 0, REG_TPR, 0x40);
        assert_eq!(lapics.cr8(0), 4);
        assert!(!lapics.is_pending(0), "the task's priority holds it back");
        lapics.set_cr8(0, 3);
        assert_eq!(lapics.acknowledge(0), Some(0x41));
        assert_eq!(set(&mut lapics, 0, REG_EOI, 0).end_of_interrupt, Some(0x41));
        assert_eq!(set(&mut lapics, 0, REG_EOI, 0).end_of_interrupt, None);
    }

    #[test]
    fn exception_vectors_are_dropped_and_disabled_lapics_accept_nothing() {
        let (mut lapics, _) = lapics(1);
        assert!(!lapics.request(0, 31, false));
        assert!(!lapics.request(1, 0x40, false));
        assert!(lapics.request(0, 0x40, false));
        set(&mut lapics, 0, REG_SVR, 0xff);
        assert!(!lapics.request(0, 0x41, false));
        assert!(!lapics.is_pending(0));
        assert!(lapics.passes_extint(0), "a LAPIC that is off leaves the 8259s wired to the processor");
        set(&mut lapics, 0, REG_SVR, 0x1ff);
        assert_eq!(lapics.acknowledge(0), Some(0x40), "what was requested before is not forgotten");
        assert!(!lapics.passes_extint(0));
        set(&mut lapics, 0, REG_LVT_LINT0, 0x700);
        assert!(lapics.passes_extint(0));
    }

    #[test]
    fn modes_change_as_the_manual_allows() {
        let (mut lapics, _) = lapics(1);
        let base = BASE | APICBASE_BSP;
        for refused in [
            base | APICBASE_X2APIC,
            base | APICBASE_ENABLE | 1,
            BASE | APICBASE_ENABLE,
            (base | APICBASE_ENABLE) + 0x1000,
            1 << 63 | base,
        ] {
            assert_eq!(lapics.write_msr(0, MSR_APICBASE, refused), Err(GeneralProtection), "{refused:#x}");
        }
        assert_eq!(lapics.read_msr(0, MSR_ID), Err(GeneralProtection), "not in x2APIC mode");
        set(&mut lapics, 0, REG_LDR, 0x0100_0000);
        lapics.write_msr(0, MSR_APICBASE, base | APICBASE_MODE).unwrap();
        assert_eq!(get(&mut lapics, 0, REG_VERSION), u32::MAX, "the page is inert");
        assert_eq!(lapics.read_msr(0, 0x803), Ok(VERSION.into()));
        assert_eq!(lapics.read_msr(0, MSR_LDR), Ok(1));
        assert_eq!(lapics.read_msr(0, 0x80f), Ok(0x1ff), "SVR is kept");
        assert_eq!(lapics.write_msr(0, MSR_APICBASE, base | APICBASE_ENABLE), Err(GeneralProtection));
        lapics.write_msr(0, MSR_APICBASE, base).unwrap();
        assert!(!lapics.enabled(0));
        lapics.write_msr(0, MSR_APICBASE, base | APICBASE_ENABLE).unwrap();
        assert_eq!(get(&mut lapics, 0, REG_SVR), 0, "enabling it again resets it");
        assert_eq!(get(&mut lapics, 0, REG_LDR), 0);
    }

    #[test]
    fn invalid_x2apic_accesses_fault() {
        let (mut lapics, _) = lapics(1);
        lapics.write_msr(0, MSR_APICBASE, BASE | APICBASE_BSP | APICBASE_MODE).unwrap();
        for msr in [0x800, 0x809, 0x80b, 0x80c, 0x80e, 0x829, 0x831, 0x83a, 0x83f, 0x840, 0x8ff] {
            assert_eq!(lapics.read_msr(0, msr), Err(GeneralProtection), "{msr:#x}");
        }
        for (msr, value) in
            [(0x802, 0), (0x80d, 0), (0x810, 0), (0x839, 0), (0x80b, 1), (0x83f, 0x100), (0x808, 1 << 32)]
        {
            assert_eq!(lapics.write_msr(0, msr, value), Err(GeneralProtection), "{msr:#x}");
        }
        lapics.write_msr(0, MSR_SELF_IPI, 0x45).unwrap();
        assert_eq!(lapics.acknowledge(0), Some(0x45));
        assert_eq!(lapics.write_msr(0, MSR_EOI, 0).unwrap().end_of_interrupt, Some(0x45));
        lapics.write_msr(0, MSR_ICR, 0x0000_0000_0000_4046).unwrap();
        assert_eq!(lapics.read_msr(0, MSR_ICR), Ok(0x4046));
        assert_eq!(lapics.acknowledge(0), Some(0x46));
    }

    #[test]
    fn ipis_reach_the_addressed_vcpus() {
        let (mut lapics, _) = lapics(3);
        let takers = |lapics: &mut Lapics| {
            (0..3).filter(|vcpu| lapics.acknowledge(*vcpu).is_some()).collect::<Vec<_>>()
        };
        for (high, low, expected) in [
            (0x0200_0000, 0x40, vec![2]),
            (0xff00_0000, 0x50, vec![0, 1, 2]),
            (0x0500_0000, 0x60, vec![]),
            (0, 1 << 18 | 0x70, vec![1]),
            (0, 2 << 18 | 0x80, vec![0, 1, 2]),
            (0, 3 << 18 | 0x90, vec![0, 2]),
            (0, 1 << 18 | 0x400 | 0xa0, vec![]),
            (0, 1 << 18 | 0x100 | 0xa0, vec![]),
        ] {
            set(&mut lapics, 1, REG_ICR_HIGH, high);
            set(&mut lapics, 1, REG_ICR_LOW, low);
            assert_eq!(takers(&mut lapics), expected, "{high:#x} {low:#x}");
        }
        // Logical: flat, then clusters.
        for vcpu in 0..3 {
            set(&mut lapics, vcpu, REG_LDR, (0x11 + u32::from(vcpu)) << 24);
        }
        set(&mut lapics, 0, REG_ICR_HIGH, 0x0200_0000);
        set(&mut lapics, 0, REG_ICR_LOW, ICR_LOGICAL | 0xb0);
        assert_eq!(takers(&mut lapics), [1, 2], "0x12 and 0x13 have bit 1");
        for vcpu in 0..3 {
            set(&mut lapics, vcpu, REG_DFR, 0);
        }
        set(&mut lapics, 0, REG_ICR_HIGH, 0x2200_0000);
        set(&mut lapics, 0, REG_ICR_LOW, ICR_LOGICAL | 0xc0);
        assert_eq!(takers(&mut lapics), [] as [u8; 0], "no such cluster");
    }

    #[test]
    fn init_resets_and_a_startup_ipi_carries_a_page() {
        let (mut lapics, _) = lapics(2);
        set(&mut lapics, 0, REG_ICR_HIGH, 0x0100_0000);
        assert_eq!(set(&mut lapics, 0, REG_ICR_LOW, 0xc500).startup_ipis, [(1, StartupIpi::Init)]);
        assert_eq!(get(&mut lapics, 1, REG_SVR), 0);
        assert_eq!(set(&mut lapics, 0, REG_ICR_LOW, 0x8500).startup_ipis, [], "deassert");
        assert_eq!(set(&mut lapics, 0, REG_ICR_LOW, 0x0699).startup_ipis, [(1, StartupIpi::Sipi(0x99))]);
    }

    proptest! {
        #[test]
        fn no_access_panics(
            steps in prop::collection::vec((0u8..4, 0u64..0x1100, any::<u64>(), 0u8..6, 0u64..50_000_000), 0..300),
        ) {
            let (mut lapics, clock) = lapics(3);
            for (vcpu, place, data, what, nanos) in steps {
                clock.advance(nanos);
                let aligned = BASE + (place & 0xff0);
                match what {
                    0 => drop(lapics.mmio(vcpu, &mut MmioAccess::write(aligned, 4, data))),
                    1 => drop(lapics.mmio(vcpu, &mut MmioAccess::read(BASE + (place & 0xfff), 8))),
                    2 => drop(lapics.write_msr(vcpu, 0x800 + (place as u32 & 0xff), data)),
                    3 => drop(lapics.read_msr(vcpu, 0x800 + (place as u32 & 0xff))),
                    4 => drop(lapics.write_msr(vcpu, MSR_APICBASE, BASE | data & 0xd00)),
                    _ => drop(lapics.acknowledge(vcpu)),
                }
                lapics.expire();
                prop_assert!(lapics.deadline().is_none_or(|at| at > clock.monotonic()));
            }
        }
    }
}
