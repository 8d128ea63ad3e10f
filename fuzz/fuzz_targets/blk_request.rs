//! Disk requests: a header and a chain of any shape.

#![no_main]

use devices::virtio::blk::Blk;
use libfuzzer_sys::fuzz_target;
use vmd_release::Generation;
use vmmlinux_fuzz::virtio::{BUFFERS, Entry, Machine, MemoryDisk};

fuzz_target!(|input: (u8, u8, [Entry; 8], [bool; 8], Vec<u16>)| {
    let (request, sector, entries, proper, heads) = input;
    let generation = Generation::V7_9;
    let mut machine = Machine::new(generation, Blk::new(Box::new(MemoryDisk::default())));
    machine.start();
    machine.poke(BUFFERS, &[request & 0xf, 0, 0, 0, 0, 0, 0, 0, sector]);
    for (index, (entry, proper)) in entries.into_iter().zip(proper).enumerate() {
        let index = index as u8;
        if proper {
            // Header, data into the guest, status.
            let (length, flags) = match index {
                0 => (16, 1),
                7 => (1, 2),
                _ => (512, 3 - 2 * (request & 1)),
            };
            machine.buffer(0, index, length, flags);
        } else {
            machine.descriptor(0, index, entry);
        }
    }
    machine.submit(0, 0);
    for head in heads.into_iter().take(8) {
        machine.submit(0, head);
    }
});
