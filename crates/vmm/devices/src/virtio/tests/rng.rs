//! Entropy requests.

use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::Bytes;
use vmd_release::Generation;

use crate::virtio::{
    DeviceType, Fault,
    rng::Rng,
    tests::guest_driver::{BUFFERS, Buffer, GuestDriver, RAM},
};

fn counting() -> Rng {
    let mut next = 0u8;
    Rng::from_source(move |bytes| {
        for byte in bytes {
            next = next.wrapping_add(1);
            *byte = next;
        }
    })
}

#[test]
fn requests_are_filled_one_after_the_other() {
    for generation in Generation::ALL {
        let mut guest = GuestDriver::started(generation, counting());
        for round in 0..100u8 {
            guest.chain(0, 0, &[Buffer::In(8)]);
            guest.notify(0);
            assert!(guest.line());
            assert_eq!(guest.isr(), 1, "{generation}");
            assert!(!guest.line());
            assert_eq!(guest.take_used(0), Some((0, 8)));
            let first = round.wrapping_mul(8).wrapping_add(1);
            let expected: Vec<u8> = (0..8).map(|at| first.wrapping_add(at)).collect();
            assert_eq!(guest.bytes(BUFFERS, 8), expected);
        }
    }
}

#[test]
fn the_host_returns_different_bytes_each_time() {
    let mut guest = GuestDriver::started(Generation::V7_8, Rng::new());
    let mut seen = Vec::new();
    for _ in 0..4 {
        guest.chain(0, 0, &[Buffer::In(16)]);
        guest.notify(0);
        seen.push(guest.bytes(BUFFERS, 16));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 4);
}

#[test]
fn the_entry_after_the_newest_is_used() {
    let mut guest = GuestDriver::started(Generation::V7_8, counting());
    guest.set_descriptor(0, 3, Descriptor::new(BUFFERS + 0x3000, 4, VRING_DESC_F_WRITE as u16, 0));
    guest.set_descriptor(0, 9, Descriptor::new(BUFFERS + 0x9000, 4, VRING_DESC_F_WRITE as u16, 0));
    guest.push(0, 3);
    let (_, avail, _) = GuestDriver::<Rng>::addresses(0);
    guest.ram.write_obj(9u16, vm_memory::GuestAddress(avail + 4 + 2)).unwrap();
    guest.notify(0);
    assert_eq!(guest.take_used(0), Some((9, 4)));
    assert_eq!(guest.bytes(BUFFERS + 0x9000, 4), [1, 2, 3, 4]);
    assert_eq!(guest.bytes(BUFFERS + 0x3000, 4), [0; 4]);
}

#[test]
fn one_notification_fills_one_request() {
    let mut guest = GuestDriver::started(Generation::V7_8, counting());
    guest.chain(0, 0, &[Buffer::In(4)]);
    guest.chain(0, 1, &[Buffer::In(4)]);
    guest.notify(0);
    assert!(guest.take_used(0).is_some());
    assert_eq!(guest.take_used(0), None);
}

#[test]
fn more_than_64_kib_ends_the_vm() {
    let mut guest = GuestDriver::started(Generation::V7_8, counting());
    guest.set_descriptor(0, 0, Descriptor::new(BUFFERS, 65536, VRING_DESC_F_WRITE as u16, 0));
    guest.push(0, 0);
    guest.notify(0);
    assert_eq!(guest.faults.get(), None);
    guest.set_descriptor(0, 0, Descriptor::new(BUFFERS, 65537, VRING_DESC_F_WRITE as u16, 0));
    guest.notify(0);
    assert_eq!(
        guest.faults.get(),
        Some(&Fault::RequestTooLarge { device: DeviceType::Rng, length: 65537, max: 65536 })
    );
}

#[test]
fn more_than_64_kib_is_ignored_by_8_0() {
    let mut guest = GuestDriver::started(Generation::V8_0, counting());
    guest.set_descriptor(0, 0, Descriptor::new(BUFFERS, 65537, VRING_DESC_F_WRITE as u16, 0));
    guest.push(0, 0);
    guest.notify(0);
    assert_eq!(guest.faults.get(), None);
    assert_eq!(guest.take_used(0), None);
}

#[test]
fn a_buffer_outside_ram_is_dropped_without_an_interrupt() {
    let mut guest = GuestDriver::started(Generation::V7_8, counting());
    guest.set_descriptor(0, 0, Descriptor::new(RAM as u64 - 4, 8, VRING_DESC_F_WRITE as u16, 0));
    guest.push(0, 0);
    guest.notify(0);
    assert_eq!(guest.take_used(0), None);
    assert!(!guest.line());
    assert_eq!(guest.faults.get(), None);
}

#[test]
fn a_queue_that_is_not_enabled_or_does_not_exist_is_ignored() {
    let mut guest = GuestDriver::started(Generation::V7_8, counting());
    guest.notify(1);
    guest.set_status(0);
    guest.notify(0);
    assert_eq!(guest.faults.get(), None);
    assert!(!guest.line());
}

#[test]
fn the_legacy_device_has_no_reset_and_is_always_enabled() {
    let mut guest = GuestDriver::new(Generation::V7_7, counting());
    guest.notify(0);
    assert_eq!(guest.faults.get(), Some(&Fault::NullRing { device: DeviceType::Rng, queue: 0 }));

    let mut guest = GuestDriver::started(Generation::V7_7, counting());
    guest.set_status(0);
    guest.chain(0, 0, &[Buffer::In(4)]);
    guest.notify(0);
    assert_eq!(guest.take_used(0), Some((0, 4)));
}
