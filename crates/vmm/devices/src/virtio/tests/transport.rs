//! Registers of both transports.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::{Generation, Unsettled};

use super::MemoryDisk;
use crate::{
    bus::Width,
    pci::PciFunction,
    virtio::{
        DeviceType, Fault, VirtioDevice,
        blk::Blk,
        net::{MacAddr, Net, NetOptions, Unplugged},
        rng::Rng,
        scsi::Scsi,
        tests::guest_driver::{BUFFERS, GuestDriver, RAM, UNTOUCHED},
    },
};

fn blk() -> Blk {
    Blk::new(Box::new(MemoryDisk::numbered(8)))
}

#[test]
fn legacy_identities_are_transitional_and_have_no_capabilities() {
    for (kind, device) in [
        (DeviceType::Net, 0x1000),
        (DeviceType::Blk, 0x1001),
        (DeviceType::Scsi, 0x1004),
        (DeviceType::Rng, 0x1005),
    ] {
        let identity = kind.identity(&Generation::V7_7.capabilities());
        assert_eq!((identity.vendor, identity.device, identity.revision), (0x1af4, device, 0));
        assert_eq!((identity.subsystem_vendor, identity.subsystem), (0x0b5d, kind.virtio_id()));
    }
    assert!(GuestDriver::new(Generation::V7_7, Rng::new()).device.capabilities().is_empty());
}

#[test]
fn feature_and_address_registers_take_32_bit_writes_only() {
    let mut guest = GuestDriver::new(Generation::V7_8, blk());
    for width in [Width::Byte, Width::Word] {
        for register in [0x00, 0x08, 0x0c, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34] {
            guest.output(register, width, 1);
        }
    }
    for register in [0x00, 0x08, 0x0c, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34] {
        assert_eq!(guest.input(register, Width::Dword), 0, "{register:#x}");
    }
}

#[test]
fn the_status_takes_8_bit_writes_only_and_any_value() {
    let mut guest = GuestDriver::new(Generation::V7_8, blk());
    guest.output(0x14, Width::Dword, 1);
    guest.output(0x14, Width::Word, 1);
    assert_eq!(guest.status(), 0);
    guest.set_status(0xff);
    assert_eq!(guest.status(), 0xff, "FEATURES_OK stays although no features were accepted");
}

#[test]
fn offered_features_accumulate_until_a_reset() {
    let mut guest = GuestDriver::new(Generation::V7_8, blk());
    guest.output(0x0c, Width::Dword, 0xffff_ffff);
    guest.output(0x0c, Width::Dword, 0);
    assert_eq!(guest.input(0x0c, Width::Dword), 0x4);
    guest.output(0x08, Width::Dword, 1);
    guest.output(0x0c, Width::Dword, 0xffff_ffff);
    assert_eq!(guest.input(0x0c, Width::Dword), 0x1);
    guest.output(0x08, Width::Dword, 2);
    guest.output(0x0c, Width::Dword, 0xffff_ffff);
    assert_eq!(guest.input(0x0c, Width::Dword), 0);
    guest.set_status(0);
    assert_eq!(guest.input(0x08, Width::Dword), 2, "selectors survive a reset");
    guest.output(0x08, Width::Dword, 0);
    assert_eq!(guest.input(0x0c, Width::Dword), 0);
}

#[test]
fn sixteen_bit_registers_use_eax_whatever_the_width() {
    let mut guest = GuestDriver::started(Generation::V7_8, blk());
    guest.output(0x16, Width::Byte, 0x1234);
    assert_eq!(guest.input(0x16, Width::Word), 0x1234);
    guest.output(0x16, Width::Byte, 0);
    guest.output(0x18, Width::Word, 0x0001_0040);
    assert_eq!(guest.input(0x18, Width::Word), 1024, "clamped, because of what is above the 16 bits");
    guest.output(0x18, Width::Word, 64);
    assert_eq!(guest.input(0x18, Width::Word), 64);
}

#[test]
fn a_missing_queue_shows_size_0_and_the_previous_addresses() {
    let mut guest = GuestDriver::started(Generation::V7_8, blk());
    guest.output(0x16, Width::Word, 0);
    let table = guest.input(0x20, Width::Dword);
    assert_ne!(table, 0);
    guest.output(0x16, Width::Word, 1);
    assert_eq!(guest.input(0x18, Width::Word), 0);
    assert_eq!(guest.input(0x1c, Width::Word), 0);
    assert_eq!(guest.input(0x20, Width::Dword), table);
    guest.output(0x1c, Width::Word, 1);
    guest.output(0x16, Width::Word, 0);
    assert_eq!(guest.input(0x1c, Width::Word), 1, "writes went nowhere");
    assert_eq!(guest.input(0x20, Width::Dword), table);
}

#[test]
fn queue_registers_do_not_follow_the_queue_before_version_1_is_accepted() {
    let mut guest = GuestDriver::new(Generation::V7_8, blk());
    guest.output(0x16, Width::Word, 0);
    assert_eq!(guest.input(0x18, Width::Word), 0);
    guest.output(0x20, Width::Dword, 0x1000);
    assert_eq!(guest.input(0x20, Width::Dword), 0x1000);
    guest.notify(0);
    assert_eq!(guest.faults.get(), Some(&Fault::NullRing { device: DeviceType::Blk, queue: 0 }));
}

#[test]
fn odd_and_empty_queues_are_disabled() {
    for size in [0, 63] {
        let mut guest = GuestDriver::started(Generation::V7_8, Rng::new());
        guest.output(0x18, Width::Word, size);
        guest.output(0x16, Width::Word, 0);
        assert_eq!(guest.input(0x1c, Width::Word), 0, "size {size}");
    }
}

#[test]
fn a_queue_outside_ram_ends_the_vm() {
    for generation in [Generation::V7_7, Generation::V7_8] {
        let mut guest = GuestDriver::started(generation, blk());
        let address = RAM as u64 - 4096;
        if generation == Generation::V7_7 {
            guest.output(0x08, Width::Dword, (address >> 12) as u32);
        } else {
            guest.output(0x20, Width::Dword, address as u32);
        }
        assert_eq!(
            guest.faults.get(),
            Some(&Fault::RingOutsideRam { device: DeviceType::Blk, queue: 0, address })
        );
    }
}

#[test]
fn rings_that_lead_outside_ram_end_the_vm_when_they_are_used() {
    let mut guest = GuestDriver::started(Generation::V7_8, blk());
    guest.output(0x2c, Width::Dword, 0);
    guest.output(0x28, Width::Dword, 0xfff0_0000);
    assert_eq!(guest.faults.get(), None, "vmd checks the descriptor table only");
    guest.notify(0);
    assert!(matches!(guest.faults.get(), Some(Fault::RingOutsideRam { address: 0xfff0_0002, .. })));
}

#[test]
fn a_reset_clears_the_queues_but_not_their_mappings() {
    let mut guest = GuestDriver::started(Generation::V7_8, blk());
    guest.set_status(0);
    guest.notify(0);
    // Not a null ring: vmd keeps the old mapping, where both rings now coincide with the table.
    assert_eq!(guest.faults.get(), None);
}

#[test]
fn areas_of_the_bar_and_their_gaps() {
    let mut guest = GuestDriver::new(Generation::V7_8, blk());
    for offset in [0x100, 0x1ff, 0x400, 0xffc] {
        assert_eq!(guest.input(offset, Width::Dword), 0xffff_ffff, "{offset:#x}");
    }
    assert_eq!(guest.input(0x03, Width::Byte), 0);
    assert_eq!(guest.input(0x2ff, Width::Dword), 0, "the ISR is everywhere in its area");
}

#[test]
fn reads_of_the_notify_area_by_device_and_eax() {
    let mut guest = GuestDriver::new(Generation::V7_8, Rng::new());
    assert_eq!(guest.input(0x100, Width::Dword), UNTOUCHED, "EAX names no queue: no answer");
    let mut access = crate::bus::PortAccess::input(0xc100, Width::Byte, 0xabcd_0000);
    guest.device.bar_access(0x100, &mut access);
    assert_eq!(access.eax, 0xffff_ffff);
    assert_eq!(guest.input(0x300, Width::Byte), 0xffff_ffff);
}

#[test]
fn legacy_registers_answer_32_bits_or_not_at_all() {
    let mut guest = GuestDriver::new(Generation::V7_7, Rng::new());
    assert_eq!(guest.input(0x0c, Width::Word), 0, "no queue selected yet");
    guest.output(0x0e, Width::Word, 0);
    assert_eq!(guest.input(0x0c, Width::Byte), 64);
    guest.output(0x0e, Width::Word, 1);
    assert_eq!(guest.input(0x0c, Width::Word), 0);
    for offset in [0x01, 0x0d, 0x14, 0x40, 0x300] {
        assert_eq!(guest.input(offset, Width::Byte), UNTOUCHED, "{offset:#x}");
    }
    let mut guest = GuestDriver::new(Generation::V7_7, blk());
    for offset in [0x01, 0x0d, 0x40, 0x300] {
        assert_eq!(guest.input(offset, Width::Byte), 0xffff_ffff, "{offset:#x}");
    }
}

#[test]
fn legacy_features_are_accepted_unchecked() {
    let mut guest = GuestDriver::new(Generation::V7_7, blk());
    assert_eq!(guest.input(0x00, Width::Dword), 0x4);
    guest.output(0x04, Width::Dword, 0xdead_beef);
    assert_eq!(guest.input(0x04, Width::Dword), 0xdead_beef);
}

#[test]
fn after_a_legacy_reset_the_ring_is_at_address_0() {
    let mut guest = GuestDriver::started(Generation::V7_7, blk());
    guest.set_status(0);
    guest.notify(0);
    assert_eq!(guest.faults.get(), None);
    assert!(!guest.line());
}

#[test]
fn power_on_restores_the_initial_state() {
    for generation in [Generation::V7_7, Generation::V7_8] {
        let mut guest = GuestDriver::started(generation, blk());
        guest.device.reset();
        assert_eq!(guest.status(), 0);
        guest.start();
        assert_eq!(guest.faults.get(), None);
    }
}

#[test]
fn vectors_can_be_chosen_from_8_0_on() {
    let mut guest = GuestDriver::new(Generation::V8_0, Rng::new());
    assert_eq!(guest.device.vectors(), 2);
    for (vector, kept) in [(1, 1), (2, 0xffff), (0, 0)] {
        for register in [0x10, 0x1a] {
            guest.output(register, Width::Word, vector);
            assert_eq!(guest.input(register, Width::Word) & 0xffff, kept);
        }
    }
    guest.output(0x10, Width::Byte, 1);
    assert_eq!(guest.input(0x10, Width::Word) & 0xffff, 0, "only 16 bits at once");
    guest.set_status(0);
    assert_eq!(guest.input(0x10, Width::Word) & 0xffff, 0xffff);
    assert_eq!(guest.input(0x1a, Width::Word) & 0xffff, 0xffff, "a reset clears rng's");

    let mut guest = GuestDriver::new(Generation::V7_9, Rng::new());
    assert_eq!(guest.device.vectors(), 0);
    guest.output(0x10, Width::Word, 0);
    assert_eq!(guest.input(0x10, Width::Word) & 0xffff, 0xffff);
}

#[test]
fn the_queues_vector_follows_the_selected_queue_of_rng_only() {
    let mut rng = GuestDriver::new(Generation::V8_0, Rng::new());
    rng.output(0x1a, Width::Word, 1);
    rng.output(0x16, Width::Word, 7);
    assert_eq!(rng.input(0x1a, Width::Word) & 0xffff, 0xffff, "there is no queue 7");
    rng.output(0x16, Width::Word, 0);
    assert_eq!(rng.input(0x1a, Width::Word) & 0xffff, 1);

    let mut disk = GuestDriver::new(Generation::V8_0, blk());
    disk.output(0x1a, Width::Word, 1);
    disk.output(0x16, Width::Word, 7);
    assert_eq!(disk.input(0x1a, Width::Word) & 0xffff, 1, "the last one written");
}

/// Reads of unknown registers: device configuration, notify area with an EAX that names no queue,
/// and the area from 0x400 on.
fn unknown<M: VirtioDevice>(generation: Generation, model: M) -> [u32; 3] {
    let mut guest = GuestDriver::new(generation, model);
    [0x380, 0x100, 0x400].map(|offset| guest.input(offset, Width::Dword))
}

#[test]
fn unknown_registers_read_ones_up_to_7_9_and_mostly_zero_from_8_0_on() {
    const ONES: u32 = u32::MAX;
    let net = |generation: Generation| {
        let options = NetOptions { mac: MacAddr([2, 0, 0, 0, 0, 1]), locked: false, local: None };
        Net::new(&generation.capabilities(), options, Box::new(Unplugged))
    };
    for generation in [Generation::V7_8, Generation::V7_9] {
        assert_eq!(unknown(generation, blk()), [ONES; 3], "{generation}");
        assert_eq!(unknown(generation, net(generation)), [ONES; 3], "{generation}");
        assert_eq!(unknown(generation, Rng::new()), [ONES, UNTOUCHED, ONES], "{generation}");
    }
    assert_eq!(unknown(Generation::V8_0, blk()), [0; 3]);
    assert_eq!(unknown(Generation::V8_0, net(Generation::V8_0)), [0, ONES, 0]);
    assert_eq!(unknown(Generation::V8_0, Rng::new()), [ONES, 0, ONES]);
}

#[test]
fn feature_words_2_and_3_of_7_9_read_as_configured() {
    for (ones, expected) in [(false, 0), (true, u32::MAX)] {
        let unsettled = Unsettled { feature_words_read_ones: ones, ..Unsettled::default() };
        let capabilities = Generation::V7_9.capabilities_with(unsettled);
        let mut guest = GuestDriver::with(capabilities, blk());
        guest.output(0, Width::Dword, 1);
        assert_eq!(guest.input(4, Width::Dword), 1, "VERSION_1");
        guest.output(0, Width::Dword, 2);
        assert_eq!(guest.input(4, Width::Dword), expected);
    }
}

#[test]
fn rings_can_be_anywhere_from_8_0_on() {
    let mut guest = GuestDriver::started(Generation::V8_0, Rng::new());
    guest.output(0x16, Width::Word, 0);
    // The available ring lies before the table; 7.9 would compute an address 4 GiB above it.
    guest.output(0x28, Width::Dword, 0x1000);
    assert_eq!(guest.input(0x1c, Width::Word), 1);
    guest.ram.write_obj(1u16, GuestAddress(0x1002)).unwrap();
    guest.set_descriptor(0, 0, Descriptor::new(BUFFERS, 4, 2, 0));
    guest.notify(0);
    assert_eq!(guest.take_used(0), Some((0, 4)));
}

#[test]
fn unsound_queues_are_disabled_by_8_0_and_end_the_vm_when_they_are_used() {
    for (register, value) in [
        (0x20, RAM as u32 - 512),
        (0x20, 0x1008),
        (0x28, 0x2001),
        (0x30, 0x3002),
        (0x30, 0),
        (0x28, RAM as u32 - 64),
    ] {
        let mut guest = GuestDriver::started(Generation::V8_0, blk());
        guest.output(register, Width::Dword, value);
        assert_eq!(guest.faults.get(), None, "{register:#x}");
        guest.output(0x16, Width::Word, 0);
        assert_eq!(guest.input(0x1c, Width::Word), 0, "{register:#x}");
        assert_eq!(guest.input(register, Width::Dword), value);
        guest.notify(0);
        assert_eq!(guest.faults.get(), Some(&Fault::NullRing { device: DeviceType::Blk, queue: 0 }));
    }
    let mut guest = GuestDriver::started(Generation::V8_0, blk());
    guest.output(0x18, Width::Word, 48);
    guest.output(0x16, Width::Word, 0);
    assert_eq!(guest.input(0x1c, Width::Word), 0, "no power of two");
}

#[test]
fn a_reset_clears_the_queue_registers_from_8_0_on() {
    for (generation, kept) in [(Generation::V7_9, true), (Generation::V8_0, false)] {
        let mut guest = GuestDriver::started(generation, blk());
        guest.set_status(0);
        assert_eq!(guest.input(0x20, Width::Dword) != 0, kept, "{generation}");
        assert_eq!(guest.input(0x1c, Width::Word) != 0, kept);
        assert_eq!(guest.input(0x18, Width::Word), 128);
        guest.notify(0);
        assert_eq!(guest.faults.get().is_none(), kept);
    }
}

#[test]
fn the_cd_rom_answers_every_in_once_it_has_its_own_process() {
    for generation in [Generation::V7_8, Generation::V7_9] {
        let mut guest = GuestDriver::new(generation, Scsi::new(Box::new(MemoryDisk::numbered(8))));
        let nothing = if generation == Generation::V7_8 { UNTOUCHED } else { 0xffff_ffff };
        assert_eq!(guest.input(0x300, Width::Byte), nothing);
        assert_eq!(guest.input(0x100, Width::Byte), nothing);
        assert_eq!(guest.input(0x300, Width::Dword), 1);
    }
}
