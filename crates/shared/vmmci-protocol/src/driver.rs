// SPDX-License-Identifier: GPL-2.0-only OR ISC

//! The guest's side.

use super::{
    clock::HostTime,
    register::{self, Registers},
    Command, Features,
};

/// A device that is none, or not one that this driver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// All registers read as ones: nothing decodes the BAR.
    Absent,
    /// The device does not offer acknowledgments, so that nothing could be answered. Its feature
    /// bits are given.
    NoAck(u32),
    /// The device did not take the features or the status that were written.
    Refused,
}

impl core::fmt::Display for ProbeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Absent => f.write_str("the device does not answer"),
            Self::NoAck(features) => {
                write!(
                    f,
                    "the device offers no acknowledgment (features {features:#x})"
                )
            }
            Self::Refused => f.write_str("the device did not take features and status"),
        }
    }
}

impl core::error::Error for ProbeError {}

/// What the guest has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Go down in order and power off. It is acknowledged already; the host waits 120 s.
    PowerOff,
    /// Go down in order and reset. It is acknowledged already; the host waits 120 s. Whether the VM
    /// comes back is up to the host: `vmctl stop` sends this too.
    Reboot,
    /// Set the clock from [`Driver::host_time`], then call [`Driver::clock_is_set`].
    SetClock,
}

/// A device that is up and running.
///
/// The machine behind it is free to misbehave: garbage and all ones are told apart from commands,
/// repeated or lost interrupts change nothing, and a command that stays in its register is acted on
/// once.
#[derive(Debug)]
pub struct Driver<R: Registers> {
    registers: R,
    features: Features,
    /// The command that was acted on and has not gone away since.
    seen: Command,
    /// What was in the command register last, if it was no command.
    unknown: Option<u32>,
}

/// To be called when the line was raised: clears the cause and lowers the line. Tells whether it
/// was this device's doing, after which [`Driver::poll`] is due.
///
/// For interrupt handlers, which cannot wait for the [`Driver`].
pub fn take_interrupt<R: Registers + ?Sized>(registers: &R) -> bool {
    let isr = registers.read(register::ISR_STATUS);
    isr & register::ISR_CONFIG_CHANGE != 0 && isr & !register::ISR_ALL == 0
}

/// Tells the host that the guest goes down on its own: vmd removes the VM 3 s later. To be called
/// last, just before the CPU is halted.
///
/// vmd listens only while no command is pending, so that a clock that is still to be set is given
/// up. False if the guest was told to go down by the host, which then waits for a reset, or 120 s.
///
/// For code that cannot wait for the [`Driver`].
pub fn power_off<R: Registers + ?Sized>(registers: &R) -> bool {
    match Command::from_u32(registers.read(register::COMMAND)) {
        Some(Command::Shutdown | Command::Reboot) => return false,
        Some(Command::SyncRtc) => registers.write(register::COMMAND, Command::SyncRtc as u32),
        Some(Command::None) | None => {}
    }
    registers.write(register::COMMAND, Command::Shutdown as u32);
    true
}

/// Resets the device: no more commands come.
pub fn reset<R: Registers + ?Sized>(registers: &R) {
    registers.write(register::DEVICE_STATUS, 0);
}

impl<R: Registers> Driver<R> {
    /// Resets the device, agrees on features, and tells it that the driver is ready.
    pub fn probe(registers: R) -> Result<Self, ProbeError> {
        let offered = registers.read(register::DEVICE_FEATURES);
        if offered == u32::MAX {
            return Err(ProbeError::Absent);
        }
        let features = Features(offered).intersection(Features::ALL);
        if !features.contains(Features::ACK) {
            return Err(ProbeError::NoAck(offered));
        }
        let status = [
            register::STATUS_ACKNOWLEDGE,
            register::STATUS_DRIVER,
            register::STATUS_DRIVER_OK,
        ];
        reset(&registers);
        registers.write(register::DEVICE_STATUS, status[0]);
        registers.write(register::DEVICE_STATUS, status[0] | status[1]);
        registers.write(register::GUEST_FEATURES, features.0);
        let ready = status[0] | status[1] | status[2];
        registers.write(register::DEVICE_STATUS, ready);
        if registers.read(register::GUEST_FEATURES) != features.0
            || registers.read(register::DEVICE_STATUS) != ready
        {
            registers.write(register::DEVICE_STATUS, register::STATUS_FAILED);
            return Err(ProbeError::Refused);
        }
        Ok(Self {
            registers,
            features,
            seen: Command::None,
            unknown: None,
        })
    }

    /// The features that both sides have.
    pub const fn features(&self) -> Features {
        self.features
    }

    /// [`take_interrupt`] of this device.
    pub fn interrupt(&self) -> bool {
        take_interrupt(&self.registers)
    }

    /// Looks for a command, acknowledges it, and gives what is to be done. Call it after an
    /// interrupt, and again until it gives `None`; call it every second or so where there is none
    /// to be had.
    ///
    /// `changed` tells that [`Driver::interrupt`] has said so since the last call. A command that
    /// is still there is then acknowledged once more, though not acted on: it may have been another
    /// one for a moment, and be due again. Without a change it is left alone, as each
    /// acknowledgment gives the guest another 120 s.
    pub fn poll(&mut self, changed: bool) -> Option<Action> {
        let value = self.registers.read(register::COMMAND);
        let command = Command::from_u32(value);
        self.unknown = if command.is_none() { Some(value) } else { None };
        let command = command?;
        let action = match command {
            Command::None => None,
            Command::Shutdown => Some(Action::PowerOff),
            Command::Reboot => Some(Action::Reboot),
            Command::SyncRtc => Some(Action::SetClock),
        };
        let new = command != self.seen;
        self.seen = command;
        if (new || changed) && matches!(command, Command::Shutdown | Command::Reboot) {
            self.acknowledge(command);
        }
        action.filter(|_| new)
    }

    /// What the last [`Driver::poll`] found in the command register, if it was no command: all ones
    /// from a device that is gone, anything from a broken one. It was not answered.
    pub const fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The host's time, if the device has it and answers.
    pub fn host_time(&self) -> Option<HostTime> {
        self.host_time_between(|| ()).map(|((), time, ())| time)
    }

    /// The host's time, with what `now` says just before and just after the access that latches it:
    /// the guest's clock read there tells how far apart the two are, and how sure that is.
    pub fn host_time_between<T>(&self, now: impl FnMut() -> T) -> Option<(T, HostTime, T)> {
        if !self.features.contains(Features::TIME_SYNC) {
            return None;
        }
        HostTime::read(&self.registers, now)
    }

    /// Acknowledges [`Action::SetClock`]: the host may send the next one.
    ///
    /// The command is looked at once more before it is answered: this very answer clears whatever
    /// is pending, and a shutdown that came meanwhile would be lost and the VM killed. If there is
    /// one, nothing is written, and [`Driver::poll`] gives it.
    pub fn clock_is_set(&mut self) {
        if self.registers.read(register::COMMAND) == Command::SyncRtc as u32 {
            self.acknowledge(Command::SyncRtc);
            // The device clears the register by itself.
            self.seen = Command::None;
        }
    }

    /// [`power_off`] of this device.
    pub fn powering_off(&self) -> bool {
        power_off(&self.registers)
    }

    /// Resets the device: no more commands come.
    pub fn remove(self) -> R {
        reset(&self.registers);
        self.registers
    }

    fn acknowledge(&self, command: Command) {
        self.registers.write(register::COMMAND, command as u32);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cell::{Cell, RefCell};
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Registers that are what the test says, and remember what was read, and written to COMMAND.
    struct Fake {
        features: u32,
        guest_features: Cell<u32>,
        status: Cell<u32>,
        isr: Cell<u32>,
        command: Cell<u32>,
        answers: RefCell<Vec<u32>>,
        reads: RefCell<Vec<u16>>,
    }

    impl Fake {
        fn new(features: u32) -> Self {
            Self {
                features,
                guest_features: Cell::new(0),
                status: Cell::new(0),
                isr: Cell::new(0),
                command: Cell::new(0),
                answers: RefCell::default(),
                reads: RefCell::default(),
            }
        }
    }

    impl Registers for Fake {
        fn read(&self, offset: u16) -> u32 {
            self.reads.borrow_mut().push(offset);
            match offset {
                register::DEVICE_FEATURES => self.features,
                register::GUEST_FEATURES => self.guest_features.get(),
                register::DEVICE_STATUS => self.status.get(),
                register::ISR_STATUS => self.isr.take(),
                register::COMMAND => self.command.get(),
                register::SECONDS => 1_795_348_512,
                register::MICROS => 505_915,
                _ => 0,
            }
        }

        fn write(&self, offset: u16, value: u32) {
            match offset {
                register::GUEST_FEATURES => self.guest_features.set(value),
                register::DEVICE_STATUS => self.status.set(value),
                register::COMMAND => {
                    self.answers.borrow_mut().push(value);
                    if value == 3 {
                        self.command.set(0);
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn the_handshake_leaves_the_device_ready() {
        let fake = Fake::new(0xffff_0007);
        let driver = Driver::probe(&fake).unwrap();
        assert_eq!(driver.features(), Features::ALL);
        assert_eq!((fake.guest_features.get(), fake.status.get()), (7, 7));
        driver.remove();
        assert_eq!(fake.status.get(), 0);
    }

    /// Takes nothing that is written to it.
    struct Deaf;

    impl Registers for Deaf {
        fn read(&self, _: u16) -> u32 {
            0x707
        }

        fn write(&self, _: u16, _: u32) {}
    }

    #[test]
    fn what_is_no_vmmci_is_refused() {
        assert_eq!(
            Driver::probe(&Fake::new(u32::MAX)).err(),
            Some(ProbeError::Absent)
        );
        assert_eq!(
            Driver::probe(&Fake::new(1)).err(),
            Some(ProbeError::NoAck(1))
        );
        assert_eq!(Driver::probe(Deaf).err(), Some(ProbeError::Refused));
    }

    #[test]
    fn a_stop_is_acknowledged_at_once_with_what_was_read_and_acted_on_once() {
        let fake = Fake::new(7);
        let mut driver = Driver::probe(&fake).unwrap();
        assert_eq!(driver.poll(false), None);
        fake.command.set(2);
        assert_eq!(driver.poll(false), Some(Action::Reboot));
        assert_eq!(*fake.answers.borrow(), [2]);
        assert_eq!(
            driver.poll(false),
            None,
            "the command stays in the register"
        );
        assert_eq!(driver.poll(true), None);
        assert_eq!(
            *fake.answers.borrow(),
            [2, 2],
            "answered again, as it may be a new one"
        );
        fake.command.set(1);
        assert_eq!(driver.poll(false), Some(Action::PowerOff));
        assert_eq!(*fake.answers.borrow(), [2, 2, 1]);
    }

    #[test]
    fn the_clock_is_acknowledged_after_it_is_set_and_can_be_set_again() {
        let fake = Fake::new(7);
        let mut driver = Driver::probe(&fake).unwrap();
        for _ in 0..3 {
            fake.command.set(3);
            assert_eq!(driver.poll(false), Some(Action::SetClock));
            assert_eq!(
                driver.host_time(),
                Some(HostTime {
                    seconds: 1_795_348_512,
                    micros: 505_915
                })
            );
            driver.clock_is_set();
            assert_eq!(driver.poll(false), None);
        }
        assert_eq!(*fake.answers.borrow(), [3, 3, 3]);
    }

    #[test]
    fn the_guests_clock_is_read_around_the_access_that_latches() {
        let fake = Fake::new(7);
        let driver = Driver::probe(&fake).unwrap();
        fake.reads.take();
        let (before, _, after) = driver
            .host_time_between(|| fake.reads.borrow().clone())
            .unwrap();
        assert_eq!((before, after), (Vec::new(), std::vec![register::SECONDS]));
        assert_eq!(fake.reads.take(), [register::SECONDS, register::MICROS]);
        assert_eq!(Driver::probe(Fake::new(6)).unwrap().host_time(), None);
    }

    #[test]
    fn a_stop_that_comes_while_the_clock_is_set_is_not_wiped_out() {
        let fake = Fake::new(7);
        let mut driver = Driver::probe(&fake).unwrap();
        fake.command.set(3);
        assert_eq!(driver.poll(false), Some(Action::SetClock));
        fake.command.set(2);
        driver.clock_is_set();
        assert_eq!(driver.poll(false), Some(Action::Reboot));
        assert_eq!(*fake.answers.borrow(), [2]);
    }

    #[test]
    fn interrupts_of_others_and_of_a_device_that_is_gone_are_not_ours() {
        let fake = Fake::new(7);
        let driver = Driver::probe(&fake).unwrap();
        for (isr, ours) in [
            (0, false),
            (1, false),
            (2, true),
            (3, true),
            (6, false),
            (0xff, false),
            (u32::MAX, false),
        ] {
            fake.isr.set(isr);
            assert_eq!(driver.interrupt(), ours, "{isr:#x}");
        }
    }

    #[test]
    fn a_power_off_gives_up_the_clock_and_does_not_answer_a_stop() {
        for (pending, told, answers) in [
            (0, true, &[1][..]),
            (3, true, &[3, 1]),
            (1, false, &[]),
            (2, false, &[]),
            (u32::MAX, true, &[1]),
        ] {
            let fake = Fake::new(7);
            let driver = Driver::probe(&fake).unwrap();
            fake.command.set(pending);
            assert_eq!(driver.powering_off(), told, "{pending:#x}");
            assert_eq!(*fake.answers.borrow(), answers, "{pending:#x}");
        }
    }

    proptest! {
        /// Whatever the register shows, only commands are acted on, each answer is what was read,
        /// and nothing is done twice in a row.
        #[test]
        fn garbage_is_never_answered(
            values in proptest::collection::vec(prop_oneof![0u32..6, any::<u32>()], 0..100),
        ) {
            let fake = Fake::new(7);
            let mut driver = Driver::probe(&fake).unwrap();
            let mut last_acted = 0;
            for value in values {
                fake.command.set(value);
                let action = driver.poll(false);
                match action {
                    Some(Action::PowerOff) => prop_assert_eq!(value, 1),
                    Some(Action::Reboot) => prop_assert_eq!(value, 2),
                    Some(Action::SetClock) => prop_assert_eq!(value, 3),
                    None => prop_assert!(value == 0 || value > 3 || value == last_acted),
                }
                prop_assert_eq!(driver.unknown(), (value > 3).then_some(value));
                if value <= 3 {
                    last_acted = value;
                }
                if action == Some(Action::SetClock) {
                    driver.clock_is_set();
                    last_acted = 0;
                }
                prop_assert_eq!(driver.poll(false), None);
            }
            prop_assert!(fake.answers.borrow().iter().all(|answer| (1..4).contains(answer)));
        }
    }
}
