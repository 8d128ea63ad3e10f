//! vmmci, the device through which vmd(8) controls a guest (`vmmci_*` in virtio.c;
//! `vmm_dispatch_parent` in vmm.c).
//!
//! The protocol is in crate [`vmmci_protocol`]. A guest can also observe:
//!
//! - An IN at the exact offset of a register is answered with 32 bits whatever its width; any other
//!   IN is not answered, so EAX keeps its value
//!   (`tests/golden/vmmci/k73.iobar.dump.beforeinit.txt`). An OUT takes all of EAX whatever its
//!   width, cut to the register's size.
//! - A write of 3 clears any pending command, and an acknowledgement counts only if it equals the
//!   command register: after a stray 3 the correct acknowledgement of a stop has no effect
//!   (`M.ack3-during-stop.txt`).
//! - A SYNCRTC overwrites a pending stop. vmd ends a guest that had not yet read the stop, although
//!   it cannot know of it.
//! - Every correct acknowledgement restarts the 120 s timer, and the command stays in its register.
//! - Resetting the device (status 0) resets the status register only.
//! - No timer of the device stops while the VM is paused.

use std::{fmt, sync::Arc};

pub use ::vmmci_protocol::Command;
use ::vmmci_protocol::{Features, register};
use vmd_release::Capabilities;

use crate::{
    bus::{Direction, PortAccess},
    clock::{Clock, HostTicks, NANOS_PER_SEC, Timed},
    irqchip::line::IrqLine,
    pci::{Identity, OPENBSD, PciFunction},
};

/// Time for the guest to acknowledge a stop, and its remaining time after it has announced its
/// power-off, in nanoseconds (`VMMCI_TIMEOUT_SHORT`).
pub const ACK_TIMEOUT: u64 = 3 * NANOS_PER_SEC;
/// Time for the guest to shut down after it has acknowledged a stop, in nanoseconds
/// (`VMMCI_TIMEOUT_LONG`; the same from 7.2 on).
pub const FINISH_TIMEOUT: u64 = 120 * NANOS_PER_SEC;

/// The reason for which vmd ends the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A stop was requested and the guest has no driver ready.
    NoDriver,
    /// The guest did not acknowledge a command in time.
    NotAcknowledged,
    /// The guest acknowledged but did not shut down in time.
    NotFinished,
    /// The guest announced its power-off.
    GuestPowersOff,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoDriver => "stopped at once: the guest has no vmmci driver ready",
            Self::NotAcknowledged => "killed: the guest did not acknowledge the command within 3 s",
            Self::NotFinished => {
                "killed: the guest acknowledged the command but did not go down within 120 s"
            }
            Self::GuestPowersOff => "stopped: the guest said 3 s ago that it powers off",
        })
    }
}

/// vmd ends the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The reason.
    pub reason: Reason,
    /// Whether vmd's VM process crashes at this point: on 7.8 the timer's handler gets a null
    /// pointer for the device (virtio.c, `evtimer_set(&dev->vmmci.timeout, vmmci_timeout, NULL)`).
    /// The guest sees no difference.
    pub host_crashes: bool,
}

/// Called when vmd ends the VM.
pub type OnEnd = Box<dyn FnMut(End) + Send>;

/// Result of a command from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The command is in the command register and the line is raised.
    Sent,
    /// The same command is already pending; nothing changes.
    Pending,
    /// The guest has not accepted this kind of command; nothing is sent.
    NotNegotiated,
    /// The guest has no driver ready; nothing is sent.
    NoDriver,
}

/// A refused `vmctl stop`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StopError {
    /// A stop is already in progress.
    #[error("Operation already in progress")]
    InProgress,
}

/// The vmmci device.
pub struct Vmmci {
    capabilities: Capabilities,
    status: u8,
    isr: u8,
    guest_features: u32,
    queue_pfn: u32,
    queue_select: u16,
    queue_notify: u16,
    command: Command,
    /// A value for driver tests that no vmd sends: see [`Vmmci::show`].
    shown: Option<u32>,
    /// Seconds and microseconds latched by the last read of [`register::SECONDS`].
    latched_time: (u64, u32),
    /// The time at which vmd ends the VM, and the reason.
    timer: Option<(u64, Reason)>,
    stopping: bool,
    clock: Arc<dyn Clock>,
    ticks: HostTicks,
    line: IrqLine,
    on_end: OnEnd,
}

impl Vmmci {
    /// A device at power-on.
    pub fn new(
        capabilities: Capabilities,
        clock: Arc<dyn Clock>,
        ticks: HostTicks,
        line: IrqLine,
        on_end: OnEnd,
    ) -> Self {
        Self {
            capabilities,
            status: 0,
            isr: 0,
            guest_features: 0,
            queue_pfn: 0,
            queue_select: 0,
            queue_notify: 0,
            command: Command::None,
            shown: None,
            latched_time: (0, 0),
            timer: None,
            stopping: false,
            clock,
            ticks,
            line,
            on_end,
        }
    }

    /// `vmctl stop`: asks the guest to *reboot* and remembers that it must not start again. Without
    /// a ready driver the VM ends immediately.
    pub fn stop(&mut self) -> Result<Delivery, StopError> {
        if self.stopping {
            return Err(StopError::InProgress);
        }
        self.stopping = true;
        Ok(self.reboot())
    }

    /// Asks the guest to reboot. Without a ready driver the VM ends immediately.
    pub fn reboot(&mut self) -> Delivery {
        self.go_down(Command::Reboot)
    }

    /// Asks the guest to power off. vmd implements the command but never sends it: see
    /// [`Vmmci::stop`]. Without a ready driver the VM ends immediately.
    pub fn shutdown(&mut self) -> Delivery {
        self.go_down(Command::Shutdown)
    }

    /// Asks the guest to set its clock; the RTC does so when the host's clock has jumped.
    pub fn sync_rtc(&mut self) -> Delivery {
        if let Some(refused) = self.refuses(Command::SyncRtc) {
            return refused;
        }
        if !Features(self.guest_features).contains(Features::SYNC_RTC) {
            return Delivery::NotNegotiated;
        }
        self.send(Command::SyncRtc)
    }

    /// Test hook for drivers: shows `value` in the command register and raises the line `times`
    /// times, which no vmd does. It starts no timer and does not check for a driver. A value that
    /// is not a command stays until the next command, whatever the guest writes; with all ones
    /// every register reads as ones, as if the device were gone.
    pub fn show(&mut self, value: u32, interrupts: u8) {
        self.shown = None;
        match Command::from_u32(value) {
            Some(command) => self.command = command,
            None => self.shown = Some(value),
        }
        for _ in 0..interrupts {
            self.isr = register::ISR_CONFIG_CHANGE as u8;
            self.line.assert();
        }
    }

    /// Whether a stop is in progress. If so, a guest that resets itself is not started again.
    pub const fn stopping(&self) -> bool {
        self.stopping
    }

    /// Marks a stop as in progress, as `vmctl stop -f` does before it ends the VM.
    pub const fn force_stop(&mut self) {
        self.stopping = true;
    }

    const fn driver_ready(&self) -> bool {
        self.status as u32 & register::STATUS_DRIVER_OK != 0
    }

    fn refuses(&self, command: Command) -> Option<Delivery> {
        if !self.driver_ready() {
            Some(Delivery::NoDriver)
        } else if self.command == command {
            Some(Delivery::Pending)
        } else {
            None
        }
    }

    fn go_down(&mut self, command: Command) -> Delivery {
        match self.refuses(command) {
            Some(Delivery::NoDriver) => {
                (self.on_end)(End { reason: Reason::NoDriver, host_crashes: false });
                Delivery::NoDriver
            }
            Some(refused) => refused,
            None => {
                self.start_timer(ACK_TIMEOUT, Reason::NotAcknowledged);
                self.send(command)
            }
        }
    }

    fn send(&mut self, command: Command) -> Delivery {
        self.command = command;
        self.isr = register::ISR_CONFIG_CHANGE as u8;
        self.line.assert();
        Delivery::Sent
    }

    fn start_timer(&mut self, nanos: u64, reason: Reason) {
        self.timer = Some((self.ticks.fires_at(self.clock.monotonic(), nanos), reason));
    }

    /// Handles a write to the command register.
    fn answer(&mut self, value: u32) {
        match Command::from_u32(value) {
            Some(Command::Shutdown) if self.command == Command::None => {
                self.start_timer(ACK_TIMEOUT, Reason::GuestPowersOff);
            }
            Some(command @ (Command::Shutdown | Command::Reboot)) if command == self.command => {
                self.start_timer(FINISH_TIMEOUT, Reason::NotFinished);
            }
            Some(Command::SyncRtc) => self.command = Command::None,
            _ => {}
        }
    }

    fn write(&mut self, offset: u16, value: u32) {
        match offset {
            register::GUEST_FEATURES => self.guest_features = value,
            register::QUEUE_PFN => self.queue_pfn = value,
            register::QUEUE_SELECT => self.queue_select = value as u16,
            register::QUEUE_NOTIFY => self.queue_notify = value as u16,
            register::DEVICE_STATUS => self.status = value as u8,
            register::COMMAND => self.answer(value),
            _ => {}
        }
    }

    fn read(&mut self, offset: u16) -> Option<u32> {
        if self.shown == Some(u32::MAX) {
            return Some(u32::MAX);
        }
        Some(match offset {
            register::DEVICE_FEATURES => Features::ALL.0,
            register::GUEST_FEATURES => self.guest_features,
            register::QUEUE_PFN => self.queue_pfn,
            register::QUEUE_SELECT => self.queue_select.into(),
            register::QUEUE_NOTIFY => self.queue_notify.into(),
            register::DEVICE_STATUS => self.status.into(),
            register::ISR_STATUS => {
                let isr = std::mem::take(&mut self.isr);
                self.line.deassert();
                isr.into()
            }
            register::COMMAND => self.shown.unwrap_or(self.command as u32),
            register::SECONDS => {
                let now = self.clock.realtime();
                self.latched_time = (now / NANOS_PER_SEC, (now % NANOS_PER_SEC / 1000) as u32);
                self.latched_time.0 as u32
            }
            register::MICROS => self.latched_time.1,
            // The device has no queues, and the upper halves of 64-bit values are shifted out of
            // the register.
            register::QUEUE_SIZE | register::SECONDS_HIGH | register::MICROS_HIGH => 0,
            _ => return None,
        })
    }
}

impl PciFunction for Vmmci {
    fn identity(&self) -> Identity {
        Identity {
            vendor: OPENBSD,
            device: ::vmmci_protocol::DEVICE_ID,
            revision: 0,
            class: 0x07,
            subclass: 0x80,
            subsystem_vendor: OPENBSD,
            subsystem: ::vmmci_protocol::SUBSYSTEM_ID,
        }
    }

    fn bar_access(&mut self, offset: u16, access: &mut PortAccess) {
        match access.direction {
            Direction::Out => self.write(offset, access.eax),
            Direction::In => {
                if let Some(value) = self.read(offset) {
                    access.answer_dword(value);
                }
            }
        }
    }

    fn reset(&mut self) {
        self.status = 0;
        self.isr = 0;
        self.guest_features = 0;
        self.queue_pfn = 0;
        self.queue_select = 0;
        self.queue_notify = 0;
        self.command = Command::None;
        self.shown = None;
        self.latched_time = (0, 0);
        self.timer = None;
        self.stopping = false;
    }
}

impl Timed for Vmmci {
    fn deadline(&self) -> Option<u64> {
        self.timer.map(|(at, _)| at)
    }

    fn expire(&mut self) {
        if let Some((at, reason)) = self.timer
            && at <= self.clock.monotonic()
        {
            self.timer = None;
            (self.on_end)(End { reason, host_crashes: self.capabilities.vmmci_timeout_crashes });
        }
    }
}

impl fmt::Debug for Vmmci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vmmci")
            .field("status", &self.status)
            .field("isr", &self.isr)
            .field("guest_features", &self.guest_features)
            .field("command", &self.command)
            .field("timer", &self.timer)
            .field("stopping", &self.stopping)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::{
            Mutex,
            atomic::{AtomicBool, Ordering},
        },
    };

    use ::vmmci_protocol::{Action, Driver, HostTime, Registers};
    use proptest::prelude::*;
    use vmd_release::Generation;

    use super::*;
    use crate::{
        bus::Width,
        clock::ManualClock,
        testing::{self, EAX, LineRecorder},
    };

    const IRQ: u8 = 6;
    const SEC: u64 = NANOS_PER_SEC;

    /// The device with its guest and its host, as in the recordings `tests/golden/vmmci`.
    struct Machine {
        device: Mutex<Vmmci>,
        clock: Arc<ManualClock>,
        lines: Arc<LineRecorder>,
        end: Arc<Mutex<Option<End>>>,
    }

    impl Machine {
        fn of(generation: Generation) -> Self {
            // Half a tick after a full second of the host.
            let clock = Arc::new(ManualClock::new(5_000_000, 1_795_348_415 * SEC + 505_915_777));
            let (line, lines) = LineRecorder::one(IRQ);
            let end = Arc::new(Mutex::new(None));
            let ended = Arc::clone(&end);
            let device = Vmmci::new(
                generation.capabilities(),
                Arc::clone(&clock) as _,
                HostTicks::default(),
                line,
                Box::new(move |end| *ended.lock().unwrap() = Some(end)),
            );
            Self { device: Mutex::new(device), clock, lines, end }
        }

        fn new() -> Self {
            Self::of(Generation::V7_8)
        }

        /// A guest after the handshake with these features (`vmmci_mon init`).
        fn with_driver(features: u32) -> Self {
            let m = Self::new();
            for status in [0, 1, 3] {
                m.write(register::DEVICE_STATUS, status);
            }
            m.write(register::GUEST_FEATURES, features);
            m.write(register::DEVICE_STATUS, 7);
            m
        }

        /// What `vmmci_mon poll` prints: status, ISR, command.
        fn poll(&self) -> (u32, u32, u32) {
            (
                self.read(register::DEVICE_STATUS),
                self.read(register::ISR_STATUS),
                self.read(register::COMMAND),
            )
        }

        /// The same without reading the ISR (`peek`).
        fn command(&self) -> u32 {
            self.read(register::COMMAND)
        }

        /// `vmmci_mon ack`.
        fn ack(&self, value: u32) {
            self.write(register::COMMAND, value);
        }

        fn host<T>(&self, f: impl FnOnce(&mut Vmmci) -> T) -> T {
            f(&mut self.device.lock().unwrap())
        }

        /// Advances the time; returns when the VM ended, in nanoseconds from now.
        fn run(&self, nanos: u64) -> Option<(u64, Reason)> {
            let start = self.clock.monotonic();
            let deadline = self.host(|device| device.deadline());
            if let Some(at) = deadline.filter(|at| *at <= start + nanos) {
                self.clock.advance(at - start);
                self.host(Timed::expire);
                return self.end.lock().unwrap().map(|end| (at - start, end.reason));
            }
            self.clock.advance(nanos);
            None
        }

        fn irqs(&self) -> Vec<(u8, bool)> {
            self.lines.take()
        }
    }

    impl Registers for Machine {
        fn read(&self, offset: u16) -> u32 {
            let mut access = PortAccess::input(0xe000 + offset, Width::Dword, EAX);
            self.host(|device| device.bar_access(offset, &mut access));
            access.eax
        }

        fn write(&self, offset: u16, value: u32) {
            let mut access = PortAccess::output(0xe000 + offset, Width::Dword, value);
            self.host(|device| device.bar_access(offset, &mut access));
        }
    }

    /// A VM whose host may act before each access of the guest.
    struct Interleaved {
        machine: Machine,
        schedule: Mutex<VecDeque<Option<u8>>>,
        /// Whether a stop was lost: overwritten by a SYNCRTC, or cleared by the acknowledgement of
        /// an earlier SYNCRTC.
        lost: AtomicBool,
    }

    impl Interleaved {
        fn host_may_act(&self) {
            // No stop is sent while the guest only probes the device.
            if self.machine.read(register::DEVICE_STATUS) & register::STATUS_DRIVER_OK == 0 {
                return;
            }
            if let Some(Some(command)) = self.schedule.lock().unwrap().pop_front() {
                let unanswered = self
                    .machine
                    .host(|device| device.timer.is_some_and(|(_, reason)| reason == Reason::NotAcknowledged));
                let sent = self.machine.host(|device| match command {
                    0 => device.stop().ok(),
                    1 => Some(device.reboot()),
                    2 => Some(device.shutdown()),
                    _ => Some(device.sync_rtc()),
                });
                if unanswered && command == 3 && sent == Some(Delivery::Sent) {
                    self.lost.store(true, Ordering::SeqCst);
                }
            }
        }
    }

    impl Registers for Interleaved {
        fn read(&self, offset: u16) -> u32 {
            self.host_may_act();
            self.machine.read(offset)
        }

        fn write(&self, offset: u16, value: u32) {
            self.host_may_act();
            let pending = self.machine.command();
            if (offset, value) == (register::COMMAND, 3) && pending != 3 {
                self.lost.store(true, Ordering::SeqCst);
            }
            self.machine.write(offset, value);
        }
    }

    /// 3 s on a 100 Hz host, from the middle of a tick.
    const THREE_SECONDS: u64 = 3 * SEC + 5_000_000;

    #[test]
    fn registers_answer_by_exact_offset_with_32_bits_as_recorded() {
        let m = Machine::new();
        let golden = include_str!("../../../../tests/golden/vmmci/k73.iobar.dump.beforeinit.txt");
        for line in golden.lines() {
            let (offset, rest) = line[1..].split_once(':').unwrap();
            let offset = u16::from_str_radix(offset, 16).unwrap();
            let values =
                rest.split("eax=").skip(1).map(|value| u32::from_str_radix(&value[..8], 16).unwrap());
            for (width, mut value) in [Width::Byte, Width::Word, Width::Dword].into_iter().zip(values) {
                // The recording has another time.
                match offset {
                    register::SECONDS => value = 1_795_348_415,
                    register::MICROS => value = 505_915,
                    _ => {}
                }
                let mut access = PortAccess::input(0xe000 + offset, width, EAX);
                m.host(|device| device.bar_access(offset, &mut access));
                assert_eq!(access.eax, value, "offset {offset:#x} {width:?}");
            }
        }
        assert_eq!(golden.lines().count(), 0x40);
    }

    #[test]
    fn a_narrow_write_takes_all_of_eax() {
        let m = Machine::new();
        let mut access = PortAccess::output(0xe004, Width::Byte, 0x1234_5607);
        m.host(|device| device.bar_access(register::GUEST_FEATURES, &mut access));
        assert_eq!(m.read(register::GUEST_FEATURES), 0x1234_5607);
    }

    #[test]
    fn the_time_is_latched_by_its_seconds() {
        let m = Machine::new();
        assert_eq!(m.read(register::MICROS), 0);
        assert_eq!(m.read(register::SECONDS), 1_795_348_415);
        m.clock.advance(SEC);
        assert_eq!(m.read(register::MICROS), 505_915);
        assert_eq!((m.read(register::SECONDS_HIGH), m.read(register::MICROS_HIGH)), (0, 0));
    }

    #[test]
    fn a_stop_without_driver_ends_the_vm_at_once() {
        let m = Machine::new();
        assert_eq!(m.host(Vmmci::stop), Ok(Delivery::NoDriver));
        let end = m.end.lock().unwrap().unwrap();
        assert_eq!(end, End { reason: Reason::NoDriver, host_crashes: false });
        assert!(m.irqs().is_empty());
    }

    #[test]
    fn b_stop_never_acknowledged() {
        let m = Machine::with_driver(7);
        assert_eq!(m.poll(), (7, 0, 0));
        m.irqs();
        assert_eq!(m.host(Vmmci::stop), Ok(Delivery::Sent));
        assert_eq!(m.irqs(), [(IRQ, true)]);
        assert_eq!(m.poll(), (7, 2, 2));
        assert_eq!(m.irqs(), [(IRQ, false)]);
        assert_eq!(m.poll(), (7, 0, 2));
        assert_eq!(m.run(7 * SEC), Some((THREE_SECONDS, Reason::NotAcknowledged)));
    }

    #[test]
    fn c_stop_acknowledged_and_reset() {
        let m = Machine::with_driver(7);
        m.host(Vmmci::stop).unwrap();
        m.poll();
        m.ack(2);
        assert_eq!(m.poll(), (7, 0, 2), "the command stays");
        assert_eq!(m.run(60 * SEC), None);
        assert!(m.host(|device| device.stopping()), "the guest's reset ends the VM");
    }

    #[test]
    fn d_forced_stop_of_a_vm_that_is_being_stopped() {
        let m = Machine::with_driver(7);
        m.host(Vmmci::force_stop);
        assert_eq!(m.poll(), (7, 0, 0), "the guest is not asked");
        assert_eq!(m.host(Vmmci::stop), Err(StopError::InProgress));
    }

    #[test]
    fn e_one_syncrtc_until_it_is_acknowledged() {
        let m = Machine::with_driver(7);
        assert_eq!(m.host(Vmmci::sync_rtc), Delivery::Sent);
        assert_eq!(m.poll(), (7, 2, 3));
        assert_eq!(m.host(Vmmci::sync_rtc), Delivery::Pending);
        assert_eq!(m.poll(), (7, 0, 3));
        m.ack(3);
        assert_eq!(m.poll(), (7, 0, 0));
        assert_eq!(m.host(Vmmci::sync_rtc), Delivery::Sent);
        assert_eq!(m.poll(), (7, 2, 3));
        assert_eq!(m.run(500 * SEC), None, "no timer");
    }

    #[test]
    fn f_guest_announces_its_power_off() {
        let m = Machine::with_driver(7);
        m.ack(1);
        assert_eq!(m.poll(), (7, 0, 0));
        assert_eq!(m.run(9 * SEC), Some((THREE_SECONDS, Reason::GuestPowersOff)));
    }

    #[test]
    fn g_other_unsolicited_writes_do_nothing() {
        let m = Machine::with_driver(7);
        for value in [2, 0, 5, u32::MAX] {
            m.ack(value);
            assert_eq!(m.poll(), (7, 0, 0));
        }
        assert_eq!(m.run(500 * SEC), None);
    }

    #[test]
    fn h_syncrtc_is_not_sent_to_a_guest_that_did_not_accept_it() {
        let m = Machine::with_driver(3);
        assert_eq!(m.host(Vmmci::sync_rtc), Delivery::NotNegotiated);
        assert_eq!(m.poll(), (7, 0, 0));
        assert_eq!(Machine::new().host(Vmmci::sync_rtc), Delivery::NoDriver);
    }

    #[test]
    fn i_a_pending_syncrtc_does_not_block_a_stop() {
        let m = Machine::with_driver(7);
        m.host(Vmmci::sync_rtc);
        assert_eq!(m.poll(), (7, 2, 3));
        assert_eq!(m.host(Vmmci::stop), Ok(Delivery::Sent));
        assert_eq!(m.poll(), (7, 2, 2));
        assert_eq!(m.run(8 * SEC), Some((THREE_SECONDS, Reason::NotAcknowledged)));
    }

    #[test]
    fn a_syncrtc_overwrites_a_stop_that_the_guest_has_not_read() {
        let m = Machine::with_driver(7);
        m.host(Vmmci::stop).unwrap();
        assert_eq!(m.host(Vmmci::sync_rtc), Delivery::Sent);
        assert_eq!(m.poll(), (7, 2, 3));
        m.ack(3);
        assert_eq!(m.command(), 0);
        assert_eq!(m.run(8 * SEC), Some((THREE_SECONDS, Reason::NotAcknowledged)));
    }

    #[test]
    fn l_acknowledged_without_a_shutdown() {
        let m = Machine::with_driver(7);
        m.host(Vmmci::stop).unwrap();
        assert_eq!(m.run(SEC), None);
        m.ack(2);
        assert_eq!(m.run(130 * SEC), Some((120 * SEC + 5_000_000, Reason::NotFinished)));
        assert!(m.end.lock().unwrap().unwrap().host_crashes);
    }

    #[test]
    fn every_correct_acknowledgement_restarts_the_120_s_timer() {
        let m = Machine::with_driver(7);
        m.host(Vmmci::stop).unwrap();
        for _ in 0..10 {
            m.ack(2);
            assert_eq!(m.run(100 * SEC), None);
        }
    }

    #[test]
    fn m_a_3_clears_the_stop_and_the_acknowledgement_has_no_effect() {
        let m = Machine::with_driver(7);
        m.host(Vmmci::stop).unwrap();
        m.ack(3);
        assert_eq!(m.command(), 0);
        m.ack(2);
        assert_eq!(m.command(), 0);
        assert_eq!(m.run(12 * SEC), Some((THREE_SECONDS, Reason::NotAcknowledged)));
    }

    #[test]
    fn n_a_wrong_acknowledgement_is_ignored_and_a_second_stop_is_refused() {
        let m = Machine::with_driver(7);
        m.host(Vmmci::stop).unwrap();
        assert_eq!(m.run(SEC), None);
        let error = m.host(Vmmci::stop).unwrap_err();
        assert_eq!(error.to_string(), "Operation already in progress");
        m.ack(1);
        assert_eq!(m.command(), 2);
        assert_eq!(m.run(12 * SEC), Some((THREE_SECONDS - SEC, Reason::NotAcknowledged)));
    }

    #[test]
    fn q_each_command_raises_the_line_once_though_the_isr_is_never_read() {
        let m = Machine::with_driver(7);
        m.irqs();
        m.host(Vmmci::sync_rtc);
        m.host(Vmmci::stop).unwrap();
        assert_eq!(m.command(), 2);
        assert_eq!(m.irqs(), [(IRQ, true), (IRQ, true)]);
    }

    #[test]
    fn a_reboot_without_a_stop_starts_again() {
        let m = Machine::with_driver(7);
        assert_eq!(m.host(Vmmci::reboot), Delivery::Sent);
        assert_eq!(m.host(Vmmci::reboot), Delivery::Pending);
        assert!(!m.host(|device| device.stopping()));
        m.host(PciFunction::reset);
        assert_eq!(m.poll(), (0, 0, 0));
        assert_eq!(m.run(500 * SEC), None);
    }

    #[test]
    fn show_starts_no_timer_and_raises_the_line_the_given_number_of_times() {
        let m = Machine::with_driver(7);
        m.irqs();
        m.host(|device| device.show(2, 0));
        assert_eq!((m.poll(), m.run(10 * SEC)), ((7, 0, 2), None));
        m.irqs();
        m.host(|device| device.show(0x1234, 2));
        assert_eq!(m.irqs(), [(IRQ, true), (IRQ, true)]);
        m.ack(3);
        assert_eq!(m.poll(), (7, 2, 0x1234));
        m.host(|device| device.show(u32::MAX, 1));
        assert_eq!(m.poll(), (u32::MAX, u32::MAX, u32::MAX));
        m.host(|device| device.show(0, 0));
        assert_eq!(m.poll(), (7, 2, 0));
    }

    #[test]
    fn only_7_8_crashes() {
        for generation in Generation::ALL {
            let m = Machine::of(generation);
            m.ack(1);
            m.run(5 * SEC);
            assert_eq!(m.end.lock().unwrap().unwrap().host_crashes, generation == Generation::V7_8);
        }
    }

    #[test]
    fn a_well_behaved_driver_works() {
        let m = Machine::new();
        let mut driver = Driver::probe(&m).unwrap();
        assert!(!driver.interrupt());
        m.host(Vmmci::sync_rtc);
        assert!(driver.interrupt());
        assert_eq!(driver.poll(true), Some(Action::SetClock));
        assert_eq!(driver.host_time(), Some(HostTime { seconds: 1_795_348_415, micros: 505_915 }));
        driver.clock_is_set();
        m.host(Vmmci::stop).unwrap();
        assert!(driver.interrupt());
        assert_eq!(driver.poll(true), Some(Action::Reboot));
        assert_eq!(m.run(100 * SEC), None);
        driver.powering_off();
        assert_eq!(m.run(100 * SEC).map(|(_, reason)| reason), Some(Reason::NotFinished));
    }

    proptest! {
        #![proptest_config(testing::config())]

        #[test]
        fn no_sequence_of_accesses_and_commands_does_harm(
            steps in testing::steps(&[0, 4, 8, 12, 14, 16, 18, 19, 20, 20, 20, 21, 24, 28, 32, 36, 0xfff])
        ) {
            let m = Machine::new();
            for step in steps {
                match step {
                    testing::Step::Access(mut access) => {
                        let offset = access.port;
                        m.host(|device| device.bar_access(offset, &mut access));
                    }
                    testing::Step::Wait(nanos) => {
                        m.run(nanos);
                    }
                    testing::Step::Other(n) => m.host(|device| match n % 5 {
                        0 => drop(device.stop()),
                        1 => drop(device.reboot()),
                        2 => drop(device.shutdown()),
                        3 => drop(device.sync_rtc()),
                        _ => device.reset(),
                    }),
                }
                prop_assert!(m.host(|device| device.deadline()).is_none_or(|at| at > m.clock.monotonic()));
            }
        }

        /// A guest that polls for commands often enough is ended only if it shuts down too slowly,
        /// whatever commands the host sends, between any two accesses of the driver, and without a
        /// single interrupt. vmd loses a stop in two cases: a SYNCRTC overwrites it, or it arrives
        /// between the driver's last read of a SYNCRTC and its acknowledgement.
        #[test]
        fn a_proper_driver_is_never_killed_for_not_answering(
            schedule in prop::collection::vec(prop::option::weighted(0.2, 0u8..4), 0..300)
        ) {
            let m = Interleaved { machine: Machine::new(), schedule: VecDeque::from(schedule).into(), lost: false.into() };
            let mut driver = Driver::probe(&m).unwrap();
            while !m.schedule.lock().unwrap().is_empty() {
                let changed = driver.interrupt();
                while let Some(action) = driver.poll(changed) {
                    if action == Action::SetClock {
                        prop_assert!(driver.host_time().is_some());
                        driver.clock_is_set();
                    }
                }
                let end = m.machine.run(SEC);
                if m.lost.load(Ordering::SeqCst) {
                    break;
                }
                let reason = end.map(|(_, reason)| reason);
                prop_assert!(reason.is_none_or(|reason| reason == Reason::NotFinished), "{:?}", reason);
            }
        }
    }
}
