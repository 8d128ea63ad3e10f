//! The 8253 timer and port 0x61, as vmd(8) has them (i8253.c, the same from 7.2 to 7.9; 8.0 repaired some of it).
//!
//! vmd counts nothing: a channel has the time at which it was started, and its count is worked out when it is latched.
//! What a guest notices:
//!
//! - A tick lasts 838 ns, a whole number, where 838.095 would be right: counts run 114 ppm fast
//!   ([`NANOS_PER_TICK`]).
//! - The input latch is never cleared: the bits of every count ever written to a channel stay set in the next one.
//! - A count takes effect when its second byte is written, whatever access mode the control word asked for; the
//!   control word starts and stops nothing and does not reset the byte order.
//! - The count is new at once, but it is vmd's event loop that starts the channel with it, a little later
//!   ([`Timed::expire`]); until then the channel counts from where it was started last, and one that had reached its
//!   end goes on saying so. Who programs channel 2 and looks at port 0x61 right away may find it expired
//!   (`tests/golden/pit_rtc/k73.pittest.txt`: "out went high after 0.000553 s, 0 loops").
//! - Reads give the bytes of the output latch in turn, and only the latch and read-back commands fill it.
//! - A channel other than in mode 0 is armed again when its timer has fired, so it loses what the host's timer was
//!   late by ([`HostTicks`]); all modes but 0 are periodic.
//! - Every channel raises IRQ 0, channel 2 as well.
//! - There is no gate: writes to port 0x61 are ignored.
//!
//! From 8.0 on ([`Pit::for_generation`]) the first byte of a count replaces the input latch, the control word begins
//! with the first byte again and so does the latch command for reading, and only channel 0 raises IRQ 0, as a pulse.

use std::sync::Arc;

use vmd_release::Generation;

use crate::{
    bus::{Direction, PortAccess, PortDevice},
    clock::{Clock, HostTicks, Timed},
    irq::IrqLine,
};

/// The three counters and the control word.
pub const PORTS: [u16; 4] = [0x40, 0x41, 0x42, 0x43];
/// "System control port B", of which there is the output of channel 2 only.
pub const PORT_B: u16 = 0x61;

/// Length of a tick: 1,193,182 Hz rounded down to whole nanoseconds (`NS_PER_TICK` in i8253.h).
pub const NANOS_PER_TICK: u64 = 1_000_000_000 / 1_193_182;

/// The line that all channels raise.
pub const IRQ: u8 = 0;

const CONTROL: u16 = 0x43;

/// Interrupt on terminal count, the one mode that fires once.
const TERMINAL_COUNT: u8 = 0;

/// What vmd takes for "square wave" on port 0x61: it compares the mode with the bits that the control word has for
/// it, mode 3 shifted by one, so that what it answers to is mode 6, the other name of mode 2.
const SQUARE_WAVE_ON_PORT_B: u8 = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No count was ever written.
    Unused,
    /// On its way.
    Counting,
    /// Mode 0 has reached its end.
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
    /// When a count was written that the event loop has not seen yet.
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

    /// The count at `now`: from the start value down to 1, round and round, in every mode.
    const fn count(&self, now: u64) -> u16 {
        let ticks = now.saturating_sub(self.started_at) / NANOS_PER_TICK;
        // The start value is never 0: that becomes 0xffff when it is written.
        self.start - (ticks % self.start as u64) as u16
    }

    /// How long the channel runs, in whole microseconds as libevent's timers have it, here in nanoseconds.
    const fn period(&self) -> u64 {
        self.start as u64 * NANOS_PER_TICK / 1000 * 1000
    }

    const fn arm(&mut self, now: u64, ticks: HostTicks) {
        self.deadline = Some(ticks.fires_at(now, self.period()));
    }

    /// Starts counting from the top (`i8253_reset`).
    const fn start(&mut self, now: u64, ticks: HostTicks) {
        self.phase = Phase::Counting;
        self.written_at = None;
        self.started_at = now;
        self.arm(now, ticks);
    }

    /// Takes a byte of a count; tells whether it was the second one.
    const fn write(&mut self, byte: u8, repaired: bool) -> bool {
        let done = self.second_write;
        self.second_write = !done;
        if done {
            self.input_latch |= (byte as u16) << 8;
            self.start = if self.input_latch == 0 { 0xffff } else { self.input_latch };
        } else if repaired {
            self.input_latch = byte as u16;
        } else {
            self.input_latch |= byte as u16;
        }
        done
    }

    const fn read(&mut self) -> u8 {
        if self.status_latched {
            self.status_latched = false;
            // Always "16 bits, binary"; neither the output nor the null count is there.
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
    /// As from 8.0 on.
    repaired: bool,
    channels: [Channel; 3],
    clock: Arc<dyn Clock>,
    ticks: HostTicks,
    line: IrqLine,
}

impl Pit {
    /// A timer as at power-on: nothing runs, all channels in mode 0. `line` is IRQ 0.
    pub fn new(clock: Arc<dyn Clock>, ticks: HostTicks, line: IrqLine) -> Self {
        // Only channel 0 gets its start time; the other two count from the host's boot until they are programmed.
        let channels = [Channel::new(clock.monotonic()), Channel::new(0), Channel::new(0)];
        Self { repaired: false, channels, clock, ticks, line }
    }

    /// The same timer as `generation` has it; without this it is that of 7.2 to 7.9.
    #[must_use]
    pub fn for_generation(self, generation: Generation) -> Self {
        Self { repaired: generation >= Generation::V8_0, ..self }
    }

    /// Stops the timers while the VM is paused (`vmctl pause`).
    pub fn pause(&mut self) {
        self.start_written(self.clock.monotonic());
        for channel in &mut self.channels {
            channel.deadline = None;
        }
    }

    /// Goes on after [`Pit::pause`]: every channel that was ever given a count starts from the top, one-shots that
    /// had fired long ago included (`i8253_start`).
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
            channel.second_read &= !self.repaired;
        } else {
            channel.second_write &= !self.repaired;
            // Access modes other than "both bytes" are treated as that one.
            channel.mode = value >> 1 & 7;
        }
    }

    /// The read-back command latches count and status of the channels it names, whatever bits 4 and 5 say, and
    /// forgets the latched status of the others (`i8253_do_readback`).
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
                // The output ends up in bit 0, not in bit 5.
                let high = channel.count(self.clock.monotonic()) > channel.start / 2;
                access.answer(high.into());
            }
            // In all other modes nobody answers: AL stays as it was.
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
                        if channel.write(value, self.repaired) {
                            channel.written_at = Some(self.clock.monotonic());
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
            if !self.repaired {
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

    use super::*;
    use crate::{
        bus::Width,
        clock::ManualClock,
        testing::{self, EAX, Lines, inb, input, outb},
    };

    const MS: u64 = 1_000_000;

    fn pit() -> (Pit, Arc<ManualClock>, Arc<Lines>) {
        let clock = Arc::new(ManualClock::new(1_000 * MS, 0));
        let (line, lines) = Lines::one(IRQ);
        (Pit::new(Arc::clone(&clock) as _, HostTicks::default(), line), clock, lines)
    }

    fn program(pit: &mut Pit, channel: u8, mode: u8, count: u16) {
        outb(pit, CONTROL, channel << 6 | 0x30 | mode << 1);
        for byte in count.to_le_bytes() {
            outb(pit, 0x40 + u16::from(channel), byte);
        }
    }

    /// The same, and the event loop sees it.
    fn start(pit: &mut Pit, channel: u8, mode: u8, count: u16) {
        program(pit, channel, mode, count);
        pit.expire();
    }

    fn latched(pit: &mut Pit, channel: u8) -> u16 {
        outb(pit, CONTROL, channel << 6);
        let port = 0x40 + u16::from(channel);
        u16::from_le_bytes([inb(pit, port), inb(pit, port)])
    }

    /// Lets time pass to each deadline in turn until `nanos` are over; gives how often IRQ 0 was raised.
    fn run(pit: &mut Pit, clock: &ManualClock, lines: &Lines, nanos: u64) -> usize {
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
    fn the_input_latch_only_ever_gains_bits() {
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

    /// `tests/golden/pit_rtc/k73.pittest.txt`: "quick_pit style" reads all give the same value.
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

    /// `tests/golden/pit_rtc/k73.pittest.txt`: 30 for channel 2 in mode 0, 38 for channel 0 in mode 4.
    #[test]
    fn read_back_latches_status_and_count_whatever_it_is_asked_for() {
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
        outb(&mut pit, CONTROL, 0xc4); // channel 0's status is forgotten
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
    fn until_the_event_loop_turns_a_new_count_runs_from_the_old_start() {
        let (mut pit, clock, _) = pit();
        start(&mut pit, 0, 2, 0x1000);
        clock.advance(838 * 0x10);
        program(&mut pit, 0, 2, 0x2000);
        assert_eq!(latched(&mut pit, 0), 0x3000 - 0x10);
        pit.expire();
        assert_eq!(latched(&mut pit, 0), 0x3000);
    }

    #[test]
    fn a_pause_does_not_lose_a_count_that_was_just_written() {
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
    fn mode_0_fires_once_and_the_others_go_on() {
        for mode in 0..8 {
            let (mut pit, clock, lines) = pit();
            start(&mut pit, 0, mode, 11932);
            let fired = run(&mut pit, &clock, &lines, 1_000 * MS);
            assert_eq!(fired, if mode == 0 { 1 } else { 50 }, "mode {mode}");
        }
    }

    /// `tests/golden/clock/experiment-fixed-count.txt`: 1, 2 and 10 ms alike make 50 interrupts a second on a host that
    /// ticks 100 times; `tests/golden/clock/k612.nokvmclock.txt`: HZ=250 gets 50.
    #[test]
    fn a_100_hz_host_makes_50_interrupts_a_second_of_anything_up_to_10_ms() {
        for count in [1193, 2386, 4773, 11932] {
            let (mut pit, clock, lines) = pit();
            start(&mut pit, 0, 2, count);
            assert_eq!(run(&mut pit, &clock, &lines, 20_000 * MS), 1000, "count {count}");
        }
    }

    /// `tests/golden/pit_rtc/experiment-channel1-and-rtc.txt`: 252 interrupts in 5 s from channel 1 in mode 2.
    #[test]
    fn channel_1_raises_irq_0() {
        let (mut pit, clock, lines) = pit();
        start(&mut pit, 1, 2, 0x2000);
        assert_eq!(run(&mut pit, &clock, &lines, 5_000 * MS), 250);
    }

    /// `tests/golden/clock/k612.usleep.txt`: every short sleep of a stock NO_HZ kernel takes 40 ms. Its longest one-shot is
    /// 0x7fff, which the latch soon gives for every count.
    #[test]
    fn a_latch_full_of_ones_makes_every_one_shot_the_longest() {
        let (mut pit, clock, lines) = pit();
        start(&mut pit, 0, 4, 0x7fff);
        start(&mut pit, 0, 4, 119);
        assert_eq!(pit.deadline().map(|at| at - clock.monotonic()), Some(40 * MS));
        assert_eq!(run(&mut pit, &clock, &lines, 1_000 * MS), 25);
    }

    #[test]
    fn a_finer_host_is_finer() {
        let clock = Arc::new(ManualClock::new(0, 0));
        let (line, lines) = Lines::one(IRQ);
        let ticks = HostTicks::new(NonZeroU32::new(1000).unwrap());
        let mut pit = Pit::new(Arc::clone(&clock) as _, ticks, line);
        start(&mut pit, 0, 2, 11932);
        assert_eq!(run(&mut pit, &clock, &lines, 1_100 * MS), 100);
    }

    #[test]
    fn a_late_event_loop_delays_all_that_follow() {
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
    fn the_control_word_reads_as_0_and_wide_reads_are_filled_with_0() {
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
    fn from_8_0_on_a_count_replaces_the_one_before_and_only_channel_0_pulses_the_line() {
        let (pit, clock, lines) = pit();
        let mut pit = pit.for_generation(Generation::V8_0);
        outb(&mut pit, 0x43, 0x30);
        for count in [0x0f0f_u16, 0x1000] {
            for byte in count.to_le_bytes() {
                outb(&mut pit, 0x40, byte);
            }
        }
        outb(&mut pit, 0x43, 0x00);
        assert_eq!([inb(&mut pit, 0x40), inb(&mut pit, 0x40)], [0x00, 0x10], "not 0x1f0f");
        // Half a count, then a control word: the next byte is a first one again. A latch command after one byte was
        // read begins with the first byte too.
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
