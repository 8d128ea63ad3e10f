//! The 8253 and port 0x61.
#![no_main]

use std::{num::NonZeroU32, sync::Arc};

use devices::{clock::HostTicks, legacy::i8253::Pit};
use libfuzzer_sys::fuzz_target;
use vmd_release::Generation;
use vmmlinux_fuzz::{Step, clock, line, play};

fuzz_target!(|input: (NonZeroU32, Vec<Step>)| {
    let (hz, script) = input;
    let clock = clock();
    let ticks = HostTicks::new(hz.min(NonZeroU32::new(10_000).unwrap()));
    let mut pit = Pit::new(Generation::V7_8.capabilities(), Arc::clone(&clock) as _, ticks, line(0));
    play(&mut pit, &clock, &[0x40, 0x41, 0x42, 0x43, 0x61], &script, |pit, what, _| match what % 2 {
        0 => pit.pause(),
        _ => pit.unpause(),
    });
});
