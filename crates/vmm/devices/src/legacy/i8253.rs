//! The 8253 timer and port 0x61 of vmd(8) (i8253.c, the same from 7.2 to 7.8; 1.50 of 8.0 corrected
//! some of it, and which corrections 7.9 has is unsettled).
//!
//! vmd does not count: a channel stores its start time, and its count is computed when it is
//! latched. A guest can observe:
//!
//! - A tick lasts 838 ns instead of 838.095: counts run 114 ppm fast ([`NANOS_PER_TICK`]).
//! - The input latch is never cleared: the bits of every count written to a channel stay set in the
//!   next count.
//! - A count takes effect at its second byte, whatever access mode the control word selected. The
//!   control word starts and stops nothing and does not reset the byte order.
//! - The new count is visible at once, but vmd's event loop starts the channel with it only later
//!   ([`Timed::expire`]). Until then the channel counts from its previous start, and an expired
//!   channel still shows its end. A guest that programs channel 2 and reads port 0x61 right away
//!   may find it expired (`tests/golden/pit_rtc/k73.pittest.txt`: "out went high after 0.000553 s,
//!   0 loops").
//! - Reads return the bytes of the output latch in turn; only the latch and read-back commands fill
//!   it.
//! - In all modes but 0 the timer is periodic. It is armed again after it has fired, so the delay
//!   of the host's timer accumulates ([`HostTicks`]).
//! - Every channel raises IRQ 0, channel 2 as well.
//! - Gates are not implemented: writes to port 0x61 are ignored.
//!
//! The corrected 8253 ([`Capabilities::pit_corrected`]) differs: the first byte of a count replaces
//! the input latch, the second one also sets the channel's start time, the control word resets the
//! byte order for writing and the latch command for reading, and only channel 0 raises IRQ 0, as a
//! pulse.

use std::sync::Arc;

use vmd_release::Capabilities;

use crate::{
    bus::{Direction, PortAccess, PortDevice},
    clock::{Clock, HostTicks, Timed},
    irqchip::line::IrqLine,
};

/// The three counters and the control word.
pub const PORTS: [u16; 4] = [0x40, 0x41, 0x42, 0x43];
/// System control port B; only the output of channel 2 is implemented.
pub const PORT_B: u16 = 0x61;

/// Length of a tick in nanoseconds: the period of 1,193,182 Hz rounded down (`NS_PER_TICK` in
/// i8253.h).
pub const NANOS_PER_TICK: u64 = 1_000_000_000 / 1_193_182;

/// The interrupt line of all channels.
pub const IRQ: u8 = 0;

const CONTROL: u16 = 0x43;

/// Mode 0, interrupt on terminal count: the only one-shot mode.
const TERMINAL_COUNT: u8 = 0;

/// The mode that port 0x61 treats as square wave. vmd compares the mode number with the control
/// word's bits of mode 3, which are shifted by one; the mode that matches is 6, the other code of
/// mode 2.
const SQUARE_WAVE_ON_PORT_B: u8 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No count has been written.
    Unused,
    /// Counting.
    Counting,
    /// Mode 0 has reached terminal count.
    Expired,
}

#[derive(Clone, Debug)]
struct Channel {
    mode: u8,
    start: u16,
    started_at: u64,
    input_latch: u16,
    output_latch: u16,
    second_write: bool,
    second_read: bool,
    status_latched: bool,
    phase: Phase,
    /// Time at which a count was written that the event loop has not processed yet.
    written_at: Option<u64>,
    deadline: Option<u64>,
}

impl Channel {
    const fn new(started_at: u64) -> Self {
        Self {
            mode: TERMINAL_COUNT,
            start: 0xffff,
            started_at,
            input_latch: 0,
            output_latch: 0,
            second_write: false,
            second_read: false,
            status_latched: false,
            phase: Phase::Unused,
            written_at: None,
            deadline: None,
        }
    }

    /// The count at `now`: from the start value down to 1, repeatedly, in every mode.
    const fn count(&self, now: u64) -> u16 {
        let ticks = now.saturating_sub(self.started_at) / NANOS_PER_TICK;
        // The start value is never 0: a written 0 becomes 0xffff.
        self.start - (ticks % self.start as u64) as u16
    }

    /// Duration of a full count in nanoseconds, in whole microseconds as libevent's timers have it.
    const fn period(&self) -> u64 {
        self.start as u64 * NANOS_PER_TICK / 1000 * 1000
    }

    const fn arm(&mut self, now: u64, ticks: HostTicks) {
        self.deadline = Some(ticks.fires_at(now, self.period()));
    }

    /// Starts counting from the start value (`i8253_reset`).
    const fn start(&mut self, now: u64, ticks: HostTicks) {
        self.phase = Phase::Counting;
        self.written_at = None;
        self.started_at = now;
        self.arm(now, ticks);
    }

    /// Accepts a byte of a count; returns whether it was the second one.
    const fn write(&mut self, byte: u8, corrected: bool) -> bool {
        let done = self.second_write;
        self.second_write = !done;
        if done {
            self.input_latch |= (byte as u16) << 8;
            self.start = if self.input_latch == 0 { 0xffff } else { self.input_latch };
        } else if corrected {
            self.input_latch = byte as u16;
        } else {
            self.input_latch |= byte as u16;
        }
        done
    }

    const fn read(&mut self) -> u8 {
        if self.status_latched {
            self.status_latched = false;
            // The status always says "16 bits, binary"; output and null count are not included.
            return self.mode << 1 | 0x30;
        }
        let bytes = self.output_latch.to_le_bytes();
        let second = self.second_read;
        self.second_read = !second;
        bytes[second as usize]
    }
}

/// The timer with its three channels.
pub struct Pit {
    capabilities: Capabilities,
    channels: [Channel; 3],
    clock: Arc<dyn Clock>,
    ticks: HostTicks,
    line: IrqLine,
}

impl Pit {
    /// A timer at power-on: nothing runs, all channels in mode 0. `line` is IRQ 0.
    pub fn new(capabilities: Capabilities, clock: Arc<dyn Clock>, ticks: HostTicks, line: IrqLine) -> Self {
        // vmd sets the start time of channel 0 only; the other two count from the host's boot until
        // they are programmed.
        let channels = [Channel::new(clock.monotonic()), Channel::new(0), Channel::new(0)];
        Self { capabilities, channels, clock, ticks, line }
    }

    /// Stops the timers while the VM is paused (`vmctl pause`).
    pub fn pause(&mut self) {
        self.start_written(self.clock.monotonic());
        for channel in &mut self.channels {
            channel.deadline = None;
        }
    }

    /// Resumes after [`Pit::pause`]: every channel with a count starts from the top, including
    /// one-shots that had fired (`i8253_start`).
    pub fn unpause(&mut self) {
        let now = self.clock.monotonic();
        for channel in self.channels.iter_mut().filter(|channel| channel.phase != Phase::Unused) {
            channel.start(now, self.ticks);
        }
    }

    fn start_written(&mut self, now: u64) {
        for channel in self.channels.iter_mut().filter(|channel| channel.written_at.is_some()) {
            channel.start(now, self.ticks);
        }
    }

    fn control(&mut self, value: u8) {
        let now = self.clock.monotonic();
        let Some(channel) = self.channels.get_mut(usize::from(value >> 6)) else {
            self.read_back(value, now);
            return;
        };
        if value & 0x30 == 0 {
            channel.output_latch = channel.count(now);
            channel.second_read &= !self.capabilities.pit_corrected;
        } else {
            channel.second_write &= !self.capabilities.pit_corrected;
            // All access modes behave as "both bytes".
            channel.mode = value >> 1 & 7;
        }
    }

    /// Executes a read-back command. It latches count and status of the selected channels, whatever
    /// bits 4 and 5 say, and clears the latched status of the others (`i8253_do_readback`).
    fn read_back(&mut self, value: u8, now: u64) {
        for (n, channel) in self.channels.iter_mut().enumerate() {
            channel.status_latched = value & 2 << n != 0;
            if channel.status_latched {
                channel.output_latch = channel.count(now);
            }
        }
    }

    fn port_b(&self, access: &mut PortAccess) {
        if access.direction == Direction::Out {
            return;
        }
        let channel = &self.channels[2];
        match channel.mode {
            TERMINAL_COUNT => access.answer(u32::from(channel.phase == Phase::Expired) << 5),
            SQUARE_WAVE_ON_PORT_B => {
                // vmd puts the output into bit 0 instead of bit 5.
                let high = channel.count(self.clock.monotonic()) > channel.start / 2;
                access.answer(high.into());
            }
            // In all other modes vmd does not answer: AL keeps its value.
            _ => {}
        }
    }
}

impl PortDevice for Pit {
    fn access(&mut self, access: &mut PortAccess) {
        let value = access.value() as u8;
        match (access.port, access.direction) {
            (PORT_B, _) => self.port_b(access),
            (CONTROL, Direction::Out) => self.control(value),
            (CONTROL, Direction::In) => access.answer(0),
            (port @ 0x40..=0x42, direction) => {
                let channel = &mut self.channels[usize::from(port - 0x40)];
                match direction {
                    Direction::In => access.answer(channel.read().into()),
                    Direction::Out => {
                        if channel.write(value, self.capabilities.pit_corrected) {
                            let now = self.clock.monotonic();
                            channel.written_at = Some(now);
                            if self.capabilities.pit_corrected {
                                channel.started_at = now;
                            }
                        }
                    }
                }
            }
            _ => {}
        }
    }
}

impl Timed for Pit {
    fn deadline(&self) -> Option<u64> {
        self.channels.iter().filter_map(|channel| channel.written_at.or(channel.deadline)).min()
    }

    fn expire(&mut self) {
        let now = self.clock.monotonic();
        self.start_written(now);
        for (n, channel) in self.channels.iter_mut().enumerate() {
            if channel.deadline.is_none_or(|deadline| deadline > now) {
                continue;
            }
            if !self.capabilities.pit_corrected {
                self.line.assert();
            } else if n == 0 {
                self.line.assert();
                self.line.deassert();
            }
            if channel.mode == TERMINAL_COUNT {
                channel.deadline = None;
                channel.phase = Phase::Expired;
            } else {
                channel.arm(now, self.ticks);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;
    use vmd_release::Generation;

    use super::*;
    use crate::{
        bus::Width,
        clock::ManualClock,
        testing::{self, EAX, LineRecorder, inb, input, outb},
    };

    const MS: u64 = 1_000_000;

    fn pit() -> (Pit, Arc<ManualClock>, Arc<LineRecorder>) {
        pit_of(Generation::V7_8)
    }

    fn pit_of(generation: Generation) -> (Pit, Arc<ManualClock>, Arc<LineRecorder>) {
        let clock = Arc::new(ManualClock::new(1_000 * MS, 0));
        let (line, lines) = LineRecorder::one(IRQ);
        (
            Pit::new(generation.capabilities(), Arc::clone(&clock) as _, HostTicks::default(), line),
            clock,
            lines,
        )
    }

    fn program(pit: &mut Pit, channel: u8, mode: u8, count: u16) {
        outb(pit, CONTROL, channel << 6 | 0x30 | mode << 1);
        for byte in count.to_le_bytes() {
            outb(pit, 0x40 + u16::from(channel), byte);
        }
    }

    /// The same, followed by a turn of the event loop.
    fn start(pit: &mut Pit, channel: u8, mode: u8, count: u16) {
        program(pit, channel, mode, count);
        pit.expire();
    }

    fn latched(pit: &mut Pit, channel: u8) -> u16 {
        outb(pit, CONTROL, channel << 6);
        let port = 0x40 + u16::from(channel);
        u16::from_le_bytes([inb(pit, port), inb(pit, port)])
    }

    /// Advances the time from deadline to deadline for `nanos`; returns the number of IRQ 0s.
    fn run(pit: &mut Pit, clock: &ManualClock, lines: &LineRecorder, nanos: u64) -> usize {
        let end = clock.monotonic() + nanos;
        while let Some(deadline) = pit.deadline().filter(|deadline| *deadline <= end) {
            clock.advance(deadline.saturating_sub(clock.monotonic()));
            pit.expire();
        }
        clock.advance(end - clock.monotonic());
        lines.take().len()
    }

    #[test]
    fn counts_run_down_to_1_at_838_ns_a_tick() {
        let (mut pit, clock, _) = pit();
        start(&mut pit, 2, 0, 1000);
        assert_eq!(latched(&mut pit, 2), 1000);
        clock.advance(837);
        assert_eq!(latched(&mut pit, 2), 1000);
        clock.advance(1);
        assert_eq!(latched(&mut pit, 2), 999);
        clock.advance(998 * 838);
        assert_eq!(latched(&mut pit, 2), 1);
        clock.advance(838);
        assert_eq!(latched(&mut pit, 2), 1000, "it goes round in mode 0 as well");
    }

    #[test]
    fn the_input_latch_accumulates_bits() {
        let (mut pit, _, _) = pit();
        start(&mut pit, 0, 4, 0x1200);
        start(&mut pit, 0, 4, 0x0034);
        assert_eq!(latched(&mut pit, 0), 0x1234);
        start(&mut pit, 1, 4, 0x0034);
        assert_eq!(latched(&mut pit, 1), 0x0034, "each channel has its own");
        start(&mut pit, 0, 4, 0xedcb);
        start(&mut pit, 0, 4, 1);
        assert_eq!(latched(&mut pit, 0), 0xffff);
    }

    #[test]
    fn a_count_of_0_is_65535() {
        let (mut pit, _, _) = pit();
        start(&mut pit, 0, 2, 0);
        assert_eq!(latched(&mut pit, 0), 0xffff);
    }

    /// `tests/golden/pit_rtc/k73.pittest.txt`: reads in the style of quick_pit return the same
    /// value.
    #[test]
    fn unlatched_reads_repeat_the_last_latched_count() {
        let (mut pit, clock, _) = pit();
        start(&mut pit, 2, 0, 0x8000);
        clock.advance(838 * 0x123);
        let count = latched(&mut pit, 2);
        assert_eq!(count, 0x8000 - 0x123);
        for _ in 0..16 {
            clock.advance(100_000);
            assert_eq!(u16::from_le_bytes([inb(&mut pit, 0x42), inb(&mut pit, 0x42)]), count);
        }
    }

    #[test]
    fn byte_order_is_kept_across_latches_and_control_words() {
        let (mut pit, _, _) = pit();
        start(&mut pit, 0, 2, 0xab12);
        outb(&mut pit, CONTROL, 0x00);
        assert_eq!(inb(&mut pit, 0x40), 0x12);
        outb(&mut pit, CONTROL, 0x00);
        assert_eq!(inb(&mut pit, 0x40), 0xab);
        outb(&mut pit, 0x41, 0x55);
        outb(&mut pit, CONTROL, 0x50); // "low byte only"
        outb(&mut pit, 0x41, 0x66);
        pit.expire();
        assert_eq!(latched(&mut pit, 1), 0x6655);
    }

    /// `tests/golden/pit_rtc/k73.pittest.txt`: 30 for channel 2 in mode 0, 38 for channel 0 in mode
    /// 4.
    #[test]
    fn read_back_always_latches_status_and_count() {
        let (mut pit, _, _) = pit();
        start(&mut pit, 2, 0, 0xffff);
        start(&mut pit, 0, 4, 0x4f7c);
        outb(&mut pit, CONTROL, 0xe8); // status only, channel 2
        assert_eq!(inb(&mut pit, 0x42), 0x30);
        outb(&mut pit, CONTROL, 0xe2); // status only, channel 0
        assert_eq!([inb(&mut pit, 0x40), inb(&mut pit, 0x40), inb(&mut pit, 0x40)], [0x38, 0x7c, 0x4f]);
        outb(&mut pit, CONTROL, 0xd2); // count only
        assert_eq!(inb(&mut pit, 0x40), 0x38);
        outb(&mut pit, CONTROL, 0xc2);
        outb(&mut pit, CONTROL, 0xc4); // clears channel 0's status
        assert_eq!(inb(&mut pit, 0x40), 0x7c);
    }

    #[test]
    fn port_61_ignores_writes_and_shows_the_end_of_channel_2() {
        let (mut pit, clock, lines) = pit();
        for value in [0x01, 0x00, 0x03, 0xff] {
            outb(&mut pit, PORT_B, value);
            assert_eq!(inb(&mut pit, PORT_B), 0);
        }
        start(&mut pit, 2, 0, 11931);
        assert_eq!(run(&mut pit, &clock, &lines, 9 * MS), 0);
        assert_eq!(inb(&mut pit, PORT_B), 0);
        assert_eq!(run(&mut pit, &clock, &lines, 11 * MS), 1, "channel 2 raises IRQ 0 too");
        assert_eq!(input(&mut pit, PORT_B, Width::Byte), EAX & !0xff | 0x20);
        run(&mut pit, &clock, &lines, 1_000 * MS);
        assert_eq!(inb(&mut pit, PORT_B), 0x20, "it stays until there is a new count");
        outb(&mut pit, CONTROL, 0xb0);
        assert_eq!(inb(&mut pit, PORT_B), 0x20);
        program(&mut pit, 2, 0, 1);
        assert_eq!(inb(&mut pit, PORT_B), 0x20, "the event loop has not seen it");
        assert_eq!(pit.deadline(), Some(clock.monotonic()));
        pit.expire();
        assert_eq!(inb(&mut pit, PORT_B), 0);
    }

    #[test]
    fn until_the_event_loop_runs_a_new_count_runs_from_the_old_start() {
        let (mut pit, clock, _) = pit();
        start(&mut pit, 0, 2, 0x1000);
        clock.advance(838 * 0x10);
        program(&mut pit, 0, 2, 0x2000);
        assert_eq!(latched(&mut pit, 0), 0x3000 - 0x10);
        pit.expire();
        assert_eq!(latched(&mut pit, 0), 0x3000);
    }

    #[test]
    fn a_pause_keeps_a_count_that_was_just_written() {
        let (mut pit, clock, lines) = pit();
        program(&mut pit, 0, 0, 11931);
        pit.pause();
        assert_eq!(pit.deadline(), None);
        pit.unpause();
        assert_eq!(run(&mut pit, &clock, &lines, 100 * MS), 1);
    }

    #[test]
    fn port_61_answers_in_mode_0_and_in_the_other_mode_2_only() {
        let (mut pit, clock, _) = pit();
        for mode in [1, 2, 3, 4, 5, 7] {
            start(&mut pit, 2, mode, 0x1000);
            assert_eq!(input(&mut pit, PORT_B, Width::Byte), EAX, "mode {mode}");
        }
        start(&mut pit, 2, 6, 0x1000);
        assert_eq!(inb(&mut pit, PORT_B), 1);
        clock.advance(838 * 0x900);
        assert_eq!(inb(&mut pit, PORT_B), 0);
    }

    #[test]
    fn mode_0_fires_once_and_the_other_modes_repeat() {
        for mode in 0..8 {
            let (mut pit, clock, lines) = pit();
            start(&mut pit, 0, mode, 11932);
            let fired = run(&mut pit, &clock, &lines, 1_000 * MS);
            assert_eq!(fired, if mode == 0 { 1 } else { 50 }, "mode {mode}");
        }
    }

    /// `tests/golden/clock/experiment-fixed-count.txt`: 1, 2 and 10 ms alike make 50 interrupts a
    /// second on a host that ticks 100 times; `tests/golden/clock/k612.nokvmclock.txt`: HZ=250 gets
    /// 50.
    #[test]
    fn a_100_hz_host_makes_50_interrupts_a_second_of_anything_up_to_10_ms() {
        for count in [1193, 2386, 4773, 11932] {
            let (mut pit, clock, lines) = pit();
            start(&mut pit, 0, 2, count);
            assert_eq!(run(&mut pit, &clock, &lines, 20_000 * MS), 1000, "count {count}");
        }
    }

    /// `tests/golden/pit_rtc/experiment-channel1-and-rtc.txt`: 252 interrupts in 5 s from channel 1
    /// in mode 2.
    #[test]
    fn channel_1_raises_irq_0() {
        let (mut pit, clock, lines) = pit();
        start(&mut pit, 1, 2, 0x2000);
        assert_eq!(run(&mut pit, &clock, &lines, 5_000 * MS), 250);
    }

    /// `tests/golden/clock/k612.usleep.txt`: every short sleep of a stock NO_HZ kernel takes 40 ms.
    /// Its longest one-shot is 0x7fff, which the latch soon produces for every count.
    #[test]
    fn a_latch_full_of_ones_makes_every_one_shot_maximal() {
        let (mut pit, clock, lines) = pit();
        start(&mut pit, 0, 4, 0x7fff);
        start(&mut pit, 0, 4, 119);
        assert_eq!(pit.deadline().map(|at| at - clock.monotonic()), Some(40 * MS));
        assert_eq!(run(&mut pit, &clock, &lines, 1_000 * MS), 25);
    }

    #[test]
    fn a_host_with_more_ticks_has_shorter_periods() {
        let clock = Arc::new(ManualClock::new(0, 0));
        let (line, lines) = LineRecorder::one(IRQ);
        let ticks = HostTicks::new(NonZeroU32::new(1000).unwrap());
        let mut pit = Pit::new(Generation::V7_8.capabilities(), Arc::clone(&clock) as _, ticks, line);
        start(&mut pit, 0, 2, 11932);
        assert_eq!(run(&mut pit, &clock, &lines, 1_100 * MS), 100);
    }

    #[test]
    fn a_late_event_loop_delays_all_later_periods() {
        let (mut pit, clock, _) = pit();
        start(&mut pit, 0, 2, 11932);
        clock.advance(500 * MS);
        pit.expire();
        assert_eq!(pit.deadline(), Some(1_520 * MS));
    }

    #[test]
    fn unpausing_starts_every_used_channel_from_the_top() {
        let (mut pit, clock, lines) = pit();
        start(&mut pit, 0, 0, 11931);
        start(&mut pit, 2, 0, 11931);
        assert_eq!(run(&mut pit, &clock, &lines, 100 * MS), 2);
        pit.pause();
        assert_eq!(run(&mut pit, &clock, &lines, 1_000 * MS), 0);
        pit.unpause();
        assert_eq!(inb(&mut pit, PORT_B), 0);
        assert_eq!(run(&mut pit, &clock, &lines, 100 * MS), 2);
    }

    #[test]
    fn the_control_word_reads_as_0_and_wide_reads_are_zero_extended() {
        let (mut pit, _, _) = pit();
        assert_eq!(inb(&mut pit, CONTROL), 0);
        start(&mut pit, 0, 2, 0x1234);
        outb(&mut pit, CONTROL, 0);
        assert_eq!(input(&mut pit, 0x40, Width::Word), EAX & 0xffff_0000 | 0x34);
    }

    proptest! {
        #![proptest_config(testing::config())]

        #[test]
        fn no_sequence_of_accesses_and_waits_does_harm(
            steps in testing::steps(&[0x40, 0x41, 0x42, 0x43, 0x61])
        ) {
            let (mut pit, clock, _) = pit();
            for step in steps {
                match step {
                    testing::Step::Access(mut access) => pit.access(&mut access),
                    testing::Step::Wait(nanos) => clock.advance(nanos),
                    testing::Step::Other(n) if n % 2 == 0 => pit.pause(),
                    testing::Step::Other(_) => pit.unpause(),
                }
                pit.expire();
                prop_assert!(pit.deadline().is_none_or(|at| at > clock.monotonic()));
            }
        }
    }

    #[test]
    fn from_8_0_on_a_count_starts_with_its_second_byte() {
        let (mut pit, clock, _) = pit_of(Generation::V8_0);
        start(&mut pit, 0, 2, 0x1000);
        clock.advance(838 * 0x10);
        program(&mut pit, 0, 2, 0x2000);
        assert_eq!(latched(&mut pit, 0), 0x2000, "before the event loop has run");
    }

    #[test]
    fn from_8_0_on_a_count_replaces_the_one_before_and_only_channel_0_pulses_the_line() {
        let (mut pit, clock, lines) = pit_of(Generation::V8_0);
        outb(&mut pit, 0x43, 0x30);
        for count in [0x0f0f_u16, 0x1000] {
            for byte in count.to_le_bytes() {
                outb(&mut pit, 0x40, byte);
            }
        }
        outb(&mut pit, 0x43, 0x00);
        assert_eq!([inb(&mut pit, 0x40), inb(&mut pit, 0x40)], [0x00, 0x10], "not 0x1f0f");
        // After half a count and a control word, the next byte is a first byte again. After one
        // read byte, a latch command also restarts with the first byte.
        outb(&mut pit, 0x42, 0xaa);
        outb(&mut pit, 0x43, 0xb0);
        for byte in [0x34, 0x12] {
            outb(&mut pit, 0x42, byte);
        }
        pit.expire();
        for _ in 0..2 {
            outb(&mut pit, 0x43, 0x80);
            assert_eq!(inb(&mut pit, 0x42), 0x34);
        }
        clock.advance(1_000_000_000);
        pit.expire();
        assert_eq!(lines.take(), [(0, true), (0, false)], "nothing from channel 2");
        assert_eq!(inb(&mut pit, PORT_B), 0x20, "which has expired, too");
    }
}
