//! The CD-ROM.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Generation;

use super::MemoryDisk;
use crate::{
    bus::Width,
    pci::PciFunction,
    virtio::{
        DeviceType, Fault,
        scsi::Scsi,
        tests::guest_driver::{BUFFERS, Buffer, GuestDriver, RAM, UNTOUCHED},
    },
};

/// The request queue; 0 is for control, 1 for events.
const REQUESTS: u16 = 2;
const BLOCKS: usize = 50;

fn guest(generation: Generation) -> GuestDriver<Scsi> {
    // A sector is a quarter of a block: block N starts with the byte 4 N.
    GuestDriver::started(generation, Scsi::new(Box::new(MemoryDisk::numbered(BLOCKS * 4 + 3))))
}

fn request(lun: [u8; 8], cdb: &[u8]) -> Vec<u8> {
    let mut request = vec![0; 51];
    request[..8].copy_from_slice(&lun);
    request[19..19 + cdb.len()].copy_from_slice(cdb);
    request
}

const LUN_0: [u8; 8] = [1, 0, 0x40, 0, 0, 0, 0, 0];

/// A response: status, response, sense key and code, and the data.
struct Answer {
    status: u8,
    response: u8,
    sense: Option<(u8, u8)>,
    data: Vec<u8>,
}

/// Sends a command with room for `room` bytes, in pieces of `piece`.
fn command(guest: &mut GuestDriver<Scsi>, cdb: &[u8], room: u32, piece: u32) -> Answer {
    let header = request(LUN_0, cdb);
    let mut buffers = vec![Buffer::Out(&header), Buffer::In(108)];
    let mut left = room;
    while left > 0 {
        buffers.push(Buffer::In(left.min(piece)));
        left -= left.min(piece);
    }
    guest.chain(REQUESTS, 0, &buffers);
    guest.notify(REQUESTS);
    assert!(guest.line());
    assert_eq!(guest.isr(), 1);
    assert_eq!(guest.take_used(REQUESTS), Some((0, 51)), "the length is the request's");
    let response = guest.bytes(GuestDriver::<Scsi>::buffer(REQUESTS, 1), 108);
    let data = (0..room.div_ceil(piece.max(1)))
        .flat_map(|at| guest.bytes(GuestDriver::<Scsi>::buffer(REQUESTS, at as u16 + 2), piece as usize))
        .collect();
    let sense = (response[0] > 0).then(|| {
        assert_eq!((response[0], response[12]), (14, 0x70));
        (response[14], response[24])
    });
    Answer { status: response[10], response: response[11], sense, data }
}

/// A command that must succeed.
fn data(guest: &mut GuestDriver<Scsi>, cdb: &[u8], room: u32) -> Vec<u8> {
    let answer = command(guest, cdb, room, room);
    assert_eq!((answer.status, answer.response, answer.sense), (0, 0, None), "{cdb:02x?}");
    answer.data
}

const ILLEGAL_FIELD: Option<(u8, u8)> = Some((5, 0x24));
const OUT_OF_RANGE: Option<(u8, u8)> = Some((5, 0x21));
const NO_MEDIUM: Option<(u8, u8)> = Some((3, 0x3a));

#[test]
fn inquiry_identifies_the_drive() {
    for generation in [Generation::V7_7, Generation::V7_8] {
        let mut guest = guest(generation);
        let inquiry = data(&mut guest, &[0x12, 0, 0, 0, 96], 96);
        assert_eq!(inquiry[..8], [5, 0x80, 0, 2, 31, 0, 0, 0]);
        assert_eq!(&inquiry[8..36], b"OpenBSD VMM CD-ROM      001 ");
        assert_eq!(inquiry[36..], [0; 60]);
        assert_eq!(data(&mut guest, &[0x12, 1, 0x80, 0, 96], 96), inquiry, "vital product data: the same");
        data(&mut guest, &[0x00], 0);
        data(&mut guest, &[0x1b], 0);
    }
}

/// The mode that the board enables for firmware that does not know vmd.
#[test]
fn answers_ignore_the_buffer_length_unless_limited_to_it() {
    for (keep, written) in [(false, 96), (true, 36)] {
        let mut guest = guest(Generation::V7_8);
        guest.device.model_mut().keep_within_descriptors(keep);
        let buffer = GuestDriver::<Scsi>::buffer(REQUESTS, 2);
        guest.ram.write_slice(&[0xee; 96], GuestAddress(buffer)).unwrap();
        assert_eq!(data(&mut guest, &[0x12, 0, 0, 0, 36], 36)[8..15], *b"OpenBSD");
        assert_eq!(guest.bytes(buffer, 96).iter().position(|&byte| byte == 0xee).unwrap_or(96), written);
    }
}

#[test]
fn capacity_and_contents() {
    let mut guest = guest(Generation::V7_8);
    assert_eq!(data(&mut guest, &[0x25], 8), [0, 0, 0, 49, 0, 0, 8, 0]);
    let long = data(&mut guest, &[0x9e, 0x10], 32);
    assert_eq!(long[..12], [0, 0, 0, 0, 0, 0, 0, 49, 0, 0, 8, 0]);
    assert_eq!(long[12..], [0; 20]);
    assert_eq!(
        data(&mut guest, &[0x43, 0, 0, 0, 0, 0, 0], 20),
        [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 0, 50]
    );
    assert_eq!(
        data(&mut guest, &[0x43, 2, 0, 0, 0, 0, 0xaa], 20)[..12],
        [0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 0, 0, 50]
    );
    assert_eq!(command(&mut guest, &[0x43, 0, 0, 0, 0, 0, 2], 20, 20).sense, ILLEGAL_FIELD);
}

#[test]
fn blocks_are_read() {
    let mut guest = guest(Generation::V7_8);
    let two = data(&mut guest, &[0x28, 0, 0, 0, 0, 7, 0, 0, 2], 4096);
    assert_eq!((two[0], two[2047], two[2048], two[4095]), (28, 31, 32, 35));
    let pieces = command(&mut guest, &[0x28, 0, 0, 0, 0, 7, 0, 0, 2], 4096, 1024);
    assert_eq!(pieces.data, two);
    let one = data(&mut guest, &[0x08, 0, 0, 9, 1], 2048);
    assert_eq!((one[0], one[2047]), (36, 39));
    assert_eq!(data(&mut guest, &[0x28, 0, 0, 0, 0, 7, 0, 0, 0], 0), [], "no block is no block");

    let last = command(&mut guest, &[0x28, 0, 0, 0, 0, 49, 0, 0, 1], 2048, 2048);
    assert_eq!((last.status, last.data[0]), (0, 196));
    assert_eq!(command(&mut guest, &[0x28, 0, 0, 0, 0, 50, 0, 0, 1], 2048, 2048).sense, OUT_OF_RANGE);
    assert_eq!(command(&mut guest, &[0x08, 0, 0, 50, 1], 2048, 2048).sense, OUT_OF_RANGE);
    assert_eq!(command(&mut guest, &[0x28, 0, 0, 0, 0, 49, 0, 0, 2], 4096, 4096).sense, NO_MEDIUM);
}

#[test]
fn data_beyond_a_short_buffer_follows_the_next_descriptors() {
    let mut guest = guest(Generation::V7_8);
    guest.ram.write_slice(&request(LUN_0, &[0x28, 0, 0, 0, 0, 1, 0, 0, 1]), GuestAddress(BUFFERS)).unwrap();
    // The last descriptor names itself as its successor, without the NEXT flag.
    guest.set_descriptor(REQUESTS, 0, Descriptor::new(BUFFERS, 51, 1, 1));
    guest.set_descriptor(REQUESTS, 1, Descriptor::new(BUFFERS + 0x100, 108, 3, 2));
    guest.set_descriptor(REQUESTS, 2, Descriptor::new(BUFFERS + 0x1000, 512, 2, 2));
    guest.push(REQUESTS, 0);
    guest.notify(REQUESTS);
    assert_eq!(
        guest.bytes(BUFFERS + 0x1000, 513),
        [&[7; 512][..], &[0]].concat(),
        "the last quarter of the block"
    );
    assert_eq!(guest.take_used(REQUESTS), Some((0, 51)));
}

#[test]
fn a_read_into_empty_buffers_ends_the_vm() {
    let mut guest = guest(Generation::V7_8);
    guest.ram.write_slice(&request(LUN_0, &[0x28, 0, 0, 0, 0, 1, 0, 0, 1]), GuestAddress(BUFFERS)).unwrap();
    guest.set_descriptor(REQUESTS, 0, Descriptor::new(BUFFERS, 51, 1, 1));
    guest.set_descriptor(REQUESTS, 1, Descriptor::new(BUFFERS + 0x100, 108, 3, 2));
    guest.set_descriptor(REQUESTS, 2, Descriptor::new(BUFFERS + 0x1000, 0, 3, 3));
    guest.set_descriptor(REQUESTS, 3, Descriptor::new(BUFFERS + 0x1000, 0, 3, 2));
    guest.push(REQUESTS, 0);
    guest.notify(REQUESTS);
    assert_eq!(guest.faults.get(), Some(&Fault::EndlessChain { device: DeviceType::Scsi, queue: REQUESTS }));
}

#[test]
fn mode_pages() {
    let mut guest = guest(Generation::V7_8);
    let short = data(&mut guest, &[0x1a, 0, 0x2a, 0, 36], 36);
    assert_eq!(short[..8], [35, 0x70, 0, 0, 0x2a, 30, 8, 0]);
    assert_eq!(short[14..16], [0, 2]);
    let long = data(&mut guest, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 40], 40);
    assert_eq!(long[..12], [0, 38, 0x70, 0, 0, 0, 0, 0, 0x2a, 34, 8, 0]);
    assert_eq!(long[18..20], [0, 2]);
    assert_eq!(data(&mut guest, &[0x1a, 0, 0x01], 16)[..8], [15, 0x70, 0, 0, 1, 10, 0, 5]);
    assert_eq!(data(&mut guest, &[0x5a, 0, 0x01], 20)[..12], [0, 18, 0x70, 0, 0, 0, 0, 0, 1, 10, 0, 5]);
    for page in [0x3f, 0x0e, 0x41, 0xaa] {
        assert_eq!(command(&mut guest, &[0x1a, 0, page], 36, 36).sense, ILLEGAL_FIELD, "{page:#x}");
        assert_eq!(command(&mut guest, &[0x5a, 0, page], 36, 36).sense, ILLEGAL_FIELD, "{page:#x}");
    }
}

#[test]
fn each_prevent_allow_inverts_the_lock_and_power_on_clears_it() {
    let mut guest = guest(Generation::V7_8);
    let event = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8];
    assert_eq!(data(&mut guest, &event, 8), [0, 6, 2, 4, 0, 2, 0, 0]);
    data(&mut guest, &[0x1e, 0, 0, 0, 0], 0);
    assert_eq!(data(&mut guest, &event, 8)[5], 1);
    guest.start();
    assert_eq!(data(&mut guest, &event, 8)[5], 1);
    data(&mut guest, &[0x1e, 0, 0, 0, 1], 0);
    assert_eq!(data(&mut guest, &event, 8)[5], 2);
    data(&mut guest, &[0x1e], 0);
    guest.device.reset();
    guest.start();
    assert_eq!(data(&mut guest, &event, 8)[5], 2);
    assert_eq!(command(&mut guest, &[0x4a, 0], 8, 8).sense, ILLEGAL_FIELD);
}

#[test]
fn configuration_luns_and_the_rest() {
    let mut guest = guest(Generation::V7_8);
    let features = data(&mut guest, &[0x46], 56);
    assert_eq!(features[..20], [0, 0, 0, 52, 0, 0, 255, 255, 0, 0, 3, 4, 255, 255, 1, 0, 0, 1, 17, 8]);
    assert_eq!(features[44..], [0, 16, 3, 8, 0, 0, 0, 49, 0, 16, 0, 0]);
    assert_eq!(data(&mut guest, &[0xbd], 8), [0; 8]);
    let luns = data(&mut guest, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16], 16);
    assert_eq!(luns, [[0, 0, 0, 8, 0, 0, 0, 0], LUN_0].concat());
    assert_eq!(command(&mut guest, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 15], 16, 16).sense, ILLEGAL_FIELD);
    assert_eq!(command(&mut guest, &[0x51], 8, 8).sense, ILLEGAL_FIELD);
}

#[test]
fn unknown_commands_return_unchanged_without_an_interrupt() {
    let mut guest = guest(Generation::V7_8);
    for code in [0xa8, 0x88, 0x03, 0x2a, 0x35] {
        let header = request(LUN_0, &[code]);
        guest.chain(REQUESTS, 0, &[Buffer::Out(&header), Buffer::In(108)]);
        guest.notify(REQUESTS);
        assert_eq!(guest.take_used(REQUESTS), Some((0, 51)), "{code:#x}");
        assert!(!guest.line());
    }
}

#[test]
fn there_is_one_target_with_one_lun() {
    let mut guest = guest(Generation::V7_8);
    for lun in [[1, 1, 0x40, 0, 0, 0, 0, 0], [1, 0, 0x40, 1, 0, 0, 0, 0], [1, 255, 0, 0, 0, 0, 0, 0]] {
        let header = request(lun, &[0x12]);
        guest.chain(REQUESTS, 0, &[Buffer::Out(&header), Buffer::In(108)]);
        guest.notify(REQUESTS);
        assert_eq!(guest.isr(), 1);
        assert!(guest.take_used(REQUESTS).is_some());
        assert_eq!(guest.bytes(GuestDriver::<Scsi>::buffer(REQUESTS, 1) + 11, 1), [3], "bad target");
    }
}

#[test]
fn the_last_request_decides_on_the_interrupt() {
    let mut guest = guest(Generation::V7_8);
    let good = request(LUN_0, &[0x00]);
    let unknown = request(LUN_0, &[0xa8]);
    // Too large to be answered: 64 MiB and one block.
    let large = request(LUN_0, &[0x28, 0, 0, 0, 0, 0, 0, 0x80, 1]);
    guest.chain(REQUESTS, 0, &[Buffer::Out(&good), Buffer::In(108)]);
    guest.chain(REQUESTS, 4, &[Buffer::Out(&unknown), Buffer::In(108)]);
    guest.notify(REQUESTS);
    assert!(guest.line(), "an unknown command does not count");
    guest.isr();
    guest.chain(REQUESTS, 0, &[Buffer::Out(&good), Buffer::In(108)]);
    guest.chain(REQUESTS, 4, &[Buffer::Out(&large), Buffer::In(108)]);
    guest.notify(REQUESTS);
    assert!(!guest.line());
    assert_eq!(guest.isr(), 1, "but the ISR says so");
}

#[test]
fn events_and_task_management() {
    let mut guest = guest(Generation::V7_8);
    guest.chain(1, 0, &[Buffer::In(16)]);
    guest.notify(1);
    assert_eq!(guest.take_used(1), None);
    // A LUN reset of 1:0: vmd reads type and subtype as the LUN and the zeroes as TEST UNIT READY.
    let mut reset = vec![0; 51];
    reset[4] = 5;
    guest.chain(0, 0, &[Buffer::Out(&reset), Buffer::In(1)]);
    guest.notify(0);
    assert_eq!(guest.isr(), 1);
    assert_eq!(guest.bytes(GuestDriver::<Scsi>::buffer(0, 1), 1), [0], "function complete");
}

#[test]
fn malformed_requests_stop_the_queue() {
    let cases: [(&str, [Descriptor; 2]); 3] = [
        ("not chained", [Descriptor::new(BUFFERS, 51, 0, 1), Descriptor::new(BUFFERS, 108, 2, 0)]),
        (
            "request outside RAM",
            [Descriptor::new(RAM as u64 - 50, 51, 1, 1), Descriptor::new(BUFFERS, 108, 2, 0)],
        ),
        (
            "response outside RAM",
            [Descriptor::new(BUFFERS, 51, 1, 1), Descriptor::new(RAM as u64 - 107, 108, 2, 0)],
        ),
    ];
    for (name, descriptors) in cases {
        let mut guest = guest(Generation::V7_8);
        for (index, descriptor) in descriptors.into_iter().enumerate() {
            guest.set_descriptor(REQUESTS, index as u16, descriptor);
        }
        guest.push(REQUESTS, 0);
        guest.notify(REQUESTS);
        assert_eq!(guest.take_used(REQUESTS), None, "{name}");
        assert!(!guest.line(), "{name}");
        assert_eq!(guest.status() & 0x40, 0, "{name}");
        assert_eq!(guest.faults.get(), None, "{name}");
    }
}

#[test]
fn configuration_registers_have_a_width() {
    let mut modern = guest(Generation::V7_8);
    let registers = [1, 17, 2048, 1, 0, 96, 32];
    for (at, value) in registers.into_iter().enumerate() {
        assert_eq!(modern.input(0x300 + 4 * at as u16, Width::Dword), value);
    }
    assert_eq!(modern.input(0x31e, Width::Word), 1);
    assert_eq!(modern.input(0x320, Width::Dword), 1);
    assert_eq!(modern.input(0x31e, Width::Dword), UNTOUCHED);
    assert_eq!(modern.input(0x300, Width::Byte), UNTOUCHED);
    assert_eq!(modern.input(0x310, Width::Byte), 0);
    assert_eq!(modern.input(0x31c, Width::Dword), 0);
    assert_eq!(modern.input(0x301, Width::Byte), 0xffff_ffff);

    let mut legacy = guest(Generation::V7_7);
    assert_eq!(legacy.input(0x14 + 8, Width::Dword), 2048);
    assert_eq!(legacy.input(0x14 + 9, Width::Byte), UNTOUCHED & !0xff | 8);
    assert_eq!(legacy.input(0x14 + 8, Width::Word), UNTOUCHED);
    assert_eq!(legacy.input(0x14 + 16, Width::Byte), 0);
    assert_eq!(legacy.input(0x14 + 17, Width::Byte), UNTOUCHED);
    assert_eq!(legacy.input(0x14 + 29, Width::Byte), UNTOUCHED & !0xffff);
    assert_eq!(legacy.input(0x14 + 30, Width::Word), UNTOUCHED & !0xffff | 1);
    assert_eq!(legacy.input(0x14 + 36, Width::Byte), UNTOUCHED);
}

#[test]
fn the_legacy_line_stays_high() {
    let mut guest = guest(Generation::V7_7);
    let header = request(LUN_0, &[0x00]);
    guest.chain(REQUESTS, 0, &[Buffer::Out(&header), Buffer::In(108)]);
    guest.notify(REQUESTS);
    assert_eq!(guest.isr() & 0xff, 1);
    assert_eq!(guest.isr() & 0xff, 0);
    assert!(guest.line());
}
