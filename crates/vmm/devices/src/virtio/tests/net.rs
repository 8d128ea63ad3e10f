//! Network interfaces.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
};

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
        Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket,
        TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
    },
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Generation;

use crate::{
    bus::Width,
    clock::ManualClock,
    pci::PciFunction,
    virtio::{
        DeviceType, Fault,
        net::{
            FrameBackend, Gateway, LocalLink, LocalPrefix, MacAddr, Net, NetOptions, StreamBackend,
            TapBackend, Unplugged,
        },
        tests::guest_driver::{BUFFERS, Buffer, GuestDriver, RAM},
    },
};

const MAC: MacAddr = MacAddr([0xfe, 0xe1, 0xbb, 0xd1, 0xb3, 0x1b]);
const HOST_MAC: MacAddr = MacAddr([0xfe, 0xe1, 0xba, 0xd0, 0x01, 0x02]);
/// The virtio header before each sent frame.
const HEADER: [u8; 12] = [0; 12];

/// The host side of a NIC, under the test's control.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    sent: Vec<Vec<u8>>,
    coming: VecDeque<Vec<u8>>,
    broken: bool,
}

impl FrameBackend for Wire {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let mut ends = self.0.lock().unwrap();
        if ends.broken {
            return Err(io::Error::other("broken"));
        }
        ends.sent.push(frame.to_vec());
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut ends = self.0.lock().unwrap();
        if ends.broken {
            return Err(io::Error::other("broken"));
        }
        Ok(ends.coming.pop_front().map(|frame| {
            let length = frame.len().min(buffer.len());
            buffer[..length].copy_from_slice(&frame[..length]);
            length
        }))
    }
}

fn options() -> NetOptions {
    NetOptions { mac: MAC, locked: false, local: None }
}

fn link() -> LocalLink {
    LocalLink::new(LocalPrefix::default(), 1, 0, HOST_MAC).unwrap()
}

fn guest(
    generation: Generation,
    options: NetOptions,
    backend: impl FrameBackend + 'static,
) -> GuestDriver<Net> {
    GuestDriver::started(generation, Net::new(&generation.capabilities(), options, Box::new(backend)))
}

fn header(generation: Generation) -> usize {
    if generation == Generation::V7_7 { 10 } else { 12 }
}

/// Sends a frame as Linux does with virtio 1.x: header and frame in one descriptor.
fn send(guest: &mut GuestDriver<Net>, generation: Generation, frame: &[u8]) {
    let bytes = [&HEADER[..header(generation)], frame].concat();
    guest.chain(1, 0, &[Buffer::Out(&bytes)]);
    guest.notify(1);
    let (head, length) = guest.take_used(1).unwrap();
    assert_eq!(head, 0);
    assert!(length as usize == bytes.len() || length as usize == frame.len());
}

/// Makes `count` buffers of 2 KiB available from descriptor 0 on.
fn offer(guest: &mut GuestDriver<Net>, count: u16) {
    for head in 0..count {
        guest.chain(0, head, &[Buffer::In(2048)]);
    }
    guest.notify(0);
}

/// Takes the next frame that the guest has received, with the virtio header.
fn received(guest: &mut GuestDriver<Net>) -> Option<Vec<u8>> {
    let (head, length) = guest.take_used(0)?;
    Some(guest.bytes(GuestDriver::<Net>::buffer(0, head as u16), length as usize))
}

fn frame(to: MacAddr, from: MacAddr, fill: u8) -> Vec<u8> {
    let mut frame = [to.0.as_slice(), &from.0, &[0x08, 0x00]].concat();
    frame.resize(60, fill);
    frame
}

#[test]
fn frames_are_sent_and_received() {
    for generation in Generation::ALL {
        let wire = Wire::default();
        let mut guest = guest(generation, options(), wire.clone());
        offer(&mut guest, 4);
        assert!(!guest.line());
        send(&mut guest, generation, &frame(HOST_MAC, MAC, 1));
        assert_eq!(guest.isr(), 1);
        assert_eq!(wire.0.lock().unwrap().sent, [frame(HOST_MAC, MAC, 1)]);

        wire.0.lock().unwrap().coming.extend([frame(MAC, HOST_MAC, 2), frame(MAC, HOST_MAC, 3)]);
        guest.device.receive();
        assert!(guest.line());
        assert_eq!(guest.isr(), 1);
        let header = header(generation);
        for fill in [2, 3] {
            let bytes = received(&mut guest).unwrap();
            assert_eq!(bytes[header..], frame(MAC, HOST_MAC, fill));
            let mut expected = vec![0; header];
            if header == 12 {
                expected[10] = 1;
            }
            assert_eq!(bytes[..header], expected, "{generation}: num_buffers from 7.8 on");
        }
    }
}

#[test]
fn frames_span_chains_and_are_cut_at_their_end() {
    let wire = Wire::default();
    let mut guest = guest(Generation::V7_8, options(), wire.clone());
    let whole = frame(HOST_MAC, MAC, 7);
    guest.chain(1, 0, &[Buffer::Out(&HEADER), Buffer::Out(&whole[..20]), Buffer::Out(&whole[20..])]);
    guest.notify(1);
    assert_eq!(wire.0.lock().unwrap().sent, std::slice::from_ref(&whole));

    wire.0.lock().unwrap().coming.push_back(whole.clone());
    guest.chain(0, 0, &[Buffer::In(12), Buffer::In(16), Buffer::In(14)]);
    guest.notify(0);
    assert_eq!(guest.take_used(0), Some((0, 42)));
    assert_eq!(guest.bytes(GuestDriver::<Net>::buffer(0, 1), 16), whole[..16]);
    assert_eq!(guest.bytes(GuestDriver::<Net>::buffer(0, 2), 15), [&whole[16..30], &[0]].concat());
    assert_eq!(guest.bytes(BUFFERS + 10, 2), [3, 0]);
}

#[test]
fn nothing_is_received_before_the_queue_is_notified_nor_after_a_reset() {
    let wire = Wire::default();
    wire.0.lock().unwrap().coming.extend([frame(MAC, HOST_MAC, 1), frame(MAC, HOST_MAC, 2)]);
    let mut guest = guest(Generation::V7_8, options(), wire.clone());
    guest.chain(0, 0, &[Buffer::In(2048)]);
    guest.device.receive();
    assert_eq!(received(&mut guest), None);
    assert!(!guest.device.can_receive());
    guest.notify(0);
    assert!(received(&mut guest).is_some());
    assert!(!guest.device.can_receive(), "no buffer left");
    guest.chain(0, 1, &[Buffer::In(2048)]);
    assert!(guest.device.can_receive());
    guest.start();
    guest.chain(0, 0, &[Buffer::In(2048)]);
    guest.device.receive();
    assert_eq!(received(&mut guest), None);
}

#[test]
fn frames_wait_for_buffers() {
    let wire = Wire::default();
    let mut guest = guest(Generation::V7_8, options(), wire.clone());
    offer(&mut guest, 1);
    wire.0.lock().unwrap().coming.extend([frame(MAC, HOST_MAC, 1), frame(MAC, HOST_MAC, 2)]);
    guest.device.receive();
    assert!(received(&mut guest).is_some());
    assert_eq!(wire.0.lock().unwrap().coming.len(), 1);
    let (.., used) = GuestDriver::<Net>::addresses(0);
    let flags: u16 = guest.ram.read_obj(GuestAddress(used)).unwrap();
    assert_eq!(flags, 1, "new buffers need no notification");
    guest.chain(0, 1, &[Buffer::In(2048)]);
    guest.device.receive();
    assert_eq!(received(&mut guest).unwrap()[12..], frame(MAC, HOST_MAC, 2));
}

#[test]
fn the_guest_can_ask_not_to_be_interrupted() {
    let wire = Wire::default();
    let mut guest = guest(Generation::V7_8, options(), wire.clone());
    offer(&mut guest, 2);
    for queue in [0, 1] {
        let (_, avail, _) = GuestDriver::<Net>::addresses(queue);
        guest.ram.write_obj(1u16, GuestAddress(avail)).unwrap();
    }
    wire.0.lock().unwrap().coming.push_back(frame(MAC, HOST_MAC, 1));
    guest.device.receive();
    send(&mut guest, Generation::V7_8, &frame(HOST_MAC, MAC, 1));
    assert!(received(&mut guest).is_some());
    assert!(!guest.line());
}

#[test]
fn a_locked_address_is_enforced_in_both_directions() {
    let wire = Wire::default();
    let options = NetOptions { locked: true, ..options() };
    let mut guest = guest(Generation::V7_8, options, wire.clone());
    offer(&mut guest, 4);
    send(&mut guest, Generation::V7_8, &frame(HOST_MAC, HOST_MAC, 1));
    assert!(wire.0.lock().unwrap().sent.is_empty());
    send(&mut guest, Generation::V7_8, &frame(HOST_MAC, MAC, 2));
    assert_eq!(wire.0.lock().unwrap().sent.len(), 1);

    let multicast = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
    wire.0.lock().unwrap().coming.extend([
        frame(HOST_MAC, HOST_MAC, 1),
        frame(MAC, HOST_MAC, 2),
        frame(multicast, HOST_MAC, 3),
    ]);
    guest.device.receive();
    assert_eq!(received(&mut guest).unwrap()[12..], frame(MAC, HOST_MAC, 2));
    assert_eq!(received(&mut guest).unwrap()[12..], frame(multicast, HOST_MAC, 3));
    assert_eq!(received(&mut guest), None);
}

#[test]
fn a_flood_of_filtered_frames_takes_one_round_at_a_time() {
    let wire = Wire::default();
    let foreign = std::iter::repeat_with(|| frame(HOST_MAC, HOST_MAC, 1)).take(1000);
    wire.0.lock().unwrap().coming = foreign.chain([frame(MAC, HOST_MAC, 2)]).collect();
    let mut guest = guest(Generation::V7_8, NetOptions { locked: true, ..options() }, wire.clone());
    offer(&mut guest, 1);
    assert_eq!(wire.0.lock().unwrap().coming.len(), 1001 - 256);
    while guest.device.has_deferred() {
        guest.device.run_deferred();
    }
    assert_eq!(received(&mut guest).unwrap()[12..], frame(MAC, HOST_MAC, 2));
    assert!(guest.line());
}

#[test]
fn a_runt_is_used_but_not_sent() {
    let wire = Wire::default();
    let mut guest = guest(Generation::V7_8, options(), wire.clone());
    guest.chain(1, 0, &[Buffer::Out(&[0; 12 + 13])]);
    guest.chain(1, 1, &[Buffer::Out(&[0; 12])]);
    guest.notify(1);
    assert_eq!(guest.take_used(1), Some((0, 13)));
    assert_eq!(guest.take_used(1), Some((1, 0)));
    assert!(wire.0.lock().unwrap().sent.is_empty());
}

/// Descriptors from 0 on: address, length, flags, next.
type Chain<'a> = &'a [(u64, u32, u16, u16)];

fn needs_reset(guest: &mut GuestDriver<Net>) -> bool {
    guest.line() && guest.status() & 0x40 != 0 && guest.isr() & 2 != 0
}

#[test]
fn malformed_chains_make_the_device_ask_for_a_reset() {
    let ram = RAM as u64;
    let cases: [(&str, u16, Chain<'_>); 11] = [
        ("receive: not writable", 0, &[(BUFFERS, 2048, 0, 0)]),
        ("receive: no room for the header", 0, &[(BUFFERS, 11, 2, 0)]),
        ("receive: no room for Ethernet", 0, &[(BUFFERS, 12 + 13, 2, 0)]),
        ("receive: outside RAM", 0, &[(ram - 2047, 2048, 2, 0)]),
        ("receive: second one not writable", 0, &[(BUFFERS, 2048, 3, 1), (BUFFERS, 64, 0, 0)]),
        ("receive: loop", 0, &[(BUFFERS, 2048, 3, 0)]),
        ("send: writable", 1, &[(BUFFERS, 100, 2, 0)]),
        ("send: no header", 1, &[(BUFFERS, 11, 0, 0)]),
        ("send: outside RAM", 1, &[(u64::MAX - 40, 100, 0, 0)]),
        ("send: loop", 1, &[(BUFFERS, 100, 1, 1), (BUFFERS, 0, 1, 1)]),
        ("send: longer than a tap takes", 1, &[(BUFFERS, 12 + 16385, 0, 0)]),
    ];
    for (name, queue, chain) in cases {
        let wire = Wire::default();
        let mut guest = guest(Generation::V7_8, options(), wire.clone());
        wire.0.lock().unwrap().coming.push_back(frame(MAC, HOST_MAC, 1));
        for (index, &(address, length, flags, next)) in chain.iter().enumerate() {
            guest.set_descriptor(queue, index as u16, Descriptor::new(address, length, flags, next));
        }
        guest.push(queue, 0);
        guest.notify(queue);
        assert!(needs_reset(&mut guest), "{name}");
        assert_eq!(guest.faults.get(), None, "{name}");
        assert!(wire.0.lock().unwrap().sent.is_empty(), "{name}");
    }
}

#[test]
fn a_failing_backend_makes_the_device_ask_for_a_reset() {
    let wire = Wire::default();
    wire.0.lock().unwrap().broken = true;
    let mut receiving = guest(Generation::V7_8, options(), wire.clone());
    offer(&mut receiving, 1);
    assert!(needs_reset(&mut receiving));
    let mut sending = guest(Generation::V7_8, options(), wire);
    let bytes = [&HEADER[..], &frame(HOST_MAC, MAC, 1)].concat();
    sending.chain(1, 0, &[Buffer::Out(&bytes)]);
    sending.notify(1);
    assert!(needs_reset(&mut sending));
}

#[test]
fn queues_without_rings_end_the_vm_and_others_are_ignored() {
    let mut guest = guest(Generation::V7_8, options(), Unplugged);
    guest.notify(2);
    assert_eq!(guest.faults.get(), None);
    let net = Net::new(&Generation::V7_8.capabilities(), options(), Box::new(Unplugged));
    let mut guest = GuestDriver::new(Generation::V7_8, net);
    guest.notify(1);
    assert_eq!(guest.faults.get(), None, "the driver is not ready: vmd does not look");
    guest.set_status(4);
    guest.notify(1);
    assert_eq!(guest.faults.get(), Some(&Fault::NullRing { device: DeviceType::Net, queue: 1 }));
}

#[test]
fn the_configuration_is_the_mac_address_byte_by_byte() {
    for (generation, offset) in [(Generation::V7_7, 0x14), (Generation::V7_8, 0x300)] {
        let mut guest = guest(generation, options(), Unplugged);
        for (at, byte) in MAC.0.into_iter().enumerate() {
            for width in [Width::Byte, Width::Word, Width::Dword] {
                assert_eq!(guest.input(offset + at as u16, width), u32::from(byte));
            }
        }
        assert_eq!(guest.input(offset + 6, Width::Word), 0xffff_ffff, "no link status");
    }
}

#[test]
fn checksums_are_left_to_the_device_from_8_0_on() {
    for generation in Generation::ALL {
        let wire = Wire::default();
        let mut guest = guest(generation, options(), wire.clone());
        let new = generation == Generation::V8_0;
        assert_eq!(
            guest.device.state().device_features as u32,
            if new { 0x21 } else { 0x20 },
            "{generation}"
        );
        let mut asking = HEADER[..header(generation)].to_vec();
        asking[0] = 1;
        asking[6..10].copy_from_slice(&[34, 0, 6, 0]);
        let frame = frame(HOST_MAC, MAC, 1);
        let bytes = [asking.as_slice(), &frame].concat();
        guest.chain(1, 0, &[Buffer::Out(&bytes)]);
        guest.notify(1);
        let sent = wire.0.lock().unwrap().sent.clone();
        // Up to 7.9 vmd ignores the header.
        assert_eq!(sent[0] != frame, new, "{generation}");
        assert_eq!((&sent[0][..40], &sent[0][42..]), (&frame[..40], &frame[42..]));
    }
}

#[test]
fn feature_words_beyond_the_second_read_0_from_7_9_on() {
    for (generation, expected) in
        [(Generation::V7_8, 0xffff_ffff), (Generation::V7_9, 0), (Generation::V8_0, 0)]
    {
        let mut guest = guest(generation, options(), Unplugged);
        guest.output(0, Width::Dword, 2);
        assert_eq!(guest.input(4, Width::Dword), expected, "{generation}");
        assert_eq!(guest.input(1, Width::Byte), expected, "{generation}");
    }
}

#[test]
fn a_reset_lowers_the_line() {
    let mut guest = guest(Generation::V7_8, options(), Unplugged);
    send(&mut guest, Generation::V7_8, &frame(HOST_MAC, MAC, 1));
    assert!(guest.line());
    guest.set_status(0);
    assert!(!guest.line());
}

// ---- DHCP ----

/// A client's message: its options, and a change to the BOOTP part.
fn bootp(options: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    message[28..34].copy_from_slice(&MAC.0);
    message.extend([99, 130, 83, 99]);
    message.extend(options);
    message.resize(300, 0);
    change(&mut message);
    udp_frame(&message, 68, 67)
}

fn udp_frame(payload: &[u8], from: u16, to: u16) -> Vec<u8> {
    let udp = UdpRepr { src_port: from, dst_port: to };
    let ip = Ipv4Repr {
        src_addr: Ipv4Address::UNSPECIFIED,
        dst_addr: Ipv4Address::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: 8 + payload.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; 14 + 20 + 8 + payload.len()];
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(MAC.0),
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Ipv4,
    };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &checksums);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut bytes[34..]),
        &ip.src_addr.into(),
        &ip.dst_addr.into(),
        payload.len(),
        |buffer| buffer.copy_from_slice(payload),
        &checksums,
    );
    bytes
}

/// Sends a request to a NIC with `link` and returns the answer without the virtio header; `None` if
/// the request went to the network.
fn ask(link: LocalLink, request: &[u8]) -> Option<Vec<u8>> {
    let wire = Wire::default();
    let options = NetOptions { local: Some(link), ..options() };
    let mut guest = guest(Generation::V7_8, options, wire.clone());
    offer(&mut guest, 2);
    send(&mut guest, Generation::V7_8, request);
    let answer = received(&mut guest).map(|bytes| bytes[12..].to_vec());
    assert_eq!(wire.0.lock().unwrap().sent.is_empty(), answer.is_some());
    answer
}

/// The BOOTP message in an answer, after checks of its headers.
fn message(answer: &[u8]) -> &[u8] {
    let ethernet = EthernetFrame::new_checked(answer).unwrap();
    assert_eq!(ethernet.dst_addr().0, MAC.0);
    assert_eq!(ethernet.src_addr().0, [0xfe, 0xe1, 0xbb, 0xd1, 0xb3, 0x1c], "the guest's plus one");
    let ip = Ipv4Packet::new_checked(&answer[14..]).unwrap();
    assert!(ip.verify_checksum());
    assert_eq!((ip.hop_limit(), answer[15]), (16, 0x10));
    assert_eq!(ip.src_addr(), Ipv4Address::new(100, 64, 1, 2));
    assert_eq!(ip.dst_addr(), Ipv4Address::new(100, 64, 1, 3));
    let udp = UdpPacket::new_checked(&answer[34..]).unwrap();
    assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
    assert_eq!((udp.src_port(), udp.dst_port()), (67, 68));
    &answer[42..]
}

#[test]
fn the_lease_is_infinite() {
    let answer = ask(link(), &bootp(&[53, 1, 1, 255], |_| {})).unwrap();
    let offer = message(&answer);
    assert_eq!(offer.len(), 300);
    assert_eq!(offer[..8], [2, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
    assert_eq!(offer[16..24], [100, 64, 1, 3, 100, 64, 1, 2]);
    assert_eq!(offer[28..34], MAC.0);
    let options = [
        &[99, 130, 83, 99, 53, 1, 2, 51, 4, 255, 255, 255, 255, 54, 4, 100, 64, 1, 2][..],
        &[1, 4, 255, 255, 255, 254, 3, 4, 100, 64, 1, 2, 6, 4, 100, 64, 1, 2, 255, 0],
    ]
    .concat();
    assert_eq!(offer[236..236 + options.len()], options);

    for (wanted, kind) in [([0, 0, 0, 0], 5), ([100, 64, 1, 3], 5), ([10, 0, 0, 1], 6)] {
        let request = [&[0, 0, 53, 1, 3, 50, 4][..], &wanted, &[255]].concat();
        let answer = ask(link(), &bootp(&request, |_| {})).unwrap();
        assert_eq!(message(&answer)[242], kind, "{wanted:?}");
    }
    let answer = ask(link(), &bootp(&[53, 1, 8, 255], |_| {})).unwrap();
    assert_eq!(message(&answer)[242], 6, "anything else is refused");
}

#[test]
fn bootp_gets_no_dhcp_options() {
    let answer = ask(link(), &bootp(&[255], |_| {})).unwrap();
    assert_eq!(message(&answer)[240..246], [1, 4, 255, 255, 255, 254]);
}

#[test]
fn a_guest_that_boots_from_the_network_gets_a_file_and_a_name() {
    let netboot = |name: &str| LocalLink { netboot: Some(name.to_owned()), ..link() };
    let answer = ask(netboot("myvm"), &bootp(&[53, 1, 1, 255], |_| {})).unwrap();
    let offer = message(&answer);
    assert_eq!(&offer[108..121], b"auto_install\0");
    assert!(offer.windows(7).any(|window| window == b"\x0c\x04myvm\xff"));
    for name in ["x", "-bad", "under_score"] {
        let answer = ask(netboot(name), &bootp(&[53, 1, 1, 255], |_| {})).unwrap();
        assert_eq!(message(&answer)[236 + 37], 255, "{name}");
    }
}

/// A change to a message.
type Change = fn(&mut Vec<u8>);

#[test]
fn requests_that_vmd_does_not_answer_go_to_the_network() {
    let discover = [53, 1, 1, 255];
    assert_eq!(ask(link(), &frame(HOST_MAC, MAC, 0)), None);
    assert_eq!(ask(link(), &udp_frame(&[0; 300], 68, 69)), None, "port");
    let changes: [(&str, Change); 6] = [
        ("reply", |message| message[0] = 2),
        ("relayed", |message| message[3] = 1),
        ("has an address", |message| message[12] = 10),
        ("boot file", |message| message[108] = b'x'),
        ("for another client", |message| message[33] ^= 1),
        ("not Ethernet", |message| message[1] = 6),
    ];
    for (name, change) in changes {
        assert_eq!(ask(link(), &bootp(&discover, change)), None, "{name}");
    }
    let mut damaged = bootp(&discover, |_| {});
    damaged[60] ^= 1;
    assert_eq!(ask(link(), &damaged), None, "checksum");
    let mut foreign = bootp(&discover, |_| {});
    foreign[11] ^= 1;
    assert_eq!(ask(link(), &foreign), None, "sender");
}

#[test]
fn answers_that_the_guest_does_not_take_are_limited() {
    let options = NetOptions { local: Some(link()), ..options() };
    let mut guest = guest(Generation::V7_8, options, Wire::default());
    for _ in 0..200 {
        send(&mut guest, Generation::V7_8, &bootp(&[53, 1, 1, 255], |_| {}));
    }
    offer(&mut guest, 128);
    assert_eq!(std::iter::from_fn(|| received(&mut guest)).count(), 64);
}

#[test]
fn only_the_first_request_of_a_batch_is_answered() {
    let wire = Wire::default();
    let options = NetOptions { local: Some(link()), ..options() };
    let mut guest = guest(Generation::V7_8, options, wire.clone());
    offer(&mut guest, 4);
    let bytes = [&HEADER[..], &bootp(&[53, 1, 1, 255], |_| {})].concat();
    guest.chain(1, 0, &[Buffer::Out(&bytes)]);
    guest.chain(1, 1, &[Buffer::Out(&bytes)]);
    guest.notify(1);
    assert!(received(&mut guest).is_some());
    assert!(received(&mut guest).is_none());
    assert_eq!(wire.0.lock().unwrap().sent.len(), 1);
}

// ---- the gateway ----

fn local_guest(generation: Generation) -> GuestDriver<Net> {
    let gateway = Gateway::new(&link(), Arc::new(ManualClock::new(5_000_000_000, 0)));
    let options = NetOptions { local: Some(link()), ..options() };
    let mut guest = guest(generation, options, gateway);
    offer(&mut guest, 32);
    guest
}

/// Sends a frame and returns the answer.
fn exchange(guest: &mut GuestDriver<Net>, generation: Generation, frame: &[u8]) -> Vec<u8> {
    send(guest, generation, frame);
    let bytes = received(guest).expect("an answer");
    bytes[header(generation)..].to_vec()
}

fn to_gateway(protocol: EthernetProtocol, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; 14 + length];
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(MAC.0),
        dst_addr: if protocol == EthernetProtocol::Arp {
            EthernetAddress::BROADCAST
        } else {
            EthernetAddress(HOST_MAC.0)
        },
        ethertype: protocol,
    };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    bytes
}

/// The guest's question for the gateway's MAC address.
fn arp_request() -> Vec<u8> {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(MAC.0),
        source_protocol_addr: link().guest,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: link().host,
    };
    let mut bytes = to_gateway(EthernetProtocol::Arp, request.buffer_len());
    request.emit(&mut ArpPacket::new_unchecked(&mut bytes[14..]));
    bytes
}

fn arp(guest: &mut GuestDriver<Net>, generation: Generation) {
    let answer = exchange(guest, generation, &arp_request());
    let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, .. } =
        ArpRepr::parse(&ArpPacket::new_checked(&answer[14..]).unwrap()).unwrap()
    else {
        panic!("not for Ethernet");
    };
    assert_eq!(operation, ArpOperation::Reply);
    assert_eq!(source_hardware_addr.0, HOST_MAC.0);
    assert_eq!(source_protocol_addr, link().host);
}

fn ip(protocol: IpProtocol, length: usize) -> Ipv4Repr {
    Ipv4Repr {
        src_addr: link().guest,
        dst_addr: link().host,
        next_header: protocol,
        payload_len: length,
        hop_limit: 64,
    }
}

#[test]
fn the_gateway_answers_arp_ping_and_dhcp() {
    for generation in [Generation::V7_7, Generation::V7_8] {
        let mut guest = local_guest(generation);
        let answer = exchange(&mut guest, generation, &bootp(&[53, 1, 1, 255], |_| {}));
        assert_eq!(message(&answer)[16..20], link().guest.octets());
        arp(&mut guest, generation);
        let checksums = ChecksumCapabilities::default();
        for seq_no in 0..3 {
            let ping = Icmpv4Repr::EchoRequest { ident: 7, seq_no, data: b"abcdefgh" };
            let ip = ip(IpProtocol::Icmp, ping.buffer_len());
            let mut bytes = to_gateway(EthernetProtocol::Ipv4, 20 + ping.buffer_len());
            ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &checksums);
            ping.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[34..]), &checksums);
            let answer = exchange(&mut guest, generation, &bytes);
            let reply = Icmpv4Packet::new_checked(&answer[34..]).unwrap();
            assert_eq!(
                Icmpv4Repr::parse(&reply, &checksums).unwrap(),
                Icmpv4Repr::EchoReply { ident: 7, seq_no, data: b"abcdefgh" }
            );
        }
    }
}

/// A segment from the guest's port `port` to the echo service.
fn segment(port: u16, control: TcpControl, seq: i32, ack: Option<i32>, payload: &[u8]) -> Vec<u8> {
    segment_to(7, port, control, seq, ack, payload)
}

/// A segment from the guest's port `port` to the gateway's port `to`.
fn segment_to(
    to: u16,
    port: u16,
    control: TcpControl,
    seq: i32,
    ack: Option<i32>,
    payload: &[u8],
) -> Vec<u8> {
    let tcp = TcpRepr {
        src_port: port,
        dst_port: to,
        control,
        seq_number: TcpSeqNumber(seq),
        ack_number: ack.map(TcpSeqNumber),
        window_len: 8192,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let ip = ip(IpProtocol::Tcp, tcp.buffer_len());
    let mut bytes = to_gateway(EthernetProtocol::Ipv4, 20 + tcp.buffer_len());
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &checksums);
    tcp.emit(
        &mut TcpPacket::new_unchecked(&mut bytes[34..]),
        &ip.src_addr.into(),
        &ip.dst_addr.into(),
        &checksums,
    );
    bytes
}

/// What TCP says in all the frames that the guest has received: flags as text, acknowledged, data.
fn segments(guest: &mut GuestDriver<Net>) -> (i32, i32, Vec<u8>, bool) {
    let (mut seq, mut ack, mut data, mut fin) = (0, 0, Vec::new(), false);
    while let Some(bytes) = received(guest) {
        let packet = TcpPacket::new_checked(&bytes[12 + 34..]).unwrap();
        assert!(!packet.rst());
        seq = packet.seq_number().0;
        ack = packet.ack_number().0;
        fin |= packet.fin();
        data.extend(packet.payload());
    }
    (seq, ack, data, fin)
}

#[test]
fn tcp_is_echoed() {
    let generation = Generation::V7_8;
    let mut guest = local_guest(generation);
    arp(&mut guest, generation);
    for round in 0..20 {
        offer(&mut guest, 16);
        let (port, mine) = (40000 + round, 1000);
        send(&mut guest, generation, &segment(port, TcpControl::Syn, mine, None, b""));
        let (theirs, ack, ..) = segments(&mut guest);
        assert_eq!(ack, mine + 1);
        send(&mut guest, generation, &segment(port, TcpControl::None, mine + 1, Some(theirs + 1), b""));
        send(&mut guest, generation, &segment(port, TcpControl::Psh, mine + 1, Some(theirs + 1), b"hello"));
        let (_, ack, data, _) = segments(&mut guest);
        assert_eq!((ack, data.as_slice()), (mine + 6, b"hello".as_slice()));
        send(&mut guest, generation, &segment(port, TcpControl::Fin, mine + 6, Some(theirs + 6), b""));
        let (_, ack, _, fin) = segments(&mut guest);
        assert_eq!((ack, fin), (mine + 7, true));
        send(&mut guest, generation, &segment(port, TcpControl::None, mine + 7, Some(theirs + 7), b""));
        segments(&mut guest);
    }
}

/// Connects port 40000 of a guest to the gateway's port `port`, and returns the gateway's next sequence number.
fn connected(guest: &mut GuestDriver<Net>, port: u16) -> i32 {
    arp(guest, Generation::V7_8);
    offer(guest, 16);
    send(guest, Generation::V7_8, &segment_to(port, 40000, TcpControl::Syn, 1000, None, b""));
    segments(guest).0 + 1
}

#[test]
fn the_generator_sends_as_soon_as_it_is_connected() {
    let mut guest = local_guest(Generation::V7_8);
    let theirs = connected(&mut guest, 19);
    send(&mut guest, Generation::V7_8, &segment_to(19, 40000, TcpControl::None, 1001, Some(theirs), b""));
    let (.., data, _) = segments(&mut guest);
    assert!(!data.is_empty());
}

#[test]
fn what_is_discarded_is_acknowledged() {
    let mut guest = local_guest(Generation::V7_8);
    let theirs = connected(&mut guest, 9);
    let hello = segment_to(9, 40000, TcpControl::Psh, 1001, Some(theirs), b"hello");
    send(&mut guest, Generation::V7_8, &hello);
    let (_, ack, data, _) = segments(&mut guest);
    assert_eq!((ack, data), (1006, vec![]));
}

#[test]
fn a_gateway_has_a_deadline_while_frames_wait() {
    let clock = Arc::new(ManualClock::new(5_000_000_000, 0));
    let mut gateway = Gateway::new(&link(), clock.clone());
    assert_eq!(gateway.deadline(), None);
    gateway.send(&arp_request()).unwrap();
    assert_eq!(gateway.deadline(), Some(5_010_000_000));
    assert!(gateway.receive(&mut [0; 64]).unwrap().is_some());
    clock.advance(10_000_000);
    gateway.expire();
    assert_eq!(gateway.deadline(), None);
}

// ---- real file descriptors ----

#[test]
fn frames_cross_a_stream_socket_with_their_length() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut guest = guest(Generation::V7_8, options(), StreamBackend::new(near).unwrap());
    assert!(guest.device.backend_fd().is_some());
    offer(&mut guest, 4);
    send(&mut guest, Generation::V7_8, &frame(HOST_MAC, MAC, 5));
    let mut bytes = vec![0; 64];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [&[0, 0, 0, 60][..], &frame(HOST_MAC, MAC, 5)].concat());

    let coming =
        [&[0, 0, 0, 60][..], &frame(MAC, HOST_MAC, 6), &[0, 0, 0, 60], &frame(MAC, HOST_MAC, 7)].concat();
    far.write_all(&coming[..30]).unwrap();
    guest.device.receive();
    assert_eq!(received(&mut guest), None, "half a frame");
    far.write_all(&coming[30..]).unwrap();
    guest.device.receive();
    assert_eq!(received(&mut guest).unwrap()[12..], frame(MAC, HOST_MAC, 6));
    assert_eq!(received(&mut guest).unwrap()[12..], frame(MAC, HOST_MAC, 7));

    drop(far);
    guest.device.receive();
    send(&mut guest, Generation::V7_8, &frame(HOST_MAC, MAC, 5));
    assert!(guest.device.backend_fd().is_none());
    assert_eq!(guest.status() & 0x40, 0, "the cable is out, the device is well");
}

#[test]
fn a_full_stream_drops_whole_frames_only() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut stream = StreamBackend::new(near).unwrap();
    for number in 0..4000u32 {
        stream.send(&[number as u8; 1400]).unwrap();
    }
    far.set_nonblocking(true).unwrap();
    let mut bytes: Vec<u8> = Vec::new();
    let mut rounds = 0;
    while rounds < 8 {
        let mut buffer = vec![0; 1 << 20];
        if let Ok(read) = far.read(&mut buffer) {
            bytes.extend(&buffer[..read]);
        } else {
            rounds += 1;
            stream.send(&[0xff; 1400]).unwrap();
        }
    }
    assert_eq!(bytes.len() % 1404, 0);
    for frame in bytes.chunks(1404) {
        assert_eq!(frame[..4], [0, 0, 5, 120]);
        assert!(frame[4..].iter().all(|&byte| byte == frame[4]));
    }
}

#[test]
fn an_excessive_length_on_the_stream_makes_the_device_ask_for_a_reset() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut guest = guest(Generation::V7_8, options(), StreamBackend::new(near).unwrap());
    far.write_all(&[0xff; 8]).unwrap();
    offer(&mut guest, 1);
    assert!(needs_reset(&mut guest));
    assert!(guest.device.is_closed(), "where the next frame starts is unknown");
}

#[test]
fn a_tap_is_read_and_written_frame_by_frame() {
    // A datagram socket keeps frame boundaries as a tap does and needs no privileges.
    let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let tap = TapBackend::new(std::fs::File::from(std::os::fd::OwnedFd::from(near)));
    let mut guest = guest(Generation::V7_8, options(), tap);
    offer(&mut guest, 2);
    send(&mut guest, Generation::V7_8, &frame(HOST_MAC, MAC, 5));
    let mut bytes = [0; 100];
    assert_eq!(far.recv(&mut bytes).unwrap(), 60);
    far.send(&frame(MAC, HOST_MAC, 6)).unwrap();
    guest.device.receive();
    assert_eq!(received(&mut guest).unwrap()[12..], frame(MAC, HOST_MAC, 6));
}
