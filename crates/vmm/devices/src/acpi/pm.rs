//! The PM1a registers and the power management timer (acpi.c 1.4).
//!
//! - Status and enable are two separate words, accessed byte by byte in any width; a wider access
//!   extends into unclaimed ports, which read as ones and ignore writes.
//! - No status bit is ever set, and none raises an interrupt.
//! - The control register starts with SCI_EN set: ACPI mode is always on, and there is no SMI
//!   command port.
//! - SLP_EN with sleep type 5 ends the VM immediately, as a power-off; other sleep types are stored
//!   without effect.
//! - The timer has 24 bits, runs at 3,579,545 Hz on the host's CLOCK_MONOTONIC, and cannot be
//!   written.

use std::sync::Arc;

use super::{PM_TIMER, PM1A_CONTROL, PM1A_EVENT, SLEEP_TYPE_S5};
use crate::{
    bus::{Direction, PortAccess, PortDevice},
    clock::{Clock, NANOS_PER_SEC},
};

/// Timer frequency in Hz.
pub const TIMER_FREQUENCY: u64 = 3_579_545;

/// The event block's second half.
const PM1A_ENABLE: u16 = PM1A_EVENT + 2;

const STATUS_BITS: u16 = 0xc731;
const ENABLE_BITS: u16 = 0x4721;
const CONTROL_BITS: u16 = 0x3c07;
const CONTROL_SCI_EN: u16 = 1;
const CONTROL_SLEEP_TYPE: u16 = 7 << 10;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;

/// The ports of the block: PM1a's and the timer's.
pub const PORTS: [std::ops::Range<u16>; 3] =
    [PM1A_EVENT..PM1A_EVENT + 4, PM1A_CONTROL..PM1A_CONTROL + 2, PM_TIMER..PM_TIMER + 4];

/// The power management block.
pub struct Pm {
    status: u16,
    enable: u16,
    control: u16,
    clock: Arc<dyn Clock>,
    start: u64,
    power_off: Box<dyn FnMut() + Send>,
}

impl Pm {
    /// The block at power-on. `power_off` is called when the guest enters S5.
    pub fn new(clock: Arc<dyn Clock>, power_off: Box<dyn FnMut() + Send>) -> Self {
        let start = clock.monotonic();
        Self { status: 0, enable: 0, control: CONTROL_SCI_EN, clock, start, power_off }
    }

    fn timer(&self) -> u32 {
        let nanos = self.clock.monotonic().saturating_sub(self.start);
        // Converts seconds and the remainder separately, as vmd does, to avoid an overflow.
        let (seconds, rest) = (nanos / NANOS_PER_SEC, nanos % NANOS_PER_SEC);
        let counts = seconds * TIMER_FREQUENCY + rest * TIMER_FREQUENCY / NANOS_PER_SEC;
        counts as u32 & 0x00ff_ffff
    }

    /// The register that contains `port`'s byte, its writable bits, and the byte's shift.
    const fn register(&mut self, port: u16) -> Option<(Register<'_>, u16)> {
        let byte = 8 * (port & 1);
        match port & !1 {
            PM1A_EVENT => Some((Register::Status(&mut self.status), byte)),
            PM1A_ENABLE => Some((Register::Plain(&mut self.enable, ENABLE_BITS), byte)),
            PM1A_CONTROL => Some((Register::Plain(&mut self.control, CONTROL_BITS), byte)),
            _ => None,
        }
    }

    fn read_byte(&mut self, port: u16) -> u8 {
        match self.register(port) {
            Some((Register::Status(word) | Register::Plain(word, _), shift)) => (*word >> shift) as u8,
            None => 0xff,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        let Some((register, shift)) = self.register(port) else { return };
        let value = u16::from(value) << shift;
        match register {
            Register::Status(word) => *word &= !(value & STATUS_BITS),
            Register::Plain(word, writable) => *word = (*word & !(0xff << shift) | value) & writable,
        }
    }
}

enum Register<'a> {
    /// Writing a one clears the bit.
    Status(&'a mut u16),
    /// A register in which these bits can be written.
    Plain(&'a mut u16, u16),
}

impl PortDevice for Pm {
    fn access(&mut self, access: &mut PortAccess) {
        let timer = PM_TIMER..PM_TIMER + 4;
        let bytes = access.width.bytes() as u16;
        match access.direction {
            Direction::In if timer.contains(&access.port) => {
                // Bytes beyond the register read as zero.
                access.answer(self.timer() >> (8 * (access.port - PM_TIMER)));
            }
            Direction::Out if timer.contains(&access.port) => {}
            Direction::In => {
                let value = (0..bytes).fold(0, |value, byte| {
                    value | u32::from(self.read_byte(access.port.wrapping_add(byte))) << (8 * byte)
                });
                access.answer(value);
            }
            Direction::Out => {
                for byte in 0..bytes {
                    self.write_byte(access.port.wrapping_add(byte), (access.eax >> (8 * byte)) as u8);
                }
                if self.control & (CONTROL_SLEEP_ENABLE | CONTROL_SLEEP_TYPE)
                    == CONTROL_SLEEP_ENABLE | u16::from(SLEEP_TYPE_S5) << 10
                {
                    (self.power_off)();
                }
            }
        }
    }
}

impl std::fmt::Debug for Pm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pm")
            .field("status", &self.status)
            .field("enable", &self.enable)
            .field("control", &self.control)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::{bus::Width, clock::ManualClock};

    fn pm() -> (Pm, Arc<ManualClock>, Arc<AtomicU32>) {
        let clock = Arc::new(ManualClock::new(7, 0));
        let ends = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&ends);
        let pm = Pm::new(
            Arc::clone(&clock) as _,
            Box::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            }),
        );
        (pm, clock, ends)
    }

    fn input(pm: &mut Pm, port: u16, width: Width) -> u32 {
        let mut access = PortAccess::input(port, width, 0xdead_beef);
        pm.access(&mut access);
        access.eax
    }

    fn output(pm: &mut Pm, port: u16, width: Width, value: u32) {
        pm.access(&mut PortAccess::output(port, width, value));
    }

    #[test]
    fn only_s5_with_slp_en_ends_the_vm() {
        let (mut pm, _, ends) = pm();
        assert_eq!(input(&mut pm, 0xb008, Width::Word), 0xdead_0001, "ACPI mode is on from the start");
        // Linux writes the type first, then the type with SLP_EN.
        output(&mut pm, 0xb008, Width::Word, 5 << 10 | 1);
        output(&mut pm, 0xb008, Width::Word, 1 << 13 | 4 << 10 | 1);
        assert_eq!(ends.load(Ordering::Relaxed), 0);
        output(&mut pm, 0xb008, Width::Word, 1 << 13 | 5 << 10 | 1);
        assert_eq!(ends.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn s5_written_byte_by_byte_counts_too() {
        let (mut pm, _, ends) = pm();
        output(&mut pm, 0xb009, Width::Byte, 0x34);
        assert_eq!(ends.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn registers_keep_their_bits_and_wide_reads_run_on() {
        let (mut pm, _, _) = pm();
        output(&mut pm, 0xb000, Width::Dword, u32::MAX);
        assert_eq!(input(&mut pm, 0xb000, Width::Dword), 0x4721_0000);
        assert_eq!(input(&mut pm, 0xb003, Width::Byte), 0xdead_be47);
        assert_eq!(input(&mut pm, 0xb002, Width::Dword), 0xffff_4721, "0xb004 and 0xb005 are unclaimed");
        output(&mut pm, 0xb008, Width::Word, 0x1fff);
        assert_eq!(input(&mut pm, 0xb008, Width::Dword), 0xffff_1c07);
    }

    #[test]
    fn the_timer_has_24_bits_of_3579545_hz_and_stands_any_write() {
        let (mut pm, clock, _) = pm();
        assert_eq!(input(&mut pm, 0xb00c, Width::Dword), 0);
        clock.advance(NANOS_PER_SEC);
        output(&mut pm, 0xb00c, Width::Dword, 0);
        assert_eq!(input(&mut pm, 0xb00c, Width::Dword), 3_579_545);
        assert_eq!(input(&mut pm, 0xb00d, Width::Dword), 3_579_545 >> 8);
        clock.advance(4 * NANOS_PER_SEC);
        assert_eq!(input(&mut pm, 0xb00c, Width::Dword), (5 * 3_579_545) & 0xff_ffff);
        clock.advance(1_000_000_000 * NANOS_PER_SEC);
        assert!(input(&mut pm, 0xb00c, Width::Dword) <= 0xff_ffff);
    }

    proptest! {
        #[test]
        fn no_access_panics(steps in prop::collection::vec((0xaffcu16..0xb014, 0u8..3, any::<bool>(), any::<u32>()), 0..200)) {
            let (mut pm, clock, _) = pm();
            for (port, width, out, value) in steps {
                clock.advance(value.into());
                let width = [Width::Byte, Width::Word, Width::Dword][usize::from(width)];
                if out {
                    output(&mut pm, port, width, value);
                } else {
                    input(&mut pm, port, width);
                }
            }
        }
    }
}
