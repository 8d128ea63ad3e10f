//! As much of rtnetlink(7) as it takes to give an interface an address: two requests.

use std::{io, net::Ipv4Addr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, socket};

const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Size of a message's header in bytes.
const HEADER: usize = 16;

/// Gives the interface with this index an address, and takes it up.
pub(super) fn configure(index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    request(RTM_NEWADDR, NLM_F_CREATE, &new_address(index, address, prefix))?;
    request(RTM_NEWLINK, 0, &link_up(index))
}

/// `struct ifaddrmsg` and its attributes.
fn new_address(index: u32, address: Ipv4Addr, prefix: u8) -> Vec<u8> {
    let [family, _] = AddressFamily::INET.as_raw().to_le_bytes();
    let mut body = vec![family, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(8u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(address.octets());
    }
    body
}

/// `struct ifinfomsg`: index, flags, and which of the flags are meant.
fn link_up(index: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    for word in [index, IFF_UP, IFF_UP] {
        body.extend(word.to_ne_bytes());
    }
    body
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("messages are short");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST_ACK).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    send(&socket, &message(kind, flags, body), SendFlags::empty())?;
    let mut answer = [0; 512];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    error_of(&answer[..length])
}

/// The kernel's answer: an error number, 0 if all is well, negative otherwise.
fn error_of(answer: &[u8]) -> io::Result<()> {
    let number = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    match (answer.get(4..6) == Some(&NLMSG_ERROR.to_ne_bytes()), number.map(i32::from_ne_bytes)) {
        (true, Some(0)) => Ok(()),
        (true, Some(number)) => Err(io::Error::from_raw_os_error(-number)),
        _ => Err(io::Error::other("rtnetlink gives another answer than was asked for")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_long_as_they_say() {
        let address = new_address(2, Ipv4Addr::new(100, 64, 1, 3), 31);
        let message = message(RTM_NEWADDR, NLM_F_CREATE, &address);
        assert_eq!(message.len(), 40);
        assert_eq!(message[..4], 40u32.to_ne_bytes());
        assert_eq!(message[6..8], 0x405u16.to_ne_bytes());
        assert_eq!(message[16..24], [2, 31, 0, 0, 2, 0, 0, 0]);
        assert_eq!(message[28..32], [100, 64, 1, 3]);
        assert_eq!(link_up(2).len(), 16);
    }

    #[test]
    fn the_kernels_refusal_is_an_error() {
        let mut answer = message(NLMSG_ERROR, 0, &0i32.to_ne_bytes());
        error_of(&answer).unwrap();
        answer[HEADER..HEADER + 4].copy_from_slice(&(-17i32).to_ne_bytes());
        assert_eq!(error_of(&answer).unwrap_err().raw_os_error(), Some(17));
        assert!(error_of(&answer[..8]).is_err());
    }
}
