//! The serial port COM1 of vmd(8) (ns8250.c, the same from 7.2 to 7.9; 8.0 changed the interrupts).
//!
//! It resembles an 8250: no FIFO and no scratch register. The `vm-superio` crate's serial port
//! implements neither its interrupt rules nor its output pauses. A guest can observe:
//!
//! - Until the first read of IIR, every access to the data register raises IRQ 4, whatever IER
//!   says: the "nothing pending" bit is clear at power-on.
//! - Enabling the transmit interrupt in IER raises no interrupt; the first character does.
//! - A character received with its interrupt disabled never raises one.
//! - With the transmit interrupt enabled, output stops for 10 ms (a timer of the host, so 10 to 20
//!   ms) after as many characters as the line carries in that time: 140 at 115,200 baud. Otherwise
//!   output is not throttled.
//! - The lower half of the modem status register has the bits of the line status register.
//! - IRQ 4 is raised and never lowered.
//! - While a character waits behind an unread one, the terminal stays readable and vmd's event loop
//!   spins; each of its passes raises IRQ 4 again if an interrupt is pending (`com_rcv_event`).
//!
//! From 8.0 on IIR is recomputed after every change: a received
//! character has priority over the transmitter, each only if IER enables it, and "nothing pending"
//! is set at power-on. Enabling the transmit interrupt raises it. After a read of the data register
//! and a write of IER the line is raised or lowered as IIR says, even if the access reached the
//! divisor latch (`vcpu_exit_com`); after a read of IIR it is lowered if nothing is pending.

use std::{collections::VecDeque, fmt, io, sync::Arc};

use vmd_release::Capabilities;

use crate::{
    bus::{Direction, PortAccess, PortDevice},
    clock::{Clock, HostTicks, Timed},
    irqchip::line::IrqLine,
};

/// First of the eight ports.
pub const BASE: u16 = 0x3f8;

/// The interrupt line.
pub const IRQ: u8 = 4;

/// Number of inputs that the model buffers while the guest does not read.
pub const INPUT_CAPACITY: usize = 256;

/// Pause of the output in nanoseconds, before the host's timers round it up.
const PAUSE: u64 = 10_000_000;

/// Interval in nanoseconds between passes of the event loop while it spins. vmd's takes as long as
/// a pass does; this model's takes a share of the processor that others can spare.
const PASS: u64 = 100_000;

const DATA: u16 = 0;
const IER: u16 = 1;
const IIR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCR: u16 = 7;

const IER_RECEIVE: u8 = 0x01;
const IER_TRANSMIT: u8 = 0x02;
const IIR_NOTHING_PENDING: u8 = 0x01;
const IIR_TRANSMIT: u8 = 0x02;
const IIR_RECEIVE: u8 = 0x04;
const LCR_DLAB: u8 = 0x80;
const LSR_RECEIVED: u8 = 0x01;
const LSR_BREAK: u8 = 0x10;
const LSR_TRANSMITTER_IDLE: u8 = 0x60;
const MSR_CONNECTED: u8 = 0xb0;

/// Input from the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A character.
    Char(u8),
    /// The terminal starts (`true`) or stops (`false`) a break. Each arrives with a NUL; in
    /// between, the break bit of LSR stays set, however often LSR is read. (With ucntl(4), `cu`
    /// sends this for `~#`.)
    Break(bool),
}

/// The serial port.
pub struct Uart {
    capabilities: Capabilities,
    /// From 8.0 on: a transmit interrupt is pending.
    transmitted: bool,
    lcr: u8,
    ier: u8,
    iir: u8,
    mcr: u8,
    lsr: u8,
    scr: u8,
    divisor: [u8; 2],
    data: u8,
    sent: u64,
    /// Number of characters between two pauses; 0 for no pauses.
    burst: u64,
    resume_at: Option<u64>,
    /// Up to 7.9: time of the next pass of the spinning event loop.
    next_pass: Option<u64>,
    waiting: VecDeque<Input>,
    output: Box<dyn io::Write + Send>,
    clock: Arc<dyn Clock>,
    ticks: HostTicks,
    line: IrqLine,
}

impl Uart {
    /// A port at 115,200 baud that sends to `output`. Bytes that `output` does not accept at once
    /// are lost, as with vmd's pseudo-terminal; [`io::Write::flush`] is called after each
    /// character. `line` is IRQ 4.
    pub fn new(
        capabilities: Capabilities,
        clock: Arc<dyn Clock>,
        ticks: HostTicks,
        line: IrqLine,
        output: Box<dyn io::Write + Send>,
    ) -> Self {
        Self {
            capabilities,
            transmitted: false,
            lcr: 0,
            ier: 0,
            iir: if capabilities.uart_corrected { IIR_NOTHING_PENDING } else { 0 },
            mcr: 0,
            lsr: 0,
            scr: 0,
            divisor: [1, 0],
            data: 0,
            sent: 0,
            burst: burst(115_200),
            resume_at: None,
            next_pass: None,
            waiting: VecDeque::new(),
            output,
            clock,
            ticks,
            line,
        }
    }

    /// Number of [`Input`]s that fit into the buffer.
    pub fn input_room(&self) -> usize {
        INPUT_CAPACITY - self.waiting.len()
    }

    /// Accepts up to [`Uart::input_room`] inputs and returns their number. The caller offers the
    /// rest again after the guest has read some.
    pub fn push_input(&mut self, input: impl IntoIterator<Item = Input>) -> usize {
        let before = self.waiting.len();
        self.waiting.extend(input.into_iter().take(INPUT_CAPACITY - before));
        let taken = self.waiting.len() - before;
        self.receive();
        taken
    }

    /// Stops the output timer while the VM is paused (`vmctl pause`).
    pub const fn pause(&mut self) {
        self.resume_at = None;
    }

    /// Resumes after [`Uart::pause`]. Whether or not output was stopped, a transmit interrupt is
    /// raised 10 to 20 ms later (`ns8250_start`).
    pub fn unpause(&mut self) {
        self.stop_output();
    }

    fn stop_output(&mut self) {
        self.resume_at = Some(self.ticks.fires_at(self.clock.monotonic(), PAUSE));
    }

    /// A pass of the event loop: moves the next input into the data register if it is free, and
    /// raises the line for a pending interrupt if there was an input.
    fn receive(&mut self) {
        if self.lsr & LSR_RECEIVED == 0 {
            self.take_input();
        } else if self.spins() {
            self.line.assert();
        }
        self.next_pass = self.spins().then(|| self.clock.monotonic() + PASS);
    }

    /// Whether vmd's event loop spins and raises the line again and again: an input waits behind an
    /// unread one, and an interrupt is pending.
    fn spins(&self) -> bool {
        !self.capabilities.uart_corrected
            && self.lsr & LSR_RECEIVED != 0
            && !self.waiting.is_empty()
            && self.iir & IIR_NOTHING_PENDING == 0
    }

    fn take_input(&mut self) {
        let Some(input) = self.waiting.pop_front() else { return };
        self.data = match input {
            Input::Char(char) => char,
            Input::Break(on) => {
                self.lsr = if on { self.lsr | LSR_BREAK } else { self.lsr & !LSR_BREAK };
                0
            }
        };
        self.lsr |= LSR_RECEIVED;
        if self.ier & IER_RECEIVE != 0 {
            self.set_pending(IIR_RECEIVE);
        }
        self.raise_if_pending();
    }

    /// The value of IIR from 8.0 on (`ns8250_update_iir`).
    const fn work_out_iir(&mut self) {
        self.iir = if self.ier & IER_RECEIVE != 0 && self.lsr & LSR_RECEIVED != 0 {
            IIR_RECEIVE
        } else if self.ier & IER_TRANSMIT != 0 && self.transmitted {
            IIR_TRANSMIT
        } else {
            IIR_NOTHING_PENDING
        };
    }

    fn lower_if_nothing_pending(&self) {
        if self.capabilities.uart_corrected && self.iir & IIR_NOTHING_PENDING != 0 {
            self.line.deassert();
        }
    }

    const fn set_pending(&mut self, what: u8) {
        if self.capabilities.uart_corrected {
            if what == IIR_TRANSMIT {
                self.transmitted = self.ier & IER_TRANSMIT != 0;
            }
            self.work_out_iir();
            return;
        }
        self.iir = (self.iir | what) & !IIR_NOTHING_PENDING;
    }

    const fn clear_pending(&mut self, what: u8) {
        if self.capabilities.uart_corrected {
            if what == IIR_TRANSMIT && self.iir == IIR_TRANSMIT {
                self.transmitted = false;
            }
            self.work_out_iir();
            return;
        }
        self.iir &= !what;
        if self.iir == 0 {
            self.iir = IIR_NOTHING_PENDING;
        }
    }

    fn raise_if_pending(&self) {
        if self.iir & IIR_NOTHING_PENDING == 0 {
            self.line.assert();
        }
    }

    /// Raises or lowers the line as IIR says, from 8.0 on.
    fn evaluate_line(&self) {
        if self.capabilities.uart_corrected {
            self.raise_if_pending();
            self.lower_if_nothing_pending();
        }
    }

    const fn divisor_latched(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn send(&mut self, char: u8) {
        // vmd ignores errors of write(2).
        let _ = self.output.write(&[char]);
        let _ = self.output.flush();
        self.sent = self.sent.wrapping_add(1);
        if self.ier & IER_TRANSMIT != 0 {
            if self.burst > 0 && self.sent.is_multiple_of(self.burst) {
                self.stop_output();
                if self.capabilities.uart_corrected {
                    self.transmitted = false;
                    self.work_out_iir();
                }
            } else {
                self.set_pending(IIR_TRANSMIT);
            }
        }
        self.raise_if_pending();
    }

    fn read_data(&mut self) -> u8 {
        let data = self.data;
        if self.lsr & LSR_RECEIVED != 0 {
            self.data = 0;
            self.lsr &= !LSR_RECEIVED;
        }
        self.clear_pending(IIR_RECEIVE);
        self.raise_if_pending();
        self.lower_if_nothing_pending();
        data
    }

    fn write(&mut self, register: u16, value: u8) {
        match register {
            DATA if self.divisor_latched() => self.divisor[0] = value,
            DATA => self.send(value),
            IER if self.divisor_latched() => {
                self.divisor[1] = value;
                self.evaluate_line();
            }
            IER => {
                self.ier = value;
                if self.capabilities.uart_corrected {
                    self.transmitted = value & IER_TRANSMIT != 0;
                    self.work_out_iir();
                    self.evaluate_line();
                } else if value & IER_TRANSMIT != 0 {
                    // "Nothing pending" stays set together with it.
                    self.iir |= IIR_TRANSMIT;
                }
            }
            LCR => {
                if self.divisor_latched() && value & LCR_DLAB == 0 {
                    let divisor = u32::from(u16::from_le_bytes(self.divisor));
                    if let Some(baud) = 115_200_u32.checked_div(divisor) {
                        self.burst = burst(baud);
                    }
                }
                self.lcr = value;
            }
            MCR => self.mcr = value,
            // The scratch register does not exist, but its value changes at the first write.
            SCR => self.scr = 0xff,
            // Writes to the FIFO control register have no effect; LSR and MSR cannot be written.
            _ => {}
        }
    }

    fn read(&mut self, register: u16) -> u8 {
        match register {
            DATA if self.divisor_latched() => {
                self.evaluate_line();
                self.divisor[0]
            }
            DATA => self.read_data(),
            IER if self.divisor_latched() => self.divisor[1],
            IER => self.ier,
            IIR => {
                let iir = self.iir;
                self.clear_pending(IIR_TRANSMIT);
                self.lower_if_nothing_pending();
                iir
            }
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => self.lsr | LSR_TRANSMITTER_IDLE,
            MSR => self.lsr | MSR_CONNECTED,
            _ => self.scr,
        }
    }
}

/// Number of 8-bit characters that the line carries in 10 ms. Below 8,000 baud vmd computes 0: no
/// pauses.
const fn burst(baud: u32) -> u64 {
    (baud / 8 / 1000 * 10) as u64
}

impl PortDevice for Uart {
    fn access(&mut self, access: &mut PortAccess) {
        let Some(register) = access.port.checked_sub(BASE).filter(|register| *register <= SCR) else {
            return;
        };
        match access.direction {
            Direction::Out => self.write(register, access.value() as u8),
            Direction::In => access.answer(self.read(register).into()),
        }
    }
}

impl Timed for Uart {
    /// Due immediately while input waits and the data register is free: vmd's event loop fills it
    /// at its next pass.
    fn deadline(&self) -> Option<u64> {
        if self.lsr & LSR_RECEIVED == 0 && !self.waiting.is_empty() {
            return Some(self.clock.monotonic());
        }
        self.resume_at.into_iter().chain(self.next_pass).min()
    }

    fn expire(&mut self) {
        if self.resume_at.is_some_and(|at| at <= self.clock.monotonic()) {
            self.resume_at = None;
            self.set_pending(IIR_TRANSMIT);
            self.raise_if_pending();
        }
        self.receive();
    }
}

impl fmt::Debug for Uart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uart")
            .field("lcr", &self.lcr)
            .field("ier", &self.ier)
            .field("iir", &self.iir)
            .field("lsr", &self.lsr)
            .field("sent", &self.sent)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;
    use vmd_release::Generation;

    use super::*;
    use crate::{
        bus::Width,
        clock::ManualClock,
        testing::{self, EAX, LineRecorder, inb, input, outb},
    };

    const MS: u64 = 1_000_000;

    #[derive(Clone, Default)]
    struct Terminal(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Terminal {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(buf);
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Machine {
        uart: Uart,
        clock: Arc<ManualClock>,
        lines: Arc<LineRecorder>,
        terminal: Terminal,
    }

    impl Machine {
        fn new() -> Self {
            Self::of(Generation::V7_8)
        }

        fn of(generation: Generation) -> Self {
            let clock = Arc::new(ManualClock::new(5 * MS, 0));
            let (line, lines) = LineRecorder::one(IRQ);
            let terminal = Terminal::default();
            let uart = Uart::new(
                generation.capabilities(),
                Arc::clone(&clock) as _,
                HostTicks::default(),
                line,
                Box::new(terminal.clone()),
            );
            Self { uart, clock, lines, terminal }
        }

        fn write(&mut self, register: u16, value: u8) {
            outb(&mut self.uart, BASE + register, value);
        }

        fn read(&mut self, register: u16) -> u8 {
            inb(&mut self.uart, BASE + register)
        }

        fn interrupts(&self) -> usize {
            let lines = self.lines.take();
            assert!(lines.iter().all(|line| *line == (IRQ, true)), "never lowered");
            lines.len()
        }

        fn type_(&mut self, text: &[u8]) -> usize {
            self.uart.push_input(text.iter().copied().map(Input::Char))
        }

        /// Sends until output stops; returns the number of characters.
        fn send_until_paused(&mut self) -> usize {
            self.interrupts();
            for n in 1..10_000 {
                self.read(IIR);
                self.write(DATA, b'x');
                if self.interrupts() == 0 {
                    return n;
                }
            }
            panic!("no pause");
        }
    }

    #[test]
    fn from_8_0_on_interrupts_follow_ier_and_the_line_is_lowered() {
        let mut m = Machine::of(Generation::V8_0);
        assert_eq!(m.read(IIR), 0x01, "nothing pending from the start");
        m.write(DATA, b'x');
        m.type_(b"a");
        m.lines.take();
        m.write(IER, IER_TRANSMIT);
        assert_eq!(m.lines.take(), [(IRQ, true)], "turning it on is enough");
        assert_eq!(m.read(IIR), IIR_TRANSMIT);
        assert_eq!(m.lines.take(), [(IRQ, false)]);
        m.write(IER, IER_TRANSMIT | IER_RECEIVE);
        assert_eq!(m.read(IIR), IIR_RECEIVE, "the character that came before goes first");
        assert_eq!(m.lines.take(), [(IRQ, true)]);
        assert_eq!(m.read(DATA), b'a');
        assert_eq!(m.lines.take(), [(IRQ, true)], "the transmitter's turn");
        assert_eq!(m.read(IIR), IIR_TRANSMIT);
        assert_eq!(m.read(IIR), 0x01);
        m.write(IER, 0);
        assert!(m.lines.take().iter().all(|(_, up)| !up));
    }

    #[test]
    fn from_8_0_on_a_pause_ends_with_an_interrupt_only_if_enabled() {
        for wanted in [true, false] {
            let mut m = Machine::of(Generation::V8_0);
            m.write(IER, IER_TRANSMIT);
            for _ in 0..140 {
                m.write(DATA, b'x');
            }
            assert_eq!(m.read(IIR), 0x01, "paused");
            if !wanted {
                m.write(IER, 0);
            }
            m.lines.take();
            m.clock.advance(20 * MS);
            m.uart.expire();
            assert_eq!(m.lines.take(), if wanted { vec![(IRQ, true)] } else { vec![] });
        }
    }

    /// The registers after Linux's setup: `tests/golden/pit_rtc/k73.pittest.txt`, "uart".
    #[test]
    fn registers_as_linux_leaves_them() {
        let mut m = Machine::new();
        m.write(IER, 0x07);
        m.read(IIR);
        m.write(LCR, 0x13);
        m.write(MCR, 0x0b);
        m.write(SCR, 0x5a);
        let registers: Vec<_> = (1..8).map(|register| m.read(register)).collect();
        assert_eq!(registers, [0x07, 0x01, 0x13, 0x0b, 0x60, 0xb0, 0xff]);
    }

    #[test]
    fn there_is_no_fifo_and_no_loopback() {
        let mut m = Machine::new();
        m.read(IIR);
        m.write(IIR, 0xc7);
        assert_eq!(m.read(IIR), 0x01);
        m.write(MCR, 0x1f);
        m.write(DATA, b'x');
        assert_eq!((m.read(LSR), m.read(MSR)), (0x60, 0xb0));
    }

    #[test]
    fn the_scratch_register_is_0_and_then_ff() {
        let mut m = Machine::new();
        assert_eq!(m.read(SCR), 0);
        m.write(SCR, 0x12);
        assert_eq!(m.read(SCR), 0xff);
    }

    #[test]
    fn before_iir_is_first_read_every_character_interrupts() {
        let mut m = Machine::new();
        m.write(DATA, b'S');
        m.write(DATA, b'e');
        assert_eq!(m.interrupts(), 2);
        assert_eq!(m.read(IIR), 0);
        assert_eq!(m.read(IIR), 1);
        m.write(DATA, b'a');
        assert_eq!(m.interrupts(), 0);
        assert_eq!(*m.terminal.0.lock().unwrap(), b"Sea");
    }

    #[test]
    fn enabling_the_transmit_interrupt_raises_nothing() {
        let mut m = Machine::new();
        m.read(IIR);
        m.write(IER, 0x02);
        assert_eq!(m.interrupts(), 0);
        assert_eq!(m.read(IIR), 0x03);
        m.write(DATA, b'x');
        assert_eq!(m.interrupts(), 1);
        assert_eq!((m.read(IIR), m.read(IIR)), (0x02, 0x01));
    }

    #[test]
    fn output_pauses_after_140_characters_at_115200() {
        let mut m = Machine::new();
        m.read(IIR);
        m.write(IER, 0x02);
        assert_eq!(m.send_until_paused(), 140);
        assert_eq!(m.uart.deadline(), Some(20 * MS));
        m.uart.expire();
        assert_eq!(m.interrupts(), 0);
        m.clock.advance(15 * MS);
        m.uart.expire();
        assert_eq!(m.interrupts(), 1);
        assert_eq!(m.read(IIR), 0x02);
        assert_eq!(m.uart.deadline(), None);
        assert_eq!(m.send_until_paused(), 140);
    }

    #[test]
    fn without_the_transmit_interrupt_there_is_no_pause() {
        let mut m = Machine::new();
        for _ in 0..1000 {
            m.write(DATA, b'x');
        }
        assert_eq!(m.uart.deadline(), None);
        assert_eq!(m.terminal.0.lock().unwrap().len(), 1000);
    }

    #[test]
    fn the_pause_follows_the_divisor() {
        let mut m = Machine::new();
        m.read(IIR);
        m.write(IER, 0x02);
        for (divisor, burst) in
            [(12_u16, Some(10)), (2, Some(70)), (24, None), (1, Some(140)), (0, Some(140))]
        {
            m.write(LCR, 0x83);
            m.write(DATA, divisor as u8);
            m.write(IER, (divisor >> 8) as u8);
            assert_eq!(m.read(DATA), divisor as u8);
            m.write(LCR, 0x03);
            assert_eq!(m.read(IER), 0x02);
            m.uart.sent = 0;
            match burst {
                Some(burst) => assert_eq!(m.send_until_paused(), burst, "divisor {divisor}"),
                None => assert_eq!(m.uart.burst, 0),
            }
        }
    }

    #[test]
    fn a_character_interrupts_and_the_next_one_waits_until_it_is_read() {
        let mut m = Machine::new();
        m.read(IIR);
        m.write(IER, 0x01);
        assert_eq!(m.type_(b"ab"), 2);
        assert_eq!(m.interrupts(), 1);
        assert_eq!((m.read(IIR), m.read(LSR), m.read(MSR)), (0x04, 0x61, 0xb1));
        assert_eq!(m.read(DATA), b'a');
        assert_eq!((m.read(IIR), m.read(LSR)), (0x01, 0x60));
        assert_eq!(m.uart.deadline(), Some(m.clock.monotonic()));
        m.uart.expire();
        assert_eq!(m.interrupts(), 1);
        assert_eq!((m.read(DATA), m.read(DATA)), (b'b', 0));
    }

    #[test]
    fn a_second_unread_character_raises_the_line_at_each_pass_of_the_event_loop() {
        let mut m = Machine::new();
        m.read(IIR);
        m.write(IER, 0x01);
        m.type_(b"ab");
        m.interrupts();
        for _ in 0..3 {
            let pass = m.uart.deadline().unwrap();
            m.clock.advance(pass - m.clock.monotonic());
            m.uart.expire();
        }
        assert_eq!(m.interrupts(), 3);
        assert_eq!((m.read(DATA), m.uart.deadline()), (b'a', Some(m.clock.monotonic())));
        m.uart.expire();
        assert_eq!((m.interrupts(), m.uart.deadline()), (1, None), "only one is left");
    }

    #[test]
    fn the_event_loop_raises_nothing_while_no_interrupt_is_pending() {
        let mut m = Machine::new();
        m.read(IIR);
        m.type_(b"ab");
        m.uart.expire();
        assert_eq!((m.interrupts(), m.uart.deadline()), (0, None));
    }

    #[test]
    fn from_8_0_on_accesses_to_the_divisor_latch_evaluate_the_line() {
        let mut m = Machine::of(Generation::V8_0);
        m.write(IER, IER_RECEIVE);
        m.write(LCR, LCR_DLAB);
        m.lines.take();
        m.write(IER, 0);
        m.read(DATA);
        assert_eq!(m.lines.take(), [(IRQ, false), (IRQ, false)], "nothing is pending");
        m.type_(b"a");
        m.lines.take();
        m.write(IER, 0);
        m.read(DATA);
        assert_eq!(m.lines.take(), [(IRQ, true), (IRQ, true)], "a character is");
    }

    #[test]
    fn a_character_without_its_interrupt_never_gets_one() {
        let mut m = Machine::new();
        m.read(IIR);
        m.type_(b"a");
        m.write(IER, 0x01);
        m.uart.expire();
        assert_eq!(m.interrupts(), 0);
        assert_eq!(m.read(LSR), 0x61);
    }

    #[test]
    fn input_is_held_back_while_the_guest_does_not_read() {
        let mut m = Machine::new();
        let text = vec![b'a'; INPUT_CAPACITY + 50];
        assert_eq!(m.type_(&text), INPUT_CAPACITY);
        assert_eq!(m.uart.input_room(), 1, "one is in the data register");
        assert_eq!(m.type_(&text), 1);
        assert_eq!(m.type_(&text), 0);
        m.read(DATA);
        m.uart.expire();
        assert_eq!(m.uart.input_room(), 1);
    }

    #[test]
    fn a_break_lasts_until_the_terminal_ends_it() {
        let mut m = Machine::new();
        m.uart.push_input([Input::Break(true), Input::Break(false)]);
        assert_eq!((m.read(LSR), m.read(LSR), m.read(DATA), m.read(LSR)), (0x71, 0x71, 0, 0x70));
        m.uart.expire();
        assert_eq!((m.read(LSR), m.read(DATA)), (0x61, 0));
    }

    #[test]
    fn unpausing_brings_a_transmit_interrupt() {
        let mut m = Machine::new();
        m.read(IIR);
        m.uart.pause();
        m.uart.unpause();
        m.clock.advance(20 * MS);
        m.uart.expire();
        assert_eq!((m.interrupts(), m.read(IIR)), (1, 0x02));
    }

    #[test]
    fn wide_accesses_reach_one_register() {
        let mut m = Machine::new();
        assert_eq!(input(&mut m.uart, BASE + LSR, Width::Word), EAX & 0xffff_0000 | 0x60);
        testing::out(&mut m.uart, BASE, Width::Dword, 0x0403_0241);
        assert_eq!(*m.terminal.0.lock().unwrap(), b"A");
        assert_eq!(m.read(IER), 0);
    }

    proptest! {
        #![proptest_config(testing::config())]

        #[test]
        fn no_sequence_of_accesses_and_waits_does_harm(
            steps in testing::steps(&[0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff])
        ) {
            let mut m = Machine::new();
            for step in steps {
                match step {
                    testing::Step::Access(mut access) => m.uart.access(&mut access),
                    testing::Step::Wait(nanos) => m.clock.advance(nanos),
                    testing::Step::Other(n) if n % 8 == 0 => m.uart.pause(),
                    testing::Step::Other(n) if n % 8 == 1 => m.uart.unpause(),
                    testing::Step::Other(n) if n % 8 == 2 => {
                        m.uart.push_input([Input::Break(n & 0x10 != 0)]);
                    }
                    testing::Step::Other(n) => {
                        m.type_(&n.to_le_bytes());
                    }
                }
                m.uart.expire();
                prop_assert!(m.uart.deadline().is_none_or(|at| at > m.clock.monotonic()));
            }
        }
    }
}
