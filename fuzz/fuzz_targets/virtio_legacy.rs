//! Arbitrary guest accesses to the devices on virtio 0.9.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmd_release::Generation;
use vmmlinux_fuzz::virtio::{Step, run_any};

fuzz_target!(|input: (u8, Vec<Step>)| run_any(Generation::V7_7, input.0, &input.1));
