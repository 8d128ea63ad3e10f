//! Comparison with recordings of the virtio 1.x registers of a real vmd 7.8.

use std::fmt::Write;

use vm_memory::GuestAddress;
use vmd_release::Generation;

use super::MemoryDisk;
use crate::{
    bus::Width,
    pci::PciFunction,
    virtio::{
        GuestRam, VirtioDevice,
        blk::Blk,
        net::{Net, NetOptions, Unplugged},
        rng::Rng,
        tests::guest_driver::GuestDriver,
    },
};

/// The access pattern and the output of `golden/tools/v1cfg.c`, which made the recordings.
fn v1cfg<M: VirtioDevice>(guest: &mut GuestDriver<M>, config: u16) -> String {
    let mut text = String::new();
    for word in 0..4u32 {
        guest.output(0, Width::Dword, word);
        let features = guest.input(4, Width::Dword);
        writeln!(text, "device_feature[{word}]={features:08x}").unwrap();
    }
    let word = |guest: &mut GuestDriver<M>, offset| guest.input(offset, Width::Word) & 0xffff;
    let byte = |guest: &mut GuestDriver<M>, offset| guest.input(offset, Width::Byte) & 0xff;
    let dword = |guest: &mut GuestDriver<M>, offset| guest.input(offset, Width::Dword);
    let queues = word(guest, 0x12);
    writeln!(
        text,
        "msix_config={:04x} num_queues={queues:04x} status={:02x} gen={:02x} qsel={:04x}",
        word(guest, 0x10),
        byte(guest, 0x14),
        byte(guest, 0x15),
        word(guest, 0x16)
    )
    .unwrap();
    for queue in 0..=queues {
        guest.output(0x16, Width::Word, queue);
        let address = |guest: &mut GuestDriver<M>, offset| {
            format!("{:08x}{:08x}", dword(guest, offset + 4), dword(guest, offset))
        };
        writeln!(
            text,
            "queue {queue}: size={:04x} msix={:04x} enable={:04x} notify_off={:04x} desc={} avail={} used={}",
            word(guest, 0x18),
            word(guest, 0x1a),
            word(guest, 0x1c),
            word(guest, 0x1e),
            address(guest, 0x20),
            address(guest, 0x28),
            address(guest, 0x30)
        )
        .unwrap();
    }
    guest.output(0x16, Width::Word, 0);
    text.push_str("common cfg by width:\n");
    for offset in 0..0x40 {
        let (b, w, l) = (byte(guest, offset), word(guest, offset), dword(guest, offset));
        writeln!(text, "+{offset:02x}: b {b:02x} w {w:04x} l {l:08x}").unwrap();
    }
    write!(text, "device cfg +{config:03x}:").unwrap();
    for offset in 0..0x40 {
        let b = byte(guest, config + offset);
        write!(text, "{}{b:02x}", if offset % 16 == 0 { "\n  " } else { " " }).unwrap();
    }
    write!(text, "\ndevice cfg +{config:03x} (32-bit):").unwrap();
    for offset in (0..0x40).step_by(4) {
        write!(text, " {:08x}", dword(guest, config + offset)).unwrap();
    }
    text.push('\n');
    text
}

/// A recording without its first line, which has the BAR's address.
fn recording(text: &str) -> &str {
    text.split_once('\n').unwrap().1
}

#[test]
fn rng_registers_before_any_driver() {
    let mut guest = GuestDriver::new(Generation::V7_8, Rng::new());
    guest.set_status(1);
    let text = v1cfg(&mut guest, 0x100);
    let golden = recording(include_str!("../../../../../../tests/golden/pci/k73.v1cfg.rng.txt"));
    let (registers, config) = text.split_once("device cfg").unwrap();
    let (golden_registers, _) = golden.split_once("device cfg").unwrap();
    assert_eq!(registers, golden_registers);
    // No answer: the recording shows the probe program's own EAX.
    assert!(config.contains(" a5a5a5a5"), "{config}");
}

#[test]
fn blk_registers_after_a_driver_was_unloaded() {
    let disk = MemoryDisk::numbered(8);
    let mut guest = GuestDriver::new(Generation::V7_8, Blk::new(Box::new(disk)));
    // The recorded VM had 512 MiB, and its driver placed the queue just below the end.
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 512 << 20)]).unwrap();
    guest.replace_ram(ram);
    guest.set_status(3);
    for word in [0, 1] {
        guest.output(0, Width::Dword, word);
        let features = guest.input(4, Width::Dword);
        guest.output(8, Width::Dword, word);
        guest.output(12, Width::Dword, features);
    }
    guest.output(0x16, Width::Word, 0);
    for (register, address) in [(0x20, 0x1fff_d000), (0x28, 0x1fff_d800), (0x30, 0x1fff_e000)] {
        guest.output(register, Width::Dword, address);
        guest.output(register + 4, Width::Dword, 0);
    }
    guest.output(0x1c, Width::Word, 1);
    guest.set_status(0);
    guest.set_status(1);
    assert_eq!(
        v1cfg(&mut guest, 0x100),
        recording(include_str!("../../../../../../tests/golden/pci/k73.v1cfg.blk.txt"))
    );
}

#[test]
fn net_registers_before_any_driver() {
    let mut guest = GuestDriver::new(Generation::V7_8, net());
    guest.set_status(1);
    assert_eq!(
        v1cfg(&mut guest, 0x300),
        recording(include_str!("../../../../../../tests/golden/pci/k612.v1cfg.net.txt"))
    );
}

/// The recorded NIC.
fn net() -> Net {
    let mac = "fe:e1:bb:d1:b3:1b".parse().unwrap();
    Net::new(
        &Generation::V7_8.capabilities(),
        NetOptions { mac, locked: false, local: None },
        Box::new(Unplugged),
    )
}

/// Configuration spaces in the order of the slots, as bytes.
fn spaces(text: &str) -> Vec<Vec<u8>> {
    let mut spaces = Vec::new();
    for line in text.lines() {
        let mut words: Vec<&str> = line.split('|').next().unwrap().split_whitespace().collect();
        if line.starts_with("## ") || line.starts_with("--- ") {
            spaces.push(Vec::new());
        }
        if words.first().is_some_and(|word| word.len() == 8) {
            words.remove(0);
        }
        if words.len() == 16 && words.iter().all(|word| word.len() == 2) {
            let space: &mut Vec<u8> = spaces.last_mut().unwrap();
            space.extend(words.iter().map(|word| u8::from_str_radix(word, 16).unwrap()));
        }
    }
    spaces
}

/// Checks the device's own part of configuration space: identity and capabilities.
fn assert_space(device: &impl PciFunction, space: &[u8]) {
    let identity = device.identity();
    let word = |at: usize| u16::from_le_bytes([space[at], space[at + 1]]);
    assert_eq!((identity.vendor, identity.device), (word(0), word(2)));
    assert_eq!((identity.revision, identity.subclass, identity.class), (space[8], space[10], space[11]));
    assert_eq!((identity.subsystem_vendor, identity.subsystem), (word(0x2c), word(0x2e)));
    let mut at = usize::from(space[0x34]);
    for capability in device.capabilities() {
        let mut recorded = space[at..at + capability.len()].to_vec();
        at = usize::from(std::mem::take(&mut recorded[1]));
        assert_eq!(capability, recorded);
    }
    assert_eq!(at, 0, "there are more capabilities in the recording");
}

#[test]
fn identities_and_capabilities_are_as_recorded() {
    let spaces = spaces(include_str!("../../../../../../tests/golden/pci/k73.config.hex.txt"));
    assert_eq!(spaces.len(), 4);
    assert_space(&GuestDriver::new(Generation::V7_8, Rng::new()).device, &spaces[1]);
    let blk = Blk::new(Box::new(MemoryDisk::numbered(8)));
    assert_space(&GuestDriver::new(Generation::V7_8, blk).device, &spaces[2]);

    let spaces = self::spaces(include_str!("../../../../../../tests/golden/pci/k612.with-net.pci.txt"));
    assert_eq!(spaces.len(), 5);
    assert_space(&GuestDriver::new(Generation::V7_8, net()).device, &spaces[2]);
}
