//! COM1.
#![no_main]

use std::sync::Arc;

use devices::{
    clock::HostTicks,
    legacy::ns8250::{INPUT_CAPACITY, Input, Uart},
};
use libfuzzer_sys::fuzz_target;
use vmd_release::Generation;
use vmmlinux_fuzz::{Step, clock, line, play};

const PORTS: [u16; 8] = [0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff];

fuzz_target!(|script: Vec<Step>| {
    let clock = clock();
    let output = Box::new(std::io::sink());
    let mut uart =
        Uart::new(Generation::V7_8.capabilities(), Arc::clone(&clock) as _, HostTicks::default(), line(4), output);
    play(&mut uart, &clock, &PORTS, &script, |uart, what, argument| {
        let room = uart.input_room();
        assert!(room <= INPUT_CAPACITY);
        match what {
            0..=19 => uart.pause(),
            20..=39 => uart.unpause(),
            40..=79 => {
                let taken = uart.push_input([Input::Break(argument % 2 == 0)]);
                assert_eq!(taken, room.min(1));
            }
            _ => {
                let count = (argument % 300) as usize;
                let taken = uart.push_input(std::iter::repeat_n(Input::Char(what), count));
                assert_eq!(taken, room.min(count));
            }
        }
    });
});
