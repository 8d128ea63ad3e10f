//! Everything a guest can do to vmd's devices on virtio 1.x.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmd::Generation;
use vmmlinux_fuzz::virtio::{Step, run_any};

fuzz_target!(|input: (bool, u8, Vec<Step>)| {
    let (new, kind, steps) = input;
    run_any(if new { Generation::V7_9 } else { Generation::V7_8 }, kind, &steps);
});
