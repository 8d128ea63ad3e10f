//! The two cascaded 8259 interrupt controllers and their ELCR, as vmd(8) has them (i8259.c, the
//! same from 7.2 to 7.9).
//!
//! A guest can observe these differences from the chip:
//!
//! - A request is a bit in the IRR; the level of a line is not stored. ELCR decides only whether
//!   lowering the line withdraws the request. A level-triggered line that stays high is delivered
//!   once per assertion (`tests/golden/vmmci/Q.irq-no-isr-read.txt`).
//! - An interrupt in service does not block others: the ISR can be read and is cleared by EOI, but
//!   delivery depends on the IRR and the IMR only.
//! - The mask bit of the cascade input (master, IR2) is ignored: the slave's requests are delivered
//!   even with it set, after all of the master's, whatever the rotation.
//! - There are no spurious interrupts: without a pending request nothing is delivered.

use std::fmt;

use parking_lot::Mutex;

use crate::{
    bus::{Direction, PortAccess, PortDevice},
    irqchip::InterruptController,
};

/// The master's input to which the slave is wired.
const CASCADE: u8 = 2;

const ICW1_ICW4: u8 = 0x01;
const ICW1_INIT: u8 = 0x10;

const ICW4_8086: u8 = 0x01;
const ICW4_SPECIAL_FULLY_NESTED: u8 = 0x10;

const OCW3: u8 = 0x08;
const OCW3_READ: u8 = 0x02;
const OCW3_READ_ISR: u8 = 0x01;

/// The initialisation word that the data port takes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// None: the data port is the interrupt mask.
    Operating,
    /// ICW2, the vector base.
    Vector,
    /// ICW3, the cascade.
    Cascade,
    /// ICW4, the mode.
    Mode,
}

/// One of the two chips.
#[derive(Clone, Debug)]
struct Chip {
    is_slave: bool,
    irr: u8,
    imr: u8,
    isr: u8,
    vector_base: u8,
    step: Step,
    read_isr: bool,
    /// The input with the lowest priority. It is 0 until the first ICW1, so at power-on IR0 has the
    /// lowest priority.
    lowest_priority: u8,
    /// Level-triggered inputs as a bit map. Initialisation keeps it.
    elcr: u8,
}

impl Chip {
    const fn new(is_slave: bool) -> Self {
        Self {
            is_slave,
            irr: 0,
            imr: 0,
            isr: 0,
            vector_base: 0,
            step: Step::Operating,
            read_isr: false,
            lowest_priority: 0,
            elcr: 0,
        }
    }

    /// The unmasked requests, without the cascade input.
    const fn ready(&self) -> u8 {
        let cascade = if self.is_slave { 0 } else { 1 << CASCADE };
        self.irr & !(self.imr | cascade)
    }

    /// The ready request with the highest priority.
    const fn first(&self) -> Option<u8> {
        let ready = self.ready();
        if ready == 0 {
            return None;
        }
        let first_in_line = (self.lowest_priority + 1) % 8;
        let offset = ready.rotate_right(first_in_line as u32).trailing_zeros() as u8;
        Some((first_in_line + offset) % 8)
    }

    /// Moves a request into service and returns its vector. The base's low three bits are added;
    /// the chip ignores them.
    const fn serve(&mut self, input: u8) -> u8 {
        self.irr &= !(1 << input);
        self.isr |= 1 << input;
        self.vector_base.wrapping_add(input)
    }

    /// Handles a write to the command port.
    fn command(&mut self, value: u8) {
        if value & ICW1_INIT != 0 {
            // Single mode, call interval 4, level triggering, MCS-80 addresses and initialisation
            // without ICW4 are refused; the chip keeps its state.
            if value == ICW1_INIT | ICW1_ICW4 {
                self.step = Step::Vector;
                self.imr = 0;
                self.isr = 0;
                self.irr = 0;
                self.lowest_priority = 7;
            }
        } else if value & OCW3 != 0 {
            // Special mask mode and polling are accepted and have no effect.
            if value & OCW3_READ != 0 {
                self.read_isr = value & OCW3_READ_ISR != 0;
            }
        } else {
            self.operate(value);
        }
    }

    /// OCW2.
    const fn operate(&mut self, value: u8) {
        let input = value & 7;
        match value >> 5 {
            // vmd knows the plain and the rotating non-specific EOI with clear low bits only.
            0b001 | 0b101 if input == 0 => {
                // Ends the lowest-numbered input in service, whatever the rotation.
                self.isr &= self.isr.wrapping_sub(1);
                if value >> 5 == 0b101 {
                    self.rotate();
                }
            }
            0b011 => self.isr &= !(1 << input),
            0b111 => {
                self.isr &= !(1 << input);
                self.rotate();
            }
            0b110 => self.lowest_priority = input,
            // vmd stores rotation in automatic EOI mode, and automatic EOI itself, without ever
            // using either.
            _ => {}
        }
    }

    /// Rotates priorities by one input; the chip would rotate to the input that was served.
    const fn rotate(&mut self) {
        self.lowest_priority = (self.lowest_priority + 1) % 8;
    }

    /// Handles a write to the data port.
    const fn data(&mut self, value: u8) {
        self.step = match self.step {
            Step::Operating => {
                self.imr = value;
                Step::Operating
            }
            Step::Vector => {
                self.vector_base = value;
                Step::Cascade
            }
            // The slave's number has three bits; a wrong one is refused and the chip expects ICW3
            // again.
            Step::Cascade if self.is_slave && value & 0xf8 != 0 => Step::Cascade,
            // Plain 8086 mode is accepted, with or without special full nesting. Any other ICW4,
            // automatic EOI included, is refused and the chip expects ICW4 again.
            Step::Mode if value & !ICW4_SPECIAL_FULLY_NESTED == ICW4_8086 => Step::Operating,
            Step::Cascade | Step::Mode => Step::Mode,
        };
    }
}

/// The two 8259s with their ELCRs.
#[derive(Clone, Debug)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// The pair at power-on: all lines edge-triggered, unmasked and idle, vectors from 0.
    pub const fn new() -> Self {
        Self { master: Chip::new(false), slave: Chip::new(true) }
    }

    /// Whether a request is ready for delivery.
    pub const fn pending(&self) -> bool {
        self.master.ready() != 0 || self.slave.ready() != 0
    }

    /// Moves the request with the highest priority into service and returns its vector; `None` if
    /// nothing is pending.
    pub fn acknowledge(&mut self) -> Option<u8> {
        if let Some(input) = self.master.first() {
            return Some(self.master.serve(input));
        }
        let input = self.slave.first()?;
        self.master.serve(CASCADE);
        Some(self.slave.serve(input))
    }

    /// Raises line `irq` (0 to 15; higher bits are ignored).
    pub const fn assert_irq(&mut self, irq: u8) {
        let bit = 1 << (irq % 8);
        if irq & 8 == 0 {
            self.master.irr |= bit;
        } else {
            self.slave.irr |= bit;
            self.master.irr |= 1 << CASCADE;
        }
    }

    /// Lowers line `irq` (0 to 15; higher bits are ignored). An edge-triggered line keeps its
    /// request.
    pub const fn deassert_irq(&mut self, irq: u8) {
        let bit = 1 << (irq % 8);
        if irq & 8 == 0 {
            self.master.irr &= !(bit & self.master.elcr);
        } else if self.slave.elcr & bit != 0 {
            self.slave.irr &= !bit;
            if self.slave.irr == 0 {
                self.master.irr &= !(1 << CASCADE);
            }
        }
    }

    /// Makes line `irq` (0 to 15) level-triggered (`true`) or edge-triggered, as vmd does for the
    /// PCI lines it assigns (`pic_set_elcr`).
    pub const fn set_level_triggered(&mut self, irq: u8, level: bool) {
        let chip = if irq & 8 == 0 { &mut self.master } else { &mut self.slave };
        let bit = 1 << (irq % 8);
        if level {
            chip.elcr |= bit;
        } else {
            chip.elcr &= !bit;
        }
    }
}

impl PortDevice for Pic {
    fn access(&mut self, access: &mut PortAccess) {
        let chip = match access.port {
            0x20 | 0x21 | 0x4d0 => &mut self.master,
            0xa0 | 0xa1 | 0x4d1 => &mut self.slave,
            _ => return,
        };
        let value = access.value() as u8;
        match (access.direction, access.port) {
            (Direction::Out, 0x4d0 | 0x4d1) => chip.elcr = value,
            (Direction::In, 0x4d0 | 0x4d1) => access.answer(chip.elcr.into()),
            (Direction::Out, 0x21 | 0xa1) => chip.data(value),
            (Direction::In, 0x21 | 0xa1) => access.answer(chip.imr.into()),
            (Direction::Out, _) => chip.command(value),
            (Direction::In, _) => access.answer(if chip.read_isr { chip.isr } else { chip.irr }.into()),
        }
    }
}

/// Wakes the vCPU for a pending interrupt; called on the thread that raised the line.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// The pair behind a lock, shared between the vCPU's thread and the devices' threads.
pub struct SharedPic {
    pic: Mutex<Pic>,
    wake: Wake,
}

impl SharedPic {
    /// A pair at power-on. `wake` is called without a lock held whenever a line was raised and an
    /// interrupt is pending. It must make a halted or running vCPU check [`SharedPic::pending`]
    /// (`vcpu_assert_irq` in x86_vm.c).
    pub fn new(wake: Wake) -> Self {
        Self { pic: Mutex::new(Pic::new()), wake }
    }

    /// See [`Pic::pending`].
    pub fn pending(&self) -> bool {
        self.with(|pic| pic.pending())
    }

    /// See [`Pic::acknowledge`].
    pub fn acknowledge(&self) -> Option<u8> {
        self.with(Pic::acknowledge)
    }

    /// Handles an access to the master's ports (0x20, 0x21), the slave's (0xa0, 0xa1), or the
    /// edge/level control registers (0x4d0, 0x4d1).
    pub fn access(&self, access: &mut PortAccess) {
        self.with(|pic| pic.access(access));
    }

    /// Returns the pair to its power-on state.
    pub fn reset(&self) {
        self.with(|pic| *pic = Pic::new());
    }

    fn with<T>(&self, f: impl FnOnce(&mut Pic) -> T) -> T {
        f(&mut self.pic.lock())
    }
}

impl InterruptController for SharedPic {
    fn assert_irq(&self, irq: u8) {
        let pending = self.with(|pic| {
            pic.assert_irq(irq);
            pic.pending()
        });
        if pending {
            (self.wake)();
        }
    }

    fn deassert_irq(&self, irq: u8) {
        self.with(|pic| pic.deassert_irq(irq));
    }

    fn set_level_triggered(&self, irq: u8, level: bool) {
        self.with(|pic| pic.set_level_triggered(irq, level));
    }
}

impl fmt::Debug for SharedPic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPic").field("pic", &self.pic).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{bus::Width, testing};

    fn out(pic: &mut Pic, port: u16, value: u8) {
        testing::out(pic, port, Width::Byte, value.into());
    }

    fn inb(pic: &mut Pic, port: u16) -> u8 {
        testing::input(pic, port, Width::Byte) as u8
    }

    /// As Linux sets the pair up: vectors 0x30 and 0x38, nothing masked.
    fn set_up() -> Pic {
        let mut pic = Pic::new();
        for (port, words) in [(0x20, [0x11, 0x30, 0x04, 0x01]), (0xa0, [0x11, 0x38, 0x02, 0x01])] {
            out(&mut pic, port, words[0]);
            for word in &words[1..] {
                out(&mut pic, port + 1, *word);
            }
        }
        pic
    }

    #[test]
    fn nothing_pending_means_no_vector_and_no_spurious_interrupt() {
        let mut pic = set_up();
        assert!(!pic.pending());
        assert_eq!(pic.acknowledge(), None);
        pic.set_level_triggered(5, true);
        pic.assert_irq(5);
        pic.deassert_irq(5);
        assert!(!pic.pending());
        assert_eq!(pic.acknowledge(), None);
    }

    #[test]
    fn requests_are_delivered_by_priority_and_the_slaves_last() {
        let mut pic = set_up();
        for irq in [14, 7, 9, 1, 4] {
            pic.assert_irq(irq);
        }
        let order: Vec<_> = std::iter::from_fn(|| pic.acknowledge()).collect();
        assert_eq!(order, [0x31, 0x34, 0x37, 0x39, 0x3e]);
    }

    #[test]
    fn an_interrupt_in_service_does_not_block_others() {
        let mut pic = set_up();
        pic.assert_irq(0);
        assert_eq!(pic.acknowledge(), Some(0x30));
        pic.assert_irq(0);
        pic.assert_irq(4);
        assert_eq!(pic.acknowledge(), Some(0x30));
        assert_eq!(pic.acknowledge(), Some(0x34));
        out(&mut pic, 0x20, 0x0b);
        assert_eq!(inb(&mut pic, 0x20), 0x11);
    }

    #[test]
    fn the_mask_works_except_for_the_cascade() {
        let mut pic = set_up();
        out(&mut pic, 0x21, 0xff);
        pic.assert_irq(0);
        assert!(!pic.pending());
        pic.assert_irq(8);
        assert_eq!(pic.acknowledge(), Some(0x38), "the cascade's mask bit is ignored");
        out(&mut pic, 0x21, 0xfe);
        assert_eq!(pic.acknowledge(), Some(0x30));
        assert_eq!(inb(&mut pic, 0x21), 0xfe);
    }

    #[test]
    fn lowering_a_line_withdraws_only_level_triggered_requests() {
        let mut pic = set_up();
        for irq in [3, 11] {
            pic.assert_irq(irq);
            pic.deassert_irq(irq);
            assert!(pic.pending(), "edge");
            assert!(pic.acknowledge().is_some());
            pic.set_level_triggered(irq, true);
            pic.assert_irq(irq);
            pic.deassert_irq(irq);
            assert!(!pic.pending(), "level");
        }
        assert_eq!((inb(&mut pic, 0x4d0), inb(&mut pic, 0x4d1)), (0x08, 0x08));
    }

    #[test]
    fn a_level_line_that_stays_high_is_delivered_once() {
        let mut pic = set_up();
        out(&mut pic, 0x4d0, 0x68);
        pic.assert_irq(6);
        assert_eq!(pic.acknowledge(), Some(0x36));
        out(&mut pic, 0x20, 0x66);
        assert!(!pic.pending());
    }

    #[test]
    fn the_cascade_request_is_cleared_with_the_slaves_last_request() {
        let mut pic = set_up();
        out(&mut pic, 0x4d1, 0xff);
        pic.assert_irq(9);
        pic.assert_irq(10);
        assert_eq!(inb(&mut pic, 0x20), 0x04);
        pic.deassert_irq(9);
        assert_eq!(inb(&mut pic, 0x20), 0x04);
        pic.deassert_irq(10);
        assert_eq!(inb(&mut pic, 0x20), 0x00);
    }

    #[test]
    fn unsupported_initialisation_modes_are_refused() {
        let mut pic = set_up();
        out(&mut pic, 0x21, 0x12);
        pic.assert_irq(3);
        // No ICW4, single, call interval, level triggered, and each of the MCS-80 address bits.
        for icw1 in [0x10, 0x13, 0x15, 0x19, 0x31, 0x51, 0x91] {
            out(&mut pic, 0x20, icw1);
            assert_eq!(inb(&mut pic, 0x21), 0x12, "{icw1:#x} went through");
        }
        assert!(pic.pending());
        out(&mut pic, 0x20, 0x11);
        assert_eq!(inb(&mut pic, 0x21), 0);
        assert!(!pic.pending());
    }

    #[test]
    fn after_a_wrong_icw3_or_icw4_the_chip_expects_it_again() {
        let mut pic = set_up();
        out(&mut pic, 0xa0, 0x11);
        out(&mut pic, 0xa1, 0x70);
        out(&mut pic, 0xa1, 0x08); // not a slave number
        out(&mut pic, 0xa1, 0x02);
        // MCS-80, automatic EOI, buffered, reserved bits.
        for icw4 in [0x00, 0x03, 0x05, 0x09, 0x21, 0x41, 0x81] {
            out(&mut pic, 0xa1, icw4);
        }
        assert_eq!(inb(&mut pic, 0xa1), 0, "still initialising: nothing went to the mask");
        out(&mut pic, 0xa1, 0x11);
        out(&mut pic, 0xa1, 0xfb);
        assert_eq!(inb(&mut pic, 0xa1), 0xfb);
        pic.assert_irq(10);
        assert_eq!(pic.acknowledge(), Some(0x72));
    }

    #[test]
    fn specific_and_non_specific_eoi() {
        let mut pic = set_up();
        out(&mut pic, 0x20, 0x0b);
        for irq in [1, 4, 6] {
            pic.assert_irq(irq);
            pic.acknowledge();
        }
        assert_eq!(inb(&mut pic, 0x20), 0x52);
        out(&mut pic, 0x20, 0x64);
        assert_eq!(inb(&mut pic, 0x20), 0x42);
        out(&mut pic, 0x20, 0x20);
        assert_eq!(inb(&mut pic, 0x20), 0x40);
        out(&mut pic, 0x20, 0x21); // undefined OCW2
        assert_eq!(inb(&mut pic, 0x20), 0x40);
        out(&mut pic, 0x20, 0x20);
        out(&mut pic, 0x20, 0x20);
        assert_eq!(inb(&mut pic, 0x20), 0);
    }

    #[test]
    fn rotation_advances_by_one_input() {
        let mut pic = set_up();
        let order = |pic: &mut Pic| {
            for irq in [0, 1, 3, 7] {
                pic.assert_irq(irq);
            }
            std::iter::from_fn(|| pic.acknowledge()).map(|vector| vector - 0x30).collect::<Vec<_>>()
        };
        assert_eq!(order(&mut pic), [0, 1, 3, 7]);
        out(&mut pic, 0x20, 0xa0);
        assert_eq!(order(&mut pic), [1, 3, 7, 0]);
        out(&mut pic, 0x20, 0xe3);
        assert_eq!(order(&mut pic), [3, 7, 0, 1]);
        out(&mut pic, 0x20, 0xc3);
        assert_eq!(order(&mut pic), [7, 0, 1, 3]);
    }

    #[test]
    fn before_the_first_icw1_line_0_has_the_lowest_priority() {
        let mut pic = Pic::new();
        pic.assert_irq(0);
        pic.assert_irq(7);
        assert_eq!(pic.acknowledge(), Some(7));
        assert_eq!(pic.acknowledge(), Some(0));
    }

    #[test]
    fn the_shared_pair_wakes_the_vcpu_only_for_deliverable_requests() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let shared = SharedPic::new(Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        shared.access(&mut PortAccess::output(0x21, Width::Byte, 0x10));
        shared.assert_irq(4);
        assert_eq!(woken.load(Ordering::SeqCst), 0);
        shared.assert_irq(3);
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        assert_eq!(shared.acknowledge(), Some(3));
    }

    proptest! {
        #![proptest_config(testing::config())]

        #[test]
        fn no_sequence_of_accesses_and_lines_does_harm(
            steps in testing::steps(&[0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1])
        ) {
            let mut pic = Pic::new();
            for step in steps {
                match step {
                    testing::Step::Access(mut access) => pic.access(&mut access),
                    testing::Step::Other(n) if n & 0x10 == 0 => pic.assert_irq(n as u8),
                    testing::Step::Other(n) => pic.deassert_irq(n as u8),
                    testing::Step::Wait(_) => {
                        let pending = pic.pending();
                        prop_assert_eq!(pic.acknowledge().is_some(), pending);
                    }
                }
            }
        }
    }
}
