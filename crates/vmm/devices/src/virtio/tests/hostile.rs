//! Hostile drivers: no content of the rings causes a panic, and a device that survives works after
//! a reset.

use proptest::{collection::vec, prelude::*};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Generation;

use super::MemoryDisk;
use crate::{
    bus::Width,
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
