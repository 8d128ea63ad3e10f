//! The real-time clock and CMOS memory of vmd(8) (mc146818.c, the same from 7.2 to 7.9; 8.0
//! corrected the periodic interrupt). A guest can observe:
//!
//! - The time is always BCD, 24 hours, UTC. A timer of the host writes it into the registers once a
//!   second; register B's other formats and its bit that stops updates are stored without effect.
//! - Alarm and update-ended interrupts do not exist, and "update in progress" is never set.
//! - A write of register B with PIE set has vmd's event loop start the periodic interrupt. The loop
//!   reads the registers only then ([`Timed::expire`]): it takes register A's rate of that moment,
//!   and starts nothing if PIE has been cleared meanwhile (`rtc_update_regb`, `rtc_reschedule_per`).
//!   Nothing else changes the rate. Once started it continues with PIE cleared and with register C
//!   unread (`tests/golden/pit_rtc/experiment-channel1-and-rtc.txt`).
//! - Register C shows PF only.
//!
//! From 8.0 on the periodic interrupt follows changes of PIE and the
//! rate, sets PF and IRQF, is off at rate 0, and a read of register C lowers the line.

use std::sync::Arc;

use jiff::{Timestamp, tz::Offset};
use vmd_release::Capabilities;

use crate::{
    bus::{Direction, PortAccess, PortDevice},
    clock::{Clock, HostTicks, NANOS_PER_SEC, Timed},
    irqchip::line::IrqLine,
    memory_map::CmosMemory,
};

/// Index port and data port.
pub const PORTS: [u16; 2] = [0x70, 0x71];

/// The interrupt line of the periodic interrupt.
pub const IRQ: u8 = 8;

/// Jump of the host's clock between two updates, in seconds, above which vmd asks the guest to set
/// its clock.
const TOLERATED_JUMP: u64 = 5;

const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const REG_B_24_HOURS: u8 = 0x02;
const REG_B_PIE: u8 = 0x40;
const REG_C_PF: u8 = 0x40;
const REG_C_IRQF: u8 = 0x80;
const RATE: u8 = 0x0f;
const REG_D_VALID: u8 = 0x80;

const SIZE: usize = 0x60;

/// Called when the host's clock advanced by more than 5 s between two updates: vmd sends SYNCRTC
/// through vmmci.
pub type OnClockJump = Box<dyn FnMut() + Send>;

/// The real-time clock with its CMOS memory.
pub struct Rtc {
    capabilities: Capabilities,
    registers: [u8; SIZE],
    index: u8,
    /// The time in the registers, in seconds since 1970.
    seconds: u64,
    update_at: Option<u64>,
    /// Period of the periodic interrupt in nanoseconds; `None` until PIE was first set.
    period: Option<u64>,
    periodic_at: Option<u64>,
    /// Up to 7.9: register B was written with PIE set, which the event loop has not processed yet.
    pie_written_at: Option<u64>,
    clock: Arc<dyn Clock>,
    ticks: HostTicks,
    line: IrqLine,
    on_clock_jump: OnClockJump,
}

impl Rtc {
    /// A clock that shows the host's time, with the memory sizes of `memory` in its CMOS. `line` is
    /// IRQ 8.
    pub fn new(
        capabilities: Capabilities,
        clock: Arc<dyn Clock>,
        ticks: HostTicks,
        line: IrqLine,
        memory: CmosMemory,
        on_clock_jump: OnClockJump,
    ) -> Self {
        let mut registers = [0; SIZE];
        registers[usize::from(REG_B)] = REG_B_24_HOURS;
        for (index, value) in memory.registers() {
            registers[usize::from(index)] = value;
        }
        let mut rtc = Self {
            capabilities,
            registers,
            index: 0,
            seconds: 0,
            update_at: None,
            period: None,
            periodic_at: None,
            pie_written_at: None,
            clock,
            ticks,
            line,
            on_clock_jump,
        };
        rtc.update();
        rtc.schedule_update();
        rtc
    }

    /// Stops the timers while the VM is paused (`vmctl pause`).
    pub const fn pause(&mut self) {
        self.update_at = None;
        self.periodic_at = None;
        self.pie_written_at = None;
    }

    /// Resumes after [`Rtc::pause`]. The registers keep the old time until the next update, a
    /// second later (`tests/golden/vmmci/J.pause.txt`); the periodic interrupt resumes only if PIE
    /// is set.
    pub fn unpause(&mut self) {
        self.schedule_update();
        self.schedule_periodic();
    }

    fn schedule_update(&mut self) {
        self.update_at = Some(self.ticks.fires_at(self.clock.monotonic(), NANOS_PER_SEC));
    }

    /// Writes the host's time into the time registers; the alarm registers keep their values.
    fn update(&mut self) {
        self.seconds = self.clock.realtime() / NANOS_PER_SEC;
        let seconds = i64::try_from(self.seconds).expect("64 bits of nanoseconds are 35 of seconds");
        let now = Offset::UTC.to_datetime(Timestamp::from_second(seconds).expect("a year before 2555"));
        let year = now.year();
        let values = [
            (0x00, now.second()),
            (0x02, now.minute()),
            (0x04, now.hour()),
            (0x06, now.weekday().to_sunday_one_offset()),
            (0x07, now.day()),
            (0x08, now.month()),
            (0x09, (year % 100) as i8),
            (CENTURY, (year / 100) as i8),
        ];
        for (index, value) in values {
            let value = value.unsigned_abs();
            self.registers[usize::from(index)] = value / 10 * 16 + value % 10;
        }
        self.registers[usize::from(REG_D)] |= REG_D_VALID;
    }

    /// Starts the periodic interrupt at register A's rate if PIE is set (`rtc_reschedule_per`).
    fn schedule_periodic(&mut self) {
        let off = self.registers[usize::from(REG_B)] & REG_B_PIE == 0;
        if self.capabilities.rtc_corrected && (off || self.registers[usize::from(REG_A)] & RATE == 0) {
            self.periodic_at = None;
        } else if !off {
            self.start_periodic();
        }
    }

    fn start_periodic(&mut self) {
        // The frequency is 32768 Hz, halved by each step from 1 on; unlike on the chip, steps 1 and
        // 2 are not 256 and 128 Hz. Step 0, "none", makes vmd divide by zero and fire without end;
        // this model fires at every host tick.
        let step = self.registers[usize::from(REG_A)] & RATE;
        let micros = step.checked_sub(1).map_or(0, |shift| 1_000_000 / (32768_u64 >> shift));
        let period = micros * 1000;
        self.period = Some(period);
        self.periodic_at = Some(self.ticks.fires_at(self.clock.monotonic(), period));
    }

    fn write(&mut self, value: u8) {
        match self.index {
            // A set time lasts until the next update.
            0x00..=0x09 | 0x0e..=0x40 => self.registers[usize::from(self.index)] = value,
            // Up to 7.9 vmd intends to apply the new rate here but compares the register with
            // itself.
            REG_A => {
                let before = std::mem::replace(&mut self.registers[usize::from(REG_A)], value);
                if self.capabilities.rtc_corrected && (before ^ value) & RATE != 0 {
                    self.schedule_periodic();
                }
            }
            REG_B => {
                let before = std::mem::replace(&mut self.registers[usize::from(REG_B)], value);
                if self.capabilities.rtc_corrected {
                    if (before ^ value) & REG_B_PIE != 0 {
                        self.schedule_periodic();
                    }
                } else if value & REG_B_PIE != 0 {
                    self.pie_written_at = Some(self.clock.monotonic());
                }
            }
            // C, D and everything above 0x40 cannot be written, memory sizes over 4 GiB included.
            _ => {}
        }
    }

    fn read(&mut self) -> u8 {
        let register = &mut self.registers[usize::from(self.index)];
        let value = *register;
        if self.index == REG_C {
            *register &= !(REG_C_PF | REG_C_IRQF);
            if self.capabilities.rtc_corrected {
                self.line.deassert();
            }
        }
        value
    }
}

impl PortDevice for Rtc {
    fn access(&mut self, access: &mut PortAccess) {
        match (access.port, access.direction) {
            (0x70, Direction::Out) => {
                // Bit 7, the NMI mask, is dropped. An index beyond the memory becomes register D.
                let index = access.value() & !0x80;
                self.index = if (index as usize) < SIZE { index as u8 } else { REG_D };
            }
            (0x70, Direction::In) => access.answer(self.index.into()),
            (0x71, Direction::Out) => self.write(access.value() as u8),
            (0x71, Direction::In) => access.answer(self.read().into()),
            _ => {}
        }
    }
}

impl Timed for Rtc {
    fn deadline(&self) -> Option<u64> {
        [self.update_at, self.periodic_at, self.pie_written_at].into_iter().flatten().min()
    }

    fn expire(&mut self) {
        let now = self.clock.monotonic();
        if self.pie_written_at.take().is_some() {
            self.schedule_periodic();
        }
        if self.update_at.is_some_and(|at| at <= now) {
            let before = self.seconds;
            self.update();
            if self.seconds.saturating_sub(before) > TOLERATED_JUMP {
                (self.on_clock_jump)();
            }
            self.schedule_update();
        }
        if let (Some(at), Some(period)) = (self.periodic_at, self.period)
            && at <= now
        {
            self.registers[usize::from(REG_C)] |=
                if self.capabilities.rtc_corrected { REG_C_PF | REG_C_IRQF } else { REG_C_PF };
            self.line.assert();
            self.periodic_at = Some(self.ticks.fires_at(now, period));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;
    use vmd_release::Generation;

    use super::*;
    use crate::{
        clock::ManualClock,
        memory_map::MemoryMap,
        testing::{self, LineRecorder, inb, outb},
    };

    /// 2026-11-22 13:02:49 UTC, a Sunday.
    const NOW: u64 = 1_795_352_569;

    struct Machine {
        rtc: Rtc,
        clock: Arc<ManualClock>,
        lines: Arc<LineRecorder>,
        jumps: Arc<AtomicUsize>,
    }

    impl Machine {
        fn new() -> Self {
            Self::of(Generation::V7_8)
        }

        fn of(generation: Generation) -> Self {
            let clock = Arc::new(ManualClock::new(0, NOW * NANOS_PER_SEC));
            let (line, lines) = LineRecorder::one(IRQ);
            let jumps = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&jumps);
            let memory = MemoryMap::new(&Generation::V7_8.capabilities(), 512 << 20).unwrap().cmos();
            let on_clock_jump = Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            });
            let rtc = Rtc::new(
                generation.capabilities(),
                Arc::clone(&clock) as _,
                HostTicks::default(),
                line,
                memory,
                on_clock_jump,
            );
            Self { rtc, clock, lines, jumps }
        }

        fn read(&mut self, index: u8) -> u8 {
            outb(&mut self.rtc, 0x70, index);
            inb(&mut self.rtc, 0x71)
        }

        fn write(&mut self, index: u8, value: u8) {
            outb(&mut self.rtc, 0x70, index);
            outb(&mut self.rtc, 0x71, value);
        }

        /// Advances the time by seconds; returns the number of IRQ 8s.
        fn run(&mut self, seconds: u64) -> usize {
            let end = self.clock.monotonic() + seconds * NANOS_PER_SEC;
            while let Some(deadline) = self.rtc.deadline().filter(|deadline| *deadline <= end) {
                self.clock.advance(deadline - self.clock.monotonic());
                self.rtc.expire();
            }
            self.clock.advance(end - self.clock.monotonic());
            self.lines.take().len()
        }
    }

    #[test]
    fn from_8_0_on_the_periodic_interrupt_follows_its_registers() {
        let mut m = Machine::of(Generation::V8_0);
        m.write(REG_A, 0x26);
        m.write(REG_B, 0x02);
        assert_eq!(m.run(1), 0);
        m.write(REG_B, 0x42);
        assert_eq!(m.run(2), 100, "1024 Hz on a 100 Hz host");
        assert_eq!(m.read(REG_C), REG_C_PF | REG_C_IRQF);
        assert_eq!(m.lines.take(), [(IRQ, false)]);
        assert_eq!(m.read(REG_C), 0);
        m.lines.take();
        m.write(REG_A, 0x2f);
        assert_eq!(m.run(10), 19, "2 Hz at once");
        m.write(REG_A, 0x20);
        assert_eq!(m.run(10), 0, "rate 0 is none");
        m.write(REG_A, 0x2f);
        m.write(REG_B, 0x02);
        assert_eq!(m.run(10), 0, "PIE is clear");
    }

    /// `tests/golden/pit_rtc/k73.pittest.txt`, all registers but A and B, which Linux had set.
    #[test]
    fn registers_of_a_512_mib_machine() {
        let mut m = Machine::new();
        let registers: Vec<_> = (0..0x40).map(|index| m.read(index)).collect();
        let mut expected = [0; 0x40];
        expected[..14].copy_from_slice(&[0x49, 0, 0x02, 0, 0x13, 0, 1, 0x22, 0x11, 0x26, 0, 2, 0, 0x80]);
        expected[0x32] = 0x20;
        expected[0x35] = 0x1f;
        assert_eq!(registers, expected);
    }

    #[test]
    fn the_time_is_bcd_and_24_hours_whatever_register_b_says() {
        let mut m = Machine::new();
        m.write(REG_B, 0x04);
        m.run(2);
        assert_eq!([m.read(0), m.read(2), m.read(4), m.read(CENTURY)], [0x50, 0x02, 0x13, 0x20]);
    }

    #[test]
    fn setting_the_clock_lasts_until_the_next_update() {
        let mut m = Machine::new();
        m.write(0x04, 0x05);
        m.write(0x05, 0x07);
        assert_eq!((m.read(0x04), m.read(0x05)), (0x05, 0x07));
        m.run(2);
        assert_eq!((m.read(0x04), m.read(0x05)), (0x13, 0x07), "alarm registers stay");
    }

    #[test]
    fn the_index_wraps_to_register_d_and_loses_the_nmi_bit() {
        let mut m = Machine::new();
        outb(&mut m.rtc, 0x70, 0x80 | CENTURY);
        assert_eq!(inb(&mut m.rtc, 0x70), CENTURY);
        for index in [0x60, 0x7f, 0xff] {
            outb(&mut m.rtc, 0x70, index);
            assert_eq!(inb(&mut m.rtc, 0x70), REG_D);
        }
    }

    #[test]
    fn read_only_registers_keep_their_values() {
        let mut m = Machine::new();
        for index in [REG_C, REG_D, 0x41, 0x5b, 0x5f] {
            let before = m.read(index);
            m.write(index, 0x55);
            assert_eq!(m.read(index), before, "{index:#x}");
        }
        m.write(0x40, 0x55);
        assert_eq!(m.read(0x40), 0x55);
    }

    /// `tests/golden/pit_rtc/k73.rtctest.txt`: neither update-ended nor alarm interrupts come, and
    /// UIP is never seen.
    #[test]
    fn no_update_and_no_alarm_interrupts() {
        let mut m = Machine::new();
        m.write(1, 0x52);
        m.write(3, 0x02);
        m.write(5, 0x13);
        m.write(REG_B, 0x32);
        assert_eq!(m.run(10), 0);
        assert_eq!((m.read(REG_A), m.read(REG_C)), (0, 0));
    }

    /// `tests/golden/pit_rtc/experiment-channel1-and-rtc.txt`: 2 Hz, 19 in 10 s; after PIE is
    /// cleared still 2 a second.
    #[test]
    fn the_periodic_interrupt_goes_on_after_pie_is_cleared() {
        let mut m = Machine::new();
        m.write(REG_A, 0x2f);
        assert_eq!(m.run(1), 0);
        m.write(REG_B, 0x42);
        assert_eq!(m.run(10), 19);
        assert_eq!((m.read(REG_C), m.read(REG_C)), (0x40, 0));
        m.write(REG_B, 0x02);
        assert_eq!(m.run(10), 20);
    }

    #[test]
    fn pie_cleared_before_the_event_loop_runs_starts_nothing() {
        let mut m = Machine::new();
        m.write(REG_A, 0x2f);
        m.write(REG_B, 0x42);
        assert_eq!(m.rtc.deadline(), Some(m.clock.monotonic()));
        m.write(REG_B, 0x02);
        assert_eq!(m.run(10), 0);
    }

    #[test]
    fn the_rate_is_that_of_the_event_loops_turn() {
        let mut m = Machine::new();
        m.write(REG_A, 0x2f);
        m.write(REG_B, 0x42);
        m.write(REG_A, 0x2d);
        assert_eq!(m.run(10), 71, "8 Hz, each late by one to two host ticks");
    }

    #[test]
    fn the_rate_changes_with_pie_only() {
        let mut m = Machine::new();
        m.write(REG_A, 0x2f);
        m.write(REG_B, 0x42);
        m.rtc.expire();
        m.write(REG_A, 0x2d);
        assert_eq!(m.run(10), 19);
        m.write(REG_B, 0x42);
        assert_eq!(m.run(10), 71, "8 Hz, each late by one to two host ticks");
    }

    /// `tests/golden/pit_rtc/k73.rtctest.txt`: 64 Hz comes every 30 ms or so.
    #[test]
    fn fast_rates_follow_the_hosts_ticks() {
        let mut m = Machine::new();
        for (step, in_3_seconds) in [(0xa, 100), (6, 150), (3, 150), (1, 150), (0, 300)] {
            m.write(REG_A, 0x20 | step);
            m.write(REG_B, 0x42);
            assert_eq!(m.run(3), in_3_seconds, "step {step}");
        }
    }

    #[test]
    fn a_jump_of_more_than_5_seconds_is_reported_once() {
        let mut m = Machine::new();
        m.run(5);
        assert_eq!(m.jumps.load(Ordering::SeqCst), 0);
        for (step, told) in [(3, 0), (10, 1), (100, 2)] {
            m.clock.set_realtime(m.clock.realtime() + step * NANOS_PER_SEC);
            m.run(3);
            assert_eq!(m.jumps.load(Ordering::SeqCst), told, "{step} s");
        }
        m.clock.set_realtime(NOW * NANOS_PER_SEC);
        m.run(3);
        assert_eq!(m.jumps.load(Ordering::SeqCst), 2, "backwards");
    }

    /// `tests/golden/vmmci/J.pause.txt`: after 8 s of pause the clock is behind until its next
    /// update, then SYNCRTC.
    #[test]
    fn a_pause_leaves_the_clock_behind_for_a_second() {
        let mut m = Machine::new();
        m.write(REG_A, 0x2f);
        m.write(REG_B, 0x42);
        m.write(REG_B, 0x02);
        m.rtc.pause();
        assert_eq!(m.run(8), 0);
        m.rtc.unpause();
        assert_eq!(m.read(0), 0x49);
        assert_eq!(m.run(2), 0, "without PIE the periodic interrupt ends with the pause");
        assert_eq!(m.read(0), 0x58);
        assert_eq!(m.jumps.load(Ordering::SeqCst), 1);
    }

    proptest! {
        #![proptest_config(testing::config())]

        #[test]
        fn no_sequence_of_accesses_and_waits_does_harm(steps in testing::steps(&[0x70, 0x71])) {
            let mut m = Machine::new();
            for step in steps {
                match step {
                    testing::Step::Access(mut access) => m.rtc.access(&mut access),
                    testing::Step::Wait(nanos) => m.clock.advance(nanos),
                    testing::Step::Other(n) if n % 4 == 0 => m.rtc.pause(),
                    testing::Step::Other(n) if n % 4 == 1 => m.rtc.unpause(),
                    testing::Step::Other(n) => m.clock.set_realtime(u64::from(n) << 32),
                }
                m.rtc.expire();
                prop_assert!(m.rtc.deadline().is_none_or(|at| at > m.clock.monotonic()));
            }
        }
    }
}
