// SPDX-License-Identifier: GPL-2.0

//! What can be tested without the device.

use kernel::prelude::*;

#[kunit_tests(vmmci)]
mod cases {
    use core::cell::Cell;

    use crate::{
        clock::timespec,
        control::worth_a_line,
        protocol::{
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
    }

    impl Fake {
        fn with_command(command: u32) -> Self {
            Self {
                status: Cell::new(0),
                features: Cell::new(0),
                command: Cell::new(command),
                answer: Cell::new(0),
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
                register::SECONDS => 1_795_348_512,
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
    fn times_before_1970_have_positive_nanoseconds() {
        let time = timespec(-1);
        assert_eq!((time.tv_sec, time.tv_nsec), (-1, 999_999_999));
        let last = HostTime {
            seconds: u32::MAX,
            micros: 999_999,
        };
        let time = timespec(last.nanos());
        assert_eq!((time.tv_sec, time.tv_nsec), (4_294_967_295, 999_999_000));
    }

    #[test]
    fn lines_become_rare() {
        assert_eq!((0..1_000_000).filter(|n| worth_a_line(*n)).count(), 26);
    }
}
