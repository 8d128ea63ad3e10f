//! The whole board: ports, memory-mapped registers, descriptors in rings that overlap, time, frames,
//! commands of the host, resets.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| {
    vmm::fuzzing::play(script).unwrap();
});
