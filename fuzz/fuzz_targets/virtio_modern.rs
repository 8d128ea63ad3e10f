//! Arbitrary guest accesses to the devices on virtio 1.x.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmd_release::Generation;
use vmmlinux_fuzz::virtio::{Step, run_any};

fuzz_target!(|input: (u8, u8, Vec<Step>)| {
    let (generation, kind, steps) = input;
    let generations = [Generation::V7_8, Generation::V7_9, Generation::V8_0];
    run_any(generations[usize::from(generation) % 3], kind, &steps);
});
