//! vmd's DHCP and BOOTP server, which answers on local interfaces before the host sees the request.

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpHardware, DhcpMessageType, DhcpOpCode, DhcpOption, DhcpPacket, EthernetAddress, EthernetFrame,
    EthernetProtocol, IpProtocol, Ipv4Address, Ipv4Packet, UdpPacket,
};

use super::{frame::ETHERNET_HEADER, local::LocalLink, mac::MacAddr};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Length of a BOOTP message without options, in bytes.
const FIXED: usize = 236;
/// Length of the shortest BOOTP message in bytes.
const MIN_MESSAGE: usize = 300;
/// Length of the IP and UDP headers in bytes.
const IP_UDP: usize = 28;
/// Length of the longest IP packet in bytes.
const MTU: usize = 1500;
/// Offset of the boot file name in a BOOTP message, in bytes.
const BOOT_FILE: usize = 108;
/// The number that precedes the options of DHCP, and its length in bytes.
const MAGIC: u32 = 0x6382_5363;
const MAGIC_LENGTH: usize = 4;

/// DHCP options.
mod option {
    pub(super) const SUBNET_MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const NAME_SERVER: u8 = 6;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const MESSAGE_TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
}

/// The fields of a request that vmd uses.
struct Request {
    transaction: u32,
    /// DHCP's message type; `None` for BOOTP.
    message_type: Option<DhcpMessageType>,
    wanted: Ipv4Addr,
}

/// The answer to `frame`, or `None` if vmd does not answer it. vmd answers requests to broadcast or
/// the host's address, from the NIC's own, by a client without an address, not relayed, without a
/// boot file name. A client that renews its lease has an address, so its request goes to the
/// network (`dhcp_request` in dhcp.c).
pub(super) fn reply(link: &LocalLink, mac: MacAddr, frame: &[u8]) -> Option<Vec<u8>> {
    if !(MIN_MESSAGE + ETHERNET_HEADER..=MTU + ETHERNET_HEADER).contains(&frame.len()) {
        return None;
    }
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let to = ethernet.dst_addr();
    if ethernet.ethertype() != EthernetProtocol::Ipv4
        || ethernet.src_addr().0 != mac.0
        || !(to.is_broadcast() || to.0 == link.host_mac.0)
    {
        return None;
    }
    let request = parse(ethernet.payload(), mac)?;
    build(link, mac, &request)
}

fn parse(packet: &[u8], mac: MacAddr) -> Option<Request> {
    let ip = Ipv4Packet::new_checked(packet).ok()?;
    if ip.version() != 4 || ip.next_header() != IpProtocol::Udp || !ip.verify_checksum() {
        return None;
    }
    let header = usize::from(ip.header_len());
    let udp = UdpPacket::new_checked(packet.get(header..)?).ok()?;
    if udp.src_port() != CLIENT_PORT
        || udp.dst_port() != SERVER_PORT
        || !udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into())
    {
        return None;
    }
    // As in vmd, the message extends to the end of the frame instead of the datagram's.
    let message = packet.get(header + 8..).filter(|message| message.len() >= FIXED)?;
    let bootp = DhcpPacket::new_unchecked(message);
    if bootp.opcode() != DhcpOpCode::Request
        || bootp.hardware_type() != ArpHardware::Ethernet
        || bootp.hardware_len() != 6
        || bootp.hops() != 0
        || bootp.client_hardware_address().0 != mac.0
        || !bootp.client_ip().is_unspecified()
        || message[BOOT_FILE] != 0
    {
        return None;
    }
    let mut request =
        Request { transaction: bootp.transaction_id(), message_type: None, wanted: Ipv4Addr::UNSPECIFIED };
    let options = message.len() - FIXED;
    if options > MAGIC_LENGTH + 3 && options < MTU - IP_UDP - FIXED && bootp.magic_number() == MAGIC {
        for option in bootp.options() {
            match (option.kind, option.data) {
                // Type 0 means BOOTP again.
                (option::MESSAGE_TYPE, &[value]) => {
                    request.message_type = (value != 0).then(|| DhcpMessageType::from(value));
                }
                (option::REQUESTED_ADDRESS, &[a, b, c, d]) => request.wanted = Ipv4Addr::new(a, b, c, d),
                _ => {}
            }
        }
    }
    Some(request)
}

fn build(link: &LocalLink, mac: MacAddr, request: &Request) -> Option<Vec<u8>> {
    let host = link.host.octets();
    let granted = request.wanted.is_unspecified() || request.wanted == link.guest;
    let answer = request.message_type.map(|message_type| {
        [match message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request if granted => DhcpMessageType::Ack,
            _ => DhcpMessageType::Nak,
        }
        .into()]
    });
    let mut options = Vec::new();
    let mut add = |kind, data| options.push(DhcpOption { kind, data });
    if let Some(answer) = &answer {
        add(option::MESSAGE_TYPE, &answer[..]);
        add(option::LEASE_TIME, &[0xff; 4]);
        add(option::SERVER, &host);
    }
    add(option::SUBNET_MASK, &[255, 255, 255, 254]);
    add(option::ROUTER, &host);
    add(option::NAME_SERVER, &host);
    if let Some(name) = link.netboot.as_deref().filter(|name| name.len() > 1 && is_host_name(name)) {
        add(option::HOST_NAME, name.as_bytes());
    }

    let length = FIXED + MAGIC_LENGTH + options.iter().map(|option| 2 + option.data.len()).sum::<usize>() + 1;
    let mut message = vec![0; length.max(MIN_MESSAGE)];
    if link.netboot.is_some() {
        const FILE: &[u8] = b"auto_install";
        message[BOOT_FILE..BOOT_FILE + FILE.len()].copy_from_slice(FILE);
    }
    let mut reply = DhcpPacket::new_unchecked(&mut message[..]);
    reply.set_opcode(DhcpOpCode::Reply);
    reply.set_hardware_type(ArpHardware::Ethernet);
    reply.set_hardware_len(6);
    reply.set_transaction_id(request.transaction);
    reply.set_your_ip(link.guest);
    reply.set_server_ip(link.host);
    reply.set_client_hardware_address(EthernetAddress(mac.0));
    reply.set_magic_number(MAGIC);
    let mut writer = reply.options_mut();
    for option in options {
        writer.emit(option).ok()?;
    }
    writer.end().ok()?;
    Some(frame(link, mac, &message))
}

/// Whether a VM's name is a valid host name (`res_hnok(3)`) and short enough for an option.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.len() < 256 && name.split('.').all(label)
}

/// Wraps a message into UDP, IP and Ethernet. The sender's MAC address is the guest's plus one in
/// the last byte instead of the host's.
fn frame(link: &LocalLink, mac: MacAddr, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET_HEADER + IP_UDP + message.len()];
    let mut sender = mac.0;
    sender[5] = sender[5].wrapping_add(1);
    let mut ethernet = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.set_dst_addr(EthernetAddress(mac.0));
    ethernet.set_src_addr(EthernetAddress(sender));
    ethernet.set_ethertype(EthernetProtocol::Ipv4);

    let (from, to): (Ipv4Address, Ipv4Address) = (link.host, link.guest);
    let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
    ip.set_version(4);
    ip.set_header_len(20);
    // IPTOS_LOWDELAY.
    ip.set_dscp(0x10 >> 2);
    ip.set_total_len((IP_UDP + message.len()) as u16);
    ip.set_hop_limit(16);
    ip.set_next_header(IpProtocol::Udp);
    ip.set_src_addr(from);
    ip.set_dst_addr(to);
    ip.fill_checksum();

    let mut udp = UdpPacket::new_unchecked(ip.payload_mut());
    udp.set_src_port(SERVER_PORT);
    udp.set_dst_port(CLIENT_PORT);
    udp.set_len((8 + message.len()) as u16);
    udp.payload_mut().copy_from_slice(message);
    udp.fill_checksum(&from.into(), &to.into());
    bytes
}
