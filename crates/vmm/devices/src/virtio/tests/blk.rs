//! Disk requests.

use std::io::{Read, Seek, SeekFrom, Write};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Generation;

use super::MemoryDisk;
use crate::{
    bus::Width,
    virtio::{
        DeviceType, Fault,
        blk::Blk,
        disk::{self, RawDisk},
        tests::guest_driver::{BUFFERS, Buffer, GuestDriver, RAM},
    },
};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn header(request: u32, sector: u64) -> Vec<u8> {
    [request.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat()
}

fn guest(generation: Generation, disk: &MemoryDisk) -> GuestDriver<Blk> {
    GuestDriver::started(generation, Blk::new(Box::new(disk.clone())))
}

/// Reads; returns the status and the data.
fn read(guest: &mut GuestDriver<Blk>, sector: u64, lengths: &[u32]) -> (u8, Vec<u8>) {
    let header = header(0, sector);
    let mut buffers = vec![Buffer::Out(&header)];
    buffers.extend(lengths.iter().map(|&length| Buffer::In(length)));
    buffers.push(Buffer::In(1));
    let last = buffers.len() as u16 - 1;
    guest.ram.write_obj(0xeeu8, GuestAddress(GuestDriver::<Blk>::buffer(0, last))).unwrap();
    guest.chain(0, 0, &buffers);
    guest.notify(0);
    assert_eq!(guest.take_used(0), Some((0, 16)), "the length is the header's");
    let data = lengths
        .iter()
        .enumerate()
        .flat_map(|(at, &length)| guest.bytes(GuestDriver::<Blk>::buffer(0, at as u16 + 1), length as usize))
        .collect();
    (guest.bytes(GuestDriver::<Blk>::buffer(0, last), 1)[0], data)
}

/// Sends a request with `data`; returns its status.
fn send(guest: &mut GuestDriver<Blk>, request: u32, sector: u64, data: &[&[u8]]) -> u8 {
    let header = header(request, sector);
    let mut buffers = vec![Buffer::Out(&header)];
    buffers.extend(data.iter().map(|&data| Buffer::Out(data)));
    buffers.push(Buffer::In(1));
    let last = buffers.len() as u16 - 1;
    guest.ram.write_obj(0xeeu8, GuestAddress(GuestDriver::<Blk>::buffer(0, last))).unwrap();
    guest.chain(0, 0, &buffers);
    guest.notify(0);
    assert_eq!(guest.take_used(0), Some((0, 16)));
    guest.bytes(GuestDriver::<Blk>::buffer(0, last), 1)[0]
}

#[test]
fn sectors_are_read_and_written() {
    for generation in Generation::ALL {
        let disk = MemoryDisk::numbered(64);
        let mut guest = guest(generation, &disk);
        let (status, data) = read(&mut guest, 7, &[512, 1024, 512]);
        assert_eq!(status, OK, "{generation}");
        let sectors: Vec<u8> = data.chunks(512).map(|sector| sector[511]).collect();
        assert_eq!(sectors, [7, 8, 9, 10]);
        assert!(guest.line());
        assert_eq!(guest.isr(), 1);
        assert!(!guest.line());

        assert_eq!(send(&mut guest, 1, 62, &[&[0xaa; 512], &[0xbb; 512]]), OK);
        assert_eq!(disk.bytes()[62 * 512..63 * 512], [0xaa; 512]);
        assert_eq!(disk.bytes()[63 * 512..], [0xbb; 512]);
        assert_eq!(disk.bytes()[61 * 512..62 * 512], [61; 512]);
    }
}

#[test]
fn all_available_requests_are_processed_over_many_rounds() {
    let disk = MemoryDisk::numbered(256);
    for generation in [Generation::V7_7, Generation::V7_8] {
        let mut guest = guest(generation, &disk);
        for round in 0..200u16 {
            let header = header(0, (round % 256).into());
            guest.chain(0, 0, &[Buffer::Out(&header), Buffer::In(512), Buffer::In(1)]);
            guest.chain(0, 40, &[Buffer::Out(&header), Buffer::In(512), Buffer::In(1)]);
            guest.notify(0);
            assert_eq!(guest.take_used(0), Some((0, 16)));
            assert_eq!(guest.take_used(0), Some((40, 16)));
            assert_eq!(guest.bytes(GuestDriver::<Blk>::buffer(0, 41), 1), [round as u8]);
        }
    }
}

#[test]
fn sectors_beyond_the_end_are_io_errors() {
    let disk = MemoryDisk::numbered(8);
    let mut guest = guest(Generation::V7_8, &disk);
    assert_eq!(read(&mut guest, 8, &[512]).0, IOERR);
    assert_eq!(read(&mut guest, u64::MAX, &[512]).0, IOERR);
    assert_eq!(read(&mut guest, i64::MAX as u64 / 512 + 1, &[512]).0, IOERR);
    let (status, data) = read(&mut guest, 7, &[512, 512]);
    assert_eq!((status, data[0]), (IOERR, 7), "the existing sectors are read");
    assert_eq!(send(&mut guest, 1, 7, &[&[1; 1024]]), IOERR);
}

#[test]
fn every_generation_reads_and_writes_only() {
    for generation in Generation::ALL {
        let disk = MemoryDisk::numbered(8);
        let mut guest = guest(generation, &disk);
        assert_eq!(guest.device.state().device_features as u32, 0x004, "{generation}: SEG_MAX only");
        // 4 is FLUSH.
        for request in [2, 3, 4, 8, 11, 13, 0x8000_0000] {
            assert_eq!(send(&mut guest, request, 0, &[]), UNSUPP, "{generation}: type {request}");
        }
    }
}

#[test]
fn a_failing_disk_returns_io_errors() {
    let disk = MemoryDisk::numbered(8);
    let mut guest = guest(Generation::V7_9, &disk);
    disk.0.lock().unwrap().broken = true;
    assert_eq!(read(&mut guest, 0, &[512]).0, IOERR);
    assert_eq!(send(&mut guest, 1, 0, &[&[1; 512]]), IOERR);
}

#[test]
fn a_read_only_image_refuses_writes_without_the_ro_feature() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[3; 1500]).unwrap();
    let disk = disk::open(file.path(), None, false).unwrap();
    assert_eq!(disk.size(), 1500);
    let mut guest = GuestDriver::started(Generation::V7_8, Blk::new(disk));
    assert_eq!(guest.device.model().capacity(), 2);
    assert_eq!(send(&mut guest, 1, 0, &[&[1; 512]]), IOERR);
    assert_eq!(read(&mut guest, 1, &[512]), (OK, vec![3; 512]));
    assert_eq!(guest.device.state().device_features & 1 << 5, 0);
}

#[test]
fn a_write_beyond_the_end_extends_a_raw_image() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let mut copy = file.try_clone().unwrap();
    let disk = RawDisk::new(file).unwrap();
    let mut guest = GuestDriver::started(Generation::V7_8, Blk::new(Box::new(disk)));
    assert_eq!(send(&mut guest, 1, 100, &[&[9; 512]]), OK);
    assert_eq!(copy.seek(SeekFrom::End(0)).unwrap(), 101 * 512);
    copy.seek(SeekFrom::Start(100 * 512)).unwrap();
    let mut sector = [0; 512];
    copy.read_exact(&mut sector).unwrap();
    assert_eq!(sector, [9; 512]);
    assert_eq!(guest.device.model().capacity(), 8);
}

#[test]
fn transfers_larger_than_a_chunk_are_complete() {
    let disk = MemoryDisk::default();
    disk.0.lock().unwrap().bytes = (0..3_000_000u32 / 512 * 512).map(|at| (at / 7) as u8).collect();
    let mut guest = guest(Generation::V7_8, &disk);
    let length = 1_500_160u32;
    guest.ram.write_slice(&header(0, 5), GuestAddress(BUFFERS)).unwrap();
    guest.set_descriptor(0, 0, Descriptor::new(BUFFERS, 16, 1, 1));
    guest.set_descriptor(0, 1, Descriptor::new(BUFFERS + 0x1000, 512, 3, 2));
    guest.set_descriptor(0, 2, Descriptor::new(BUFFERS + 0x2000, length, 3, 3));
    guest.set_descriptor(0, 3, Descriptor::new(BUFFERS + 0x800, 1, 2, 0));
    guest.push(0, 0);
    guest.notify(0);
    assert_eq!(guest.bytes(BUFFERS + 0x800, 1), [OK]);
    let expected = disk.bytes();
    assert_eq!(guest.bytes(BUFFERS + 0x1000, 512), expected[5 * 512..6 * 512]);
    assert!(guest.bytes(BUFFERS + 0x2000, length as usize) == expected[6 * 512..6 * 512 + length as usize]);
}

#[test]
fn the_configuration_answers_32_bit_reads_only_from_7_8_on() {
    let disk = MemoryDisk::numbered(5);
    let mut guest = guest(Generation::V7_8, &disk);
    assert_eq!(guest.input(0x300, Width::Dword), 5);
    assert_eq!(guest.input(0x304, Width::Dword), 0);
    assert_eq!(guest.input(0x30c, Width::Dword), 126);
    for (offset, width) in
        [(0x300, Width::Word), (0x300, Width::Byte), (0x30c, Width::Word), (0x310, Width::Dword)]
    {
        assert_eq!(guest.input(offset, width), 0xffff_ffff, "{offset:#x}");
    }
}

#[test]
fn the_legacy_configuration_answers_aligned_reads_of_any_width() {
    let disk = MemoryDisk::default();
    disk.0.lock().unwrap().bytes = vec![0; 0x1_0203 * 512];
    let mut guest = guest(Generation::V7_7, &disk);
    assert_eq!(guest.input(0x14, Width::Dword), 0x0001_0203);
    assert_eq!(guest.input(0x14, Width::Word), 0x0203);
    assert_eq!(guest.input(0x15, Width::Byte), 0x02);
    assert_eq!(guest.input(0x15, Width::Word), 0);
    assert_eq!(guest.input(0x16, Width::Word), 0x0001);
    assert_eq!(guest.input(0x18, Width::Dword), 0);
    assert_eq!(guest.input(0x20, Width::Dword), 126);
    assert_eq!(guest.input(0x1c, Width::Dword), 0xffff_ffff, "size_max");
}

/// Descriptors from 0 on: address, length, flags, next.
type Chain<'a> = &'a [(u64, u32, u16, u16)];

/// Whether the device asked for a reset and raised a configuration interrupt.
fn needs_reset(guest: &mut GuestDriver<Blk>) -> bool {
    guest.line() && guest.status() & 0x40 != 0 && guest.isr() & 2 != 0
}

#[test]
fn malformed_chains_make_the_device_ask_for_a_reset() {
    let next = VRING_DESC_F_NEXT as u16;
    let write = VRING_DESC_F_WRITE as u16;
    let cases: [(&str, Chain<'_>); 7] = [
        ("no successor", &[(BUFFERS, 16, 0, 0)]),
        ("writable header", &[(BUFFERS, 16, next | write, 1), (BUFFERS, 1, write, 0)]),
        ("header outside RAM", &[(RAM as u64 - 15, 16, next, 1), (BUFFERS, 1, write, 0)]),
        (
            "status not writable",
            &[(BUFFERS, 16, next, 1), (BUFFERS, 512, next | write, 2), (BUFFERS, 1, 0, 0)],
        ),
        ("loop", &[(BUFFERS, 16, next, 1), (BUFFERS, 512, next, 1)]),
        ("loop to the header", &[(BUFFERS, 16, next, 0)]),
        ("indirect", &[(BUFFERS, 32, VRING_DESC_F_INDIRECT as u16, 0)]),
    ];
    for generation in [Generation::V7_7, Generation::V7_8, Generation::V7_9] {
        for (name, chain) in cases {
            let disk = MemoryDisk::numbered(8);
            let mut guest = guest(generation, &disk);
            for (index, &(address, length, flags, next)) in chain.iter().enumerate() {
                guest.set_descriptor(0, index as u16, Descriptor::new(address, length, flags, next));
            }
            guest.push(0, 0);
            guest.notify(0);
            assert!(needs_reset(&mut guest), "{generation}: {name}");
            assert_eq!(guest.faults.get(), None, "{generation}: {name}");

            guest.start();
            assert_eq!(read(&mut guest, 1, &[512]).0, OK, "{generation}: {name}: usable after a reset");
        }
    }
}

#[test]
fn needs_reset_stops_7_7_only() {
    let disk = MemoryDisk::numbered(8);
    for (generation, stops) in [(Generation::V7_7, true), (Generation::V7_8, false)] {
        let mut guest = guest(generation, &disk);
        guest.set_descriptor(0, 0, Descriptor::new(BUFFERS, 16, 0, 0));
        guest.push(0, 0);
        guest.notify(0);
        assert!(needs_reset(&mut guest));
        guest.notify(0);
        assert_eq!(guest.line(), !stops, "{generation}");
    }
}

#[test]
fn after_a_malformed_request_earlier_requests_are_processed_again() {
    let disk = MemoryDisk::numbered(8);
    let mut guest = guest(Generation::V7_8, &disk);
    let header = header(0, 1);
    guest.chain(0, 0, &[Buffer::Out(&header), Buffer::In(512), Buffer::In(1)]);
    guest.set_descriptor(0, 9, Descriptor::new(BUFFERS, 16, 0, 0));
    guest.push(0, 9);
    for _ in 0..2 {
        guest.notify(0);
        assert_eq!(guest.take_used(0), Some((0, 16)));
        assert_eq!(guest.take_used(0), None);
    }
    assert_eq!(guest.isr(), 3);
}

#[test]
fn a_request_without_data_uses_the_status_as_data() {
    let disk = MemoryDisk::numbered(8);
    let mut guest = guest(Generation::V7_8, &disk);
    // The next descriptor after the status is number 0: the header, which is read-only.
    assert_eq!(read(&mut guest, 3, &[]).0, IOERR);
    assert_eq!(guest.status() & 0x40, 0);
}

#[test]
fn data_in_the_wrong_direction_or_outside_ram_is_an_io_error() {
    let disk = MemoryDisk::numbered(8);
    for (address, flags) in [(BUFFERS, 1), (RAM as u64 - 511, 3), (u64::MAX - 5, 3)] {
        let mut guest = guest(Generation::V7_8, &disk);
        guest.ram.write_slice(&header(0, 0), GuestAddress(BUFFERS)).unwrap();
        guest.set_descriptor(0, 0, Descriptor::new(BUFFERS, 16, 1, 1));
        guest.set_descriptor(0, 1, Descriptor::new(address, 512, flags, 2));
        guest.set_descriptor(0, 2, Descriptor::new(BUFFERS + 0x800, 1, 2, 0));
        guest.push(0, 0);
        guest.notify(0);
        assert_eq!(guest.take_used(0), Some((0, 16)));
        assert_eq!(guest.bytes(BUFFERS + 0x800, 1), [IOERR]);
        assert_eq!(guest.status() & 0x40, 0);
    }
}

#[test]
fn a_status_outside_ram_is_lost() {
    let disk = MemoryDisk::numbered(8);
    let mut guest = guest(Generation::V7_8, &disk);
    guest.ram.write_slice(&header(0, 0), GuestAddress(BUFFERS)).unwrap();
    guest.set_descriptor(0, 0, Descriptor::new(BUFFERS, 16, 1, 1));
    guest.set_descriptor(0, 1, Descriptor::new(BUFFERS + 0x1000, 512, 3, 2));
    guest.set_descriptor(0, 2, Descriptor::new(RAM as u64, 1, 2, 0));
    guest.push(0, 0);
    guest.notify(0);
    assert_eq!(guest.take_used(0), Some((0, 16)));
    assert_eq!(guest.faults.get(), None);
}

#[test]
fn a_queue_without_a_ring_ends_the_vm() {
    let disk = MemoryDisk::numbered(8);
    for generation in Generation::ALL {
        let mut guest = GuestDriver::new(generation, Blk::new(Box::new(disk.clone())));
        guest.notify(0);
        assert_eq!(guest.faults.get(), Some(&Fault::NullRing { device: DeviceType::Blk, queue: 0 }));
        let before = guest.input(0, Width::Dword);
        assert_eq!(before, super::guest_driver::UNTOUCHED, "a dead device does not answer");
    }
}

#[test]
fn queue_1_ends_the_vm_on_7_8() {
    let disk = MemoryDisk::numbered(8);
    for generation in Generation::ALL {
        let mut guest = guest(generation, &disk);
        guest.notify(2);
        assert_eq!(guest.faults.get(), None);
        guest.notify(1);
        let expected = Fault::NullRing { device: DeviceType::Blk, queue: 1 };
        assert_eq!(guest.faults.get(), (generation == Generation::V7_8).then_some(&expected), "{generation}");
    }
}
