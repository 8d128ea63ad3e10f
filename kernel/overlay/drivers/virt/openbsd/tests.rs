// SPDX-License-Identifier: GPL-2.0

//! What can be tested without the device.

use kernel::prelude::*;

#[kunit_tests(vmmci)]
mod cases {
    use core::cell::Cell;

    use crate::{
        clock::in_words,
        control::is_logged,
        protocol::{
            follow::NtpState,
            register,
            Action,
            Comparison,
            Driver,
            HostTime,
            Registers, //
        },
    };

    /// A device that shows one command, and keeps the answer.
    struct Fake {
        status: Cell<u32>,
        features: Cell<u32>,
        command: Cell<u32>,
        answer: Cell<u32>,
        seconds: Cell<u32>,
    }

    impl Fake {
        fn with_command(command: u32) -> Self {
            Self {
                status: Cell::new(0),
                features: Cell::new(0),
                command: Cell::new(command),
                answer: Cell::new(0),
                seconds: Cell::new(1_795_348_512),
            }
        }
    }

    impl Registers for Fake {
        fn read(&self, offset: u16) -> u32 {
            match offset {
                register::DEVICE_FEATURES => 7,
                register::GUEST_FEATURES => self.features.get(),
                register::DEVICE_STATUS => self.status.get(),
                register::COMMAND => self.command.get(),
                register::SECONDS => self.seconds.get(),
                register::MICROS => 505_915,
                _ => 0,
            }
        }

        fn write(&self, offset: u16, value: u32) {
            match offset {
                register::GUEST_FEATURES => self.features.set(value),
                register::DEVICE_STATUS => self.status.set(value),
                register::COMMAND => self.answer.set(value),
                _ => {}
            }
        }
    }

    #[test]
    fn commands_are_answered_with_what_was_read() {
        for (command, action) in [(1, Action::PowerOff), (2, Action::Reboot)] {
            let fake = Fake::with_command(command);
            let mut driver = Driver::probe(&fake).unwrap();
            assert_eq!(driver.poll(true), Some(action));
            assert_eq!(fake.answer.get(), command);
            assert_eq!(driver.poll(false), None);
        }
        let fake = Fake::with_command(u32::MAX);
        let mut driver = Driver::probe(&fake).unwrap();
        assert_eq!(driver.poll(true), None);
        assert_eq!(driver.unknown(), Some(u32::MAX));
        assert_eq!(fake.answer.get(), 0);
    }

    #[test]
    fn the_host_s_time_is_in_the_middle() {
        let fake = Fake::with_command(3);
        let mut driver = Driver::probe(&fake).unwrap();
        assert_eq!(driver.poll(true), Some(Action::SetClock));
        let host = driver.host_time().unwrap();
        assert_eq!(host.nanos(), 1_795_348_512_505_915_000);
        let comparison = Comparison::new((host.nanos() - 4, host, host.nanos() + 10)).unwrap();
        assert_eq!((comparison.offset(), comparison.error()), (3, 1_007));
    }

    #[test]
    fn steps_are_logged_with_their_sign() {
        assert_eq!(in_words(-1_500_000_999), ('-', 1, 500_000));
        assert_eq!(in_words(10_800_000_123_000), ('+', 10_800, 123));
        assert_eq!(in_words(0), ('+', 0, 0));
        let last = HostTime {
            seconds: u32::MAX,
            micros: 999_999,
        };
        assert_eq!(in_words(last.nanos()), ('+', 4_294_967_295, 999_999));
    }

    #[test]
    fn a_host_whose_clock_is_not_set_is_not_believed() {
        let fake = Fake::with_command(3);
        fake.seconds.set(60);
        let driver = Driver::probe(&fake).unwrap();
        assert_eq!(driver.host_time(), None);
    }

    #[test]
    fn a_steered_clock_is_left_alone() {
        let untouched = NtpState::UNTOUCHED;
        assert!(!untouched.is_steered());
        let synchronized = NtpState {
            status: 0x2000,
            ..untouched
        };
        assert!(synchronized.is_steered());
    }

    #[test]
    fn lines_become_rare() {
        assert_eq!((0..1_000_000).filter(|n| is_logged(*n)).count(), 26);
    }
}
