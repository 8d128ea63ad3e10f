//! Commands to the CD-ROM in a mostly valid chain.

#![no_main]

use devices::virtio::scsi::Scsi;
use libfuzzer_sys::fuzz_target;
use vmd_release::Generation;
use vmmlinux_fuzz::virtio::{BUFFERS, Entry, Machine, MemoryDisk};

fuzz_target!(|input: (bool, Vec<([u8; 51], bool, u8, Option<(u8, Entry)>)>)| {
    let (legacy, commands) = input;
    let generation = if legacy { Generation::V7_7 } else { Generation::V7_8 };
    let mut machine = Machine::new(generation, Scsi::new(Box::new(MemoryDisk::default())));
    machine.start();
    for (mut request, first_lun, queue, odd) in commands.into_iter().take(8) {
        if first_lun {
            request[..8].copy_from_slice(&[1, 0, 0x40, 0, 0, 0, 0, 0]);
        }
        machine.poke(BUFFERS, &request);
        machine.buffer(queue, 0, 51, 1);
        machine.buffer(queue, 1, 108, 3);
        for index in 2..8 {
            machine.buffer(queue, index, 4096, 3);
        }
        machine.buffer(queue, 8, 4096, 2);
        if let Some((index, entry)) = odd {
            machine.descriptor(queue, index % 9, entry);
        }
        machine.submit(queue % 3, 0);
    }
});
