//! The IOAPIC of vmd(8) since 8.0: an 82093AA with 24 pins.
//!
//! Source: i82093aa.c 1.4 (September 2026). A guest can observe:
//!
//! - A device's line goes to the pin of its number and to the 8259s at the same time. The timer's
//!   IRQ 0 has no override: it is pin 0.
//! - A pin is asserted or not: the polarity bit can be written and has no effect.
//! - Edges are not latched: an edge is lost if the entry is masked or the LAPIC drops it. A
//!   level-triggered entry is tried again when it is written and at the end of its interrupt.
//! - Only fixed and lowest-priority delivery; SMI, NMI, INIT and ExtINT entries deliver nothing.
//! - The ID register can be written; only the ARB register reflects it.
//! - Register select and window are matched at offsets 0 and 0x10 exactly, in any width; the rest
//!   of the 64 KiB does not answer.

use crate::{
    bus::{Direction, mmio::MmioAccess},
    irqchip::lapic::Lapics,
};

/// First address of the registers.
pub const BASE: u64 = 0xfec0_0000;
/// Number of bytes that the IOAPIC claims at [`BASE`].
pub const SIZE: u64 = 0x1_0000;
/// Number of pins.
pub const PINS: u8 = 24;

const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x11;
const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_TABLE: u8 = 0x10;
const REG_TABLE_END: u8 = REG_TABLE + 2 * PINS - 1;

const DELIVERY_STATUS: u32 = 1 << 12;
const REMOTE_IRR: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const LOGICAL: u32 = 1 << 11;
const READ_ONLY: u32 = DELIVERY_STATUS | REMOTE_IRR;
/// Vector, delivery and destination mode, polarity, trigger mode, mask.
const WRITABLE: u32 = 0x1_afff & !READ_ONLY;

const DELIVERY_FIXED: u32 = 0;
const DELIVERY_LOWEST_PRIORITY: u32 = 1;

/// One pin: its redirection entry and its level.
#[derive(Clone, Copy, Debug)]
struct Pin {
    low: u32,
    high: u32,
    asserted: bool,
    /// The level when the entry was last evaluated.
    seen: bool,
}

/// The IOAPIC.
#[derive(Clone, Debug)]
pub struct Ioapic {
    select: u8,
    id: u8,
    pins: [Pin; PINS as usize],
    /// The vCPU at which the next search for the lowest priority begins.
    next_arbitration: u8,
}

impl Ioapic {
    /// The IOAPIC of a VM with `vcpus` vCPUs. LAPIC IDs are 0 to `vcpus` − 1; the IOAPIC has the ID
    /// after them.
    pub const fn new(vcpus: u8) -> Self {
        let pin = Pin { low: MASKED, high: 0, asserted: false, seen: false };
        Self { select: 0, id: (vcpus + 1) & 0xf, pins: [pin; PINS as usize], next_arbitration: 0 }
    }

    /// Handles a read or write in its window.
    pub fn mmio(&mut self, access: &mut MmioAccess, lapics: &mut Lapics) {
        match (access.address.wrapping_sub(BASE), access.direction) {
            (0, Direction::In) => access.answer_dword(self.select.into()),
            (0, Direction::Out) => self.select = access.data as u8,
            (0x10, Direction::In) => access.answer_dword(self.read()),
            (0x10, Direction::Out) => self.write(access.data as u32, lapics),
            _ => {}
        }
    }

    fn read(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => u32::from(self.id) << 24,
            REG_VERSION => VERSION,
            REG_TABLE..=REG_TABLE_END => {
                let pin = &self.pins[usize::from(self.select - REG_TABLE) / 2];
                if self.select.is_multiple_of(2) { pin.low } else { pin.high }
            }
            _ => 0,
        }
    }

    fn write(&mut self, value: u32, lapics: &mut Lapics) {
        match self.select {
            REG_ID => self.id = (value >> 24) as u8 & 0xf,
            REG_TABLE..=REG_TABLE_END => {
                let number = (self.select - REG_TABLE) / 2;
                let pin = &mut self.pins[usize::from(number)];
                if self.select.is_multiple_of(2) {
                    pin.low = value & WRITABLE | pin.low & READ_ONLY;
                } else {
                    pin.high = value & 0xff00_0000;
                }
                self.evaluate(number, lapics);
            }
            _ => {}
        }
    }

    /// Raises or lowers `pin`. Numbers from [`PINS`] on are ignored.
    pub fn set_pin(&mut self, number: u8, asserted: bool, lapics: &mut Lapics) {
        if let Some(pin) = self.pins.get_mut(usize::from(number)) {
            pin.asserted = asserted;
            self.evaluate(number, lapics);
        }
    }

    /// Handles the end of interrupt `vector` at a LAPIC: level-triggered entries with this vector
    /// accept the next request, and send it immediately if their pin is still high.
    pub fn end_of_interrupt(&mut self, vector: u8, lapics: &mut Lapics) {
        for number in 0..PINS {
            let pin = &mut self.pins[usize::from(number)];
            if pin.low as u8 == vector && pin.low & LEVEL != 0 && pin.low & REMOTE_IRR != 0 {
                pin.low &= !REMOTE_IRR;
                self.evaluate(number, lapics);
            }
        }
    }

    fn evaluate(&mut self, number: u8, lapics: &mut Lapics) {
        let pin = &mut self.pins[usize::from(number)];
        let rising = pin.asserted && !pin.seen;
        pin.seen = pin.asserted;
        let pin = *pin;
        if pin.low & MASKED != 0 {
            return;
        }
        if pin.low & LEVEL == 0 {
            if rising {
                self.deliver(pin, lapics);
            }
        } else if pin.asserted && pin.low & REMOTE_IRR == 0 && self.deliver(pin, lapics) {
            self.pins[usize::from(number)].low |= REMOTE_IRR;
        }
    }

    /// Sends an entry's message. Returns `false` if no LAPIC accepted it.
    fn deliver(&mut self, pin: Pin, lapics: &mut Lapics) -> bool {
        let delivery = pin.low >> 8 & 7;
        let vector = pin.low as u8;
        if !matches!(delivery, DELIVERY_FIXED | DELIVERY_LOWEST_PRIORITY) || vector < 32 {
            return false;
        }
        let mut targets = lapics.targets((pin.high >> 24) as u8, pin.low & LOGICAL != 0);
        if delivery == DELIVERY_LOWEST_PRIORITY {
            let Some(target) = lapics.lowest_priority(targets, self.next_arbitration) else { return false };
            targets = 1 << target;
            self.next_arbitration = (target + 1) % lapics.count();
        }
        let level = pin.low & LEVEL != 0;
        let mut taken = false;
        for vcpu in (0..lapics.count()).filter(|vcpu| targets >> vcpu & 1 != 0) {
            taken |= lapics.request(vcpu, vector, level);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        clock::{HostTicks, ManualClock},
        irqchip::lapic,
    };

    fn machine(vcpus: u8) -> (Ioapic, Lapics) {
        let mut lapics = Lapics::new(vcpus, Arc::new(ManualClock::default()), HostTicks::default());
        for vcpu in 0..vcpus {
            // Software-enabled LAPICs, flat logical ID 1 << vcpu.
            lapics.mmio(vcpu, &mut MmioAccess::write(lapic::BASE + 0xf0, 4, 0x1ff)).unwrap();
            lapics.mmio(vcpu, &mut MmioAccess::write(lapic::BASE + 0xd0, 4, 1 << (24 + vcpu))).unwrap();
        }
        (Ioapic::new(vcpus), lapics)
    }

    fn set(ioapic: &mut Ioapic, lapics: &mut Lapics, register: u8, value: u32) {
        ioapic.mmio(&mut MmioAccess::write(BASE, 4, register.into()), lapics);
        ioapic.mmio(&mut MmioAccess::write(BASE + 0x10, 4, value.into()), lapics);
    }

    fn get(ioapic: &mut Ioapic, lapics: &mut Lapics, register: u8) -> u32 {
        ioapic.mmio(&mut MmioAccess::write(BASE, 4, register.into()), lapics);
        let mut access = MmioAccess::read(BASE + 0x10, 4);
        ioapic.mmio(&mut access, lapics);
        access.value() as u32
    }

    fn end(ioapic: &mut Ioapic, lapics: &mut Lapics, vcpu: u8) {
        let outcome = lapics.mmio(vcpu, &mut MmioAccess::write(lapic::BASE + 0xb0, 4, 0)).unwrap();
        ioapic.end_of_interrupt(outcome.end_of_interrupt.unwrap(), lapics);
    }

    #[test]
    fn identifies_itself_as_vmd_does() {
        let (mut ioapic, mut lapics) = machine(1);
        assert_eq!(get(&mut ioapic, &mut lapics, 0), 2 << 24);
        assert_eq!(get(&mut ioapic, &mut lapics, 1), 0x0017_0011);
        assert_eq!(get(&mut ioapic, &mut lapics, 2), 2 << 24);
        assert_eq!(get(&mut ioapic, &mut lapics, 0x10), MASKED);
        assert_eq!(get(&mut ioapic, &mut lapics, 0x40), 0);
        set(&mut ioapic, &mut lapics, 0, 0xff00_0000);
        assert_eq!(get(&mut ioapic, &mut lapics, 2), 0x0f00_0000);
        set(&mut ioapic, &mut lapics, 0x3f, 0xffff_ffff);
        set(&mut ioapic, &mut lapics, 0x3e, 0xffff_ffff);
        assert_eq!(get(&mut ioapic, &mut lapics, 0x3f), 0xff00_0000);
        assert_eq!(get(&mut ioapic, &mut lapics, 0x3e), WRITABLE);
    }

    #[test]
    fn an_edge_is_delivered_once_and_lost_while_masked() {
        let (mut ioapic, mut lapics) = machine(1);
        ioapic.set_pin(4, true, &mut lapics);
        set(&mut ioapic, &mut lapics, 0x18, 0x34);
        assert_eq!(lapics.acknowledge(0), None, "the edge came while the entry was masked");
        ioapic.set_pin(4, true, &mut lapics);
        assert_eq!(lapics.acknowledge(0), None, "no edge: the line was up");
        ioapic.set_pin(4, false, &mut lapics);
        ioapic.set_pin(4, true, &mut lapics);
        assert_eq!(lapics.acknowledge(0), Some(0x34));
        end(&mut ioapic, &mut lapics, 0);
        assert_eq!(lapics.acknowledge(0), None);
    }

    #[test]
    fn a_level_is_delivered_again_until_the_line_is_lowered() {
        let (mut ioapic, mut lapics) = machine(1);
        ioapic.set_pin(9, true, &mut lapics);
        set(&mut ioapic, &mut lapics, 0x22, LEVEL | 0x41);
        assert_eq!(get(&mut ioapic, &mut lapics, 0x22), REMOTE_IRR | LEVEL | 0x41);
        assert_eq!(lapics.acknowledge(0), Some(0x41));
        assert_eq!(lapics.acknowledge(0), None);
        end(&mut ioapic, &mut lapics, 0);
        assert_eq!(lapics.acknowledge(0), Some(0x41), "still up at EOI");
        ioapic.set_pin(9, false, &mut lapics);
        end(&mut ioapic, &mut lapics, 0);
        assert_eq!(lapics.acknowledge(0), None);
        assert_eq!(get(&mut ioapic, &mut lapics, 0x22), LEVEL | 0x41);
    }

    #[test]
    fn a_disabled_lapic_accepts_nothing_and_a_level_stays_pending() {
        let (mut ioapic, mut lapics) = machine(1);
        lapics.mmio(0, &mut MmioAccess::write(lapic::BASE + 0xf0, 4, 0xff)).unwrap();
        set(&mut ioapic, &mut lapics, 0x22, LEVEL | 0x41);
        ioapic.set_pin(9, true, &mut lapics);
        assert_eq!(get(&mut ioapic, &mut lapics, 0x22), LEVEL | 0x41);
    }

    #[test]
    fn lowest_priority_rotates_among_equals_and_logical_reaches_several() {
        let (mut ioapic, mut lapics) = machine(3);
        set(&mut ioapic, &mut lapics, 0x1b, 0x0700_0000);
        set(&mut ioapic, &mut lapics, 0x1a, LOGICAL | 1 << 8 | 0x51);
        let mut takers = Vec::new();
        for _ in 0..4 {
            ioapic.set_pin(5, true, &mut lapics);
            ioapic.set_pin(5, false, &mut lapics);
            let taker = (0..3).find(|vcpu| lapics.acknowledge(*vcpu) == Some(0x51)).unwrap();
            end(&mut ioapic, &mut lapics, taker);
            takers.push(taker);
        }
        assert_eq!(takers, [0, 1, 2, 0]);
        set(&mut ioapic, &mut lapics, 0x1a, LOGICAL | 0x52);
        ioapic.set_pin(5, true, &mut lapics);
        assert!((0..3).all(|vcpu| lapics.acknowledge(vcpu) == Some(0x52)));
    }

    #[test]
    fn other_delivery_modes_deliver_nothing() {
        for mode in 2..8 {
            let (mut ioapic, mut lapics) = machine(1);
            set(&mut ioapic, &mut lapics, 0x10, mode << 8 | 0x60);
            ioapic.set_pin(0, true, &mut lapics);
            assert_eq!(lapics.acknowledge(0), None, "{mode}");
        }
    }

    proptest! {
        #[test]
        fn no_access_panics(steps in prop::collection::vec((0u64..0x20, any::<u32>(), any::<bool>(), 0u8..30), 0..300)) {
            let (mut ioapic, mut lapics) = machine(2);
            for (offset, data, out, pin) in steps {
                let offset = if offset < 16 { 0 } else { 0x10 };
                let mut access = if out {
                    MmioAccess::write(BASE + offset, 4, data.into())
                } else {
                    MmioAccess::read(BASE + offset, 1)
                };
                ioapic.mmio(&mut access, &mut lapics);
                ioapic.set_pin(pin, data & 1 != 0, &mut lapics);
                if let Some(vector) = lapics.acknowledge(data as u8 & 1) {
                    ioapic.end_of_interrupt(vector, &mut lapics);
                }
            }
        }
    }
}
