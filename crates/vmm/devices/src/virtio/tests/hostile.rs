//! Hostile drivers: no content of the rings causes a panic, and a device that survives works after
//! a reset.

use proptest::{collection::vec, prelude::*};
use rstest::rstest;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Generation;

use super::MemoryDisk;
use crate::{
    bus::Width,
    pci::PciFunction,
    virtio::{
        VirtioDevice,
        blk::Blk,
        net::{MacAddr, Net, NetOptions, Unplugged},
        rng::Rng,
        scsi::Scsi,
        tests::guest_driver::{BUFFERS, Buffer, GuestDriver, RAM, UNTOUCHED},
    },
};

/// An action of a hostile driver on a queue.
#[derive(Clone, Debug)]
struct Attack {
    descriptors: Vec<(u16, u64, u32, u16, u16)>,
    heads: Vec<u16>,
    jump: u16,
    header: Vec<u8>,
    notified: Vec<u16>,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..64u64).prop_map(|page| BUFFERS + page * 4096),
        1 => (0..32u64).prop_map(|before| RAM as u64 - before),
        1 => 0..RAM as u64,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(51u32), 4 => Just(16u32), 4 => 0..5000u32, 1 => Just(0u32), 1 => any::<u32>()]
}

fn attack() -> impl Strategy<Value = Attack> {
    let descriptor = (0..300u16, address(), length(), 0..8u16, prop_oneof![0..16u16, any::<u16>()]);
    (
        vec(descriptor, 0..24),
        vec(prop_oneof![0..16u16, any::<u16>()], 0..8),
        prop_oneof![4 => 0..8u16, 1 => any::<u16>()],
        vec(prop_oneof![Just(0u8), any::<u8>()], 64),
        vec(0..4u16, 1..6),
    )
        .prop_map(|(descriptors, heads, jump, header, notified)| Attack {
            descriptors,
            heads,
            jump,
            header,
            notified,
        })
}

/// Executes an attack. Returns true if the VM is still running.
fn survives<M: VirtioDevice>(guest: &mut GuestDriver<M>, attack: &Attack) -> bool {
    for page in 0..64 {
        guest.ram.write_slice(&attack.header, GuestAddress(BUFFERS + page * 4096)).unwrap();
    }
    for queue in 0..M::DEVICE_TYPE.queues() {
        let (_, avail, _) = GuestDriver::<M>::addresses(queue);
        for &(index, address, length, flags, next) in &attack.descriptors {
            guest.set_descriptor(queue, index, Descriptor::new(address, length, flags, next));
        }
        for (at, &head) in attack.heads.iter().enumerate() {
            guest.ram.write_obj(head, GuestAddress(avail + 4 + 2 * at as u64)).unwrap();
        }
        guest.ram.write_obj(attack.jump, GuestAddress(avail + 2)).unwrap();
    }
    for &queue in &attack.notified {
        guest.notify(queue);
    }
    if guest.faults.get().is_none() {
        return true;
    }
    assert_eq!(guest.input(0, Width::Dword), UNTOUCHED, "a dead device does not answer");
    false
}

fn generation() -> impl Strategy<Value = Generation> {
    prop::sample::select(Generation::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blk(generation in generation(), attack in attack()) {
        let disk = MemoryDisk::numbered(64);
        let mut guest = GuestDriver::started(generation, Blk::new(Box::new(disk)));
        if survives(&mut guest, &attack) {
            guest.start();
            let header = [&[0; 8][..], &5u64.to_le_bytes()].concat();
            guest.chain(0, 0, &[Buffer::Out(&header), Buffer::In(512), Buffer::In(1)]);
            guest.notify(0);
            prop_assert_eq!(guest.take_used(0), Some((0, 16)));
            prop_assert_eq!(guest.bytes(GuestDriver::<Blk>::buffer(0, 2), 1), [0]);
        }
    }

    #[test]
    fn rng(generation in generation(), attack in attack()) {
        let mut guest = GuestDriver::started(generation, Rng::new());
        if survives(&mut guest, &attack) {
            guest.start();
            guest.chain(0, 0, &[Buffer::In(8)]);
            guest.notify(0);
            prop_assert_eq!(guest.take_used(0), Some((0, 8)));
        }
    }

    #[test]
    fn scsi(generation in generation(), attack in attack()) {
        let mut guest = GuestDriver::started(generation, Scsi::new(Box::new(MemoryDisk::numbered(64))));
        if survives(&mut guest, &attack) {
            guest.start();
            let mut request = [0; 51];
            request[0] = 1;
            guest.chain(2, 0, &[Buffer::Out(&request), Buffer::In(108)]);
            guest.notify(2);
            prop_assert_eq!(guest.take_used(2), Some((0, 51)));
        }
    }

    #[test]
    fn net(generation in generation(), attack in attack()) {
        let options = NetOptions { mac: MacAddr::generated(0, 0), locked: true, local: None };
        let mut guest = GuestDriver::started(generation, Net::new(&generation.capabilities(), options, Box::new(Unplugged)));
        if survives(&mut guest, &attack) {
            guest.start();
            guest.chain(1, 0, &[Buffer::Out(&[0; 80])]);
            guest.notify(1);
            prop_assert!(guest.take_used(1).is_some());
        }
    }

    /// Accesses to registers in any order, with any width and value.
    #[test]
    fn registers(
        generation in generation(),
        accesses in vec((0..0x400u16, 0..3u8, any::<bool>(), prop_oneof![0..0x40_0000u32, any::<u32>()]), 0..64),
    ) {
        let disk = MemoryDisk::numbered(64);
        let mut guest = GuestDriver::new(generation, Blk::new(Box::new(disk)));
        for (offset, width, write, value) in accesses {
            let width = [Width::Byte, Width::Word, Width::Dword][usize::from(width)];
            // Half of the accesses are at offsets with registers.
            let offset = if value & 1 == 0 { offset & 0x33e } else { offset };
            if write {
                guest.output(offset, width, value);
            } else {
                guest.input(offset, width);
            }
        }
    }
}

/// Lays the used ring of queue `queue` on its available ring: each request that the device returns
/// makes another one available.
fn overlap_rings<M: VirtioDevice>(guest: &mut GuestDriver<M>, queue: u16) {
    let (_, avail, _) = GuestDriver::<M>::addresses(queue);
    guest.output(0x16, Width::Word, queue.into());
    guest.output(0x30, Width::Dword, avail as u32);
}

/// Notifies `queue` and runs deferred work three times. Returns how far the available index has
/// moved each time.
fn rounds<M: VirtioDevice>(guest: &mut GuestDriver<M>, queue: u16) -> [u16; 4] {
    let (_, avail, _) = GuestDriver::<M>::addresses(queue);
    let index = |guest: &GuestDriver<M>| guest.ram.read_obj::<u16>(GuestAddress(avail + 2)).unwrap();
    let mut last = index(guest);
    std::array::from_fn(|round| {
        if round == 0 {
            guest.notify(queue);
        } else {
            guest.device.run_deferred();
        }
        assert!(guest.device.has_deferred(), "the ring never runs empty");
        let now = index(guest);
        now.wrapping_sub(std::mem::replace(&mut last, now))
    })
}

#[rstest]
fn a_ring_that_feeds_itself_takes_one_round_at_a_time(
    #[values(Generation::V7_8, Generation::V7_9, Generation::V8_0)] generation: Generation,
) {
    let mut blk = GuestDriver::started(generation, Blk::new(Box::new(MemoryDisk::numbered(64))));
    overlap_rings(&mut blk, 0);
    // The used elements, head and length, become heads: 0 and the length.
    for head in [0, 16] {
        blk.chain(0, head, &[Buffer::Out(&[0; 16]), Buffer::In(512), Buffer::In(1)]);
    }
    assert_eq!(rounds(&mut blk, 0), [128; 4]);
    blk.set_status(0);
    assert!(!blk.device.has_deferred(), "a reset drops what is left");

    let options = NetOptions { mac: MacAddr::generated(0, 0), locked: false, local: None };
    let mut net =
        GuestDriver::started(generation, Net::new(&generation.capabilities(), options, Box::new(Unplugged)));
    overlap_rings(&mut net, 1);
    for head in [0, 80] {
        net.chain(1, head, &[Buffer::Out(&[0; 80])]);
    }
    assert_eq!(rounds(&mut net, 1), [256; 4]);
}

#[test]
fn a_notification_of_many_bytes_takes_one_round_at_a_time() {
    let disk = MemoryDisk::numbered(4 << 11);
    let mut guest = GuestDriver::started(Generation::V7_8, Blk::new(Box::new(disk)));
    guest.chain(0, 0, &[Buffer::Out(&[0; 16]), Buffer::In(1 << 20), Buffer::In(1 << 20), Buffer::In(1)]);
    let (_, avail, _) = GuestDriver::<Blk>::addresses(0);
    guest.ram.write_obj(100u16, GuestAddress(avail + 2)).unwrap();
    let mut used = 0;
    let mut rounds = vec![];
    loop {
        if rounds.is_empty() {
            guest.notify(0);
        } else {
            guest.device.run_deferred();
        }
        rounds.push(std::iter::from_fn(|| guest.take_used(0)).count());
        used += rounds.last().unwrap();
        if !guest.device.has_deferred() {
            break;
        }
    }
    assert_eq!((used, rounds), (100, vec![8; 12].into_iter().chain([4]).collect()));
}

#[test]
fn a_request_of_more_bytes_than_ram_fails() {
    let mut guest = GuestDriver::started(Generation::V7_8, Blk::new(Box::new(MemoryDisk::numbered(64))));
    let mut buffers = vec![Buffer::Out(&[0; 16])];
    buffers.extend((0..5).map(|_| Buffer::In(1 << 20)));
    buffers.push(Buffer::In(1));
    guest.chain(0, 0, &buffers);
    guest.notify(0);
    assert_eq!(guest.take_used(0), Some((0, 16)));
    assert_eq!(guest.bytes(GuestDriver::<Blk>::buffer(0, 6), 1), [1], "an I/O error");
}

#[test]
fn a_circle_of_small_descriptors_is_left() {
    let mut guest =
        GuestDriver::started(Generation::V7_8, Scsi::new(Box::new(MemoryDisk::numbered(1 << 10))));
    // READ(10) of 64 blocks into a circle of one byte.
    let mut request = [0; 51];
    request[0] = 1;
    request[19] = 0x28;
    request[27] = 64;
    guest.chain(2, 0, &[Buffer::Out(&request), Buffer::In(108), Buffer::In(1)]);
    guest.set_descriptor(2, 2, Descriptor::new(GuestDriver::<Scsi>::buffer(2, 2), 1, 3, 2));
    guest.notify(2);
    assert_eq!((guest.take_used(2), guest.faults.get()), (None, None));
}
