//! The mc146818.
#![no_main]

use std::sync::Arc;

use devices::{clock::HostTicks, legacy::mc146818::Rtc, memory_map::MemoryMap};
use libfuzzer_sys::fuzz_target;
use vmd_release::Generation;
use vmmlinux_fuzz::{Step, clock, line, play};

fuzz_target!(|script: Vec<Step>| {
    let clock = clock();
    let memory = MemoryMap::new(&Generation::V7_8.capabilities(), 8 << 30).unwrap().cmos();
    let mut rtc = Rtc::new(
        Generation::V7_8.capabilities(),
        Arc::clone(&clock) as _,
        HostTicks::default(),
        line(8),
        memory,
        Box::new(|| {}),
    );
    play(&mut rtc, &clock, &[0x70, 0x71], &script, |rtc, what, _| match what % 2 {
        0 => rtc.pause(),
        _ => rtc.unpause(),
    });
});
