//! Frames from a guest to vmd's DHCP server and to the gateway, and their answers.

#![no_main]

use std::sync::Arc;

use devices::{
    clock::ManualClock,
    virtio::net::{Gateway, LocalLink, LocalPrefix, MacAddr, Net, NetOptions},
};
use libfuzzer_sys::fuzz_target;
use vmd_release::Generation;
use vmmlinux_fuzz::virtio::{BUFFERS, Machine};

const MAC: MacAddr = MacAddr([0xfe, 0xe1, 0xbb, 0xd1, 0, 0]);
const HOST: MacAddr = MacAddr([0xfe, 0xe1, 0xba, 0xd0, 0, 0]);

fuzz_target!(|input: (bool, Vec<(u8, Vec<u8>)>)| {
    let (legacy, frames) = input;
    let generation = if legacy { Generation::V7_7 } else { Generation::V8_0 };
    let clock = Arc::new(ManualClock::new(1_000_000_000, 0));
    let mut link = LocalLink::new(LocalPrefix::default(), 1, 0, HOST).unwrap();
    link.netboot = Some("vm".to_owned());
    let gateway = Gateway::new(&link, clock.clone());
    let options = NetOptions { mac: MAC, locked: false, local: Some(link) };
    let mut machine = Machine::new(generation, Net::new(&generation.capabilities(), options, Box::new(gateway)));
    machine.start();
    for index in 0..32 {
        machine.buffer(0, index, 2048, 2);
        machine.submit(0, index.into());
    }
    for (shape, bytes) in frames.into_iter().take(16) {
        let header = if legacy { 10 } else { 12 };
        let frame = shaped(shape, &bytes);
        // Sometimes with a checksum to be completed.
        let mut virtio = vec![shape >> 7, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
        virtio.truncate(header);
        machine.poke(BUFFERS + 60 * 4096, &virtio);
        machine.poke(BUFFERS + 60 * 4096 + header as u64, &frame);
        machine.buffer(1, 60, (header + frame.len()) as u32, 0);
        machine.submit(1, 60);
        clock.advance(u64::from(shape) * 10_000_000);
        machine.device.receive();
    }
});

/// Prepends headers that pass the first checks.
fn shaped(shape: u8, bytes: &[u8]) -> Vec<u8> {
    let bytes = &bytes[..bytes.len().min(1400)];
    let mut frame = [&HOST.0[..], &MAC.0].concat();
    match shape % 4 {
        0 => return bytes.to_vec(),
        1 => {
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0]);
            frame.extend(bytes);
        }
        protocol => {
            let udp = protocol == 2;
            let mut payload = Vec::new();
            if udp {
                let mut message = vec![0; 240];
                message[..3].copy_from_slice(&[1, 1, 6]);
                message[28..34].copy_from_slice(&MAC.0);
                message[236..].copy_from_slice(&[99, 130, 83, 99]);
                message.extend(bytes);
                message.resize(message.len().max(300), 0);
                payload.extend([0, 68, 0, 67]);
                payload.extend((8 + message.len() as u16).to_be_bytes());
                payload.extend([0, 0]);
                payload.extend(message);
            } else {
                payload.extend(bytes);
            }
            let number = if udp { 17 } else { [1, 6][usize::from(shape / 4 % 2)] };
            let mut ip = vec![0x45, 0];
            ip.extend((20 + payload.len() as u16).to_be_bytes());
            ip.extend([0, 0, 0, 0, 64, number, 0, 0, 100, 64, 1, 3, 100, 64, 1, 2]);
            let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(ip);
            frame.extend(payload);
        }
    }
    frame
}
