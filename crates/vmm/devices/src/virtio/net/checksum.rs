//! Completion of checksums that the guest leaves to the device (8.0).

use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE};

/// Offset of the checksum in a TCP header.
const TCP: u16 = 16;
/// Offset of the checksum in a UDP header.
const UDP: u16 = 6;

/// Completes the checksum that the virtio header `header` requests. Returns false if the frame must
/// be dropped: offload not negotiated (`allowed`), a protocol other than TCP and UDP, for which
/// tap(4) has no flags, a range outside the frame, or any segmentation.
pub(super) fn complete(header: &[u8; 12], frame: &mut [u8], allowed: bool) -> bool {
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (flags, segmentation) = (u32::from(header[0]), u32::from(header[1]));
    if flags & !VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 || segmentation != VIRTIO_NET_HDR_GSO_NONE {
        return false;
    }
    if flags == 0 {
        return true;
    }
    let (start, offset) = (word(6), word(8));
    if !allowed || !matches!(offset, TCP | UDP) {
        return false;
    }
    let Some(segment) = frame.get_mut(usize::from(start)..) else {
        return false;
    };
    let at = usize::from(offset);
    if segment.len() < at + 2 {
        return false;
    }
    // The checksum field holds the guest's sum of the pseudo header. It can have any value, so the
    // sum is taken over the bytes as they are instead of through smoltcp, which would recompute the
    // pseudo header.
    let sum = segment.chunks(2).fold(0u32, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum + u32::from(word)
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    let mut checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    if checksum == 0 && offset == UDP {
        // A UDP checksum of zero means "no checksum".
        checksum = 0xffff;
    }
    segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::{Ipv4Address, UdpPacket};

    use super::*;

    fn header(flags: u8, segmentation: u8, start: u16, offset: u16) -> [u8; 12] {
        let mut header = [0; 12];
        header[..2].copy_from_slice(&[flags, segmentation]);
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header
    }

    /// A frame with only the pseudo header's sum in its UDP checksum.
    fn frame(payload: &[u8]) -> Vec<u8> {
        let (from, to) = (Ipv4Address::new(10, 0, 0, 1), Ipv4Address::new(10, 0, 0, 2));
        let mut frame = vec![0; 34 + 8 + payload.len()];
        let length = 8 + payload.len() as u16;
        let mut udp = UdpPacket::new_unchecked(&mut frame[34..]);
        udp.set_src_port(1234);
        udp.set_dst_port(53);
        udp.set_len(length);
        udp.payload_mut().copy_from_slice(payload);
        let words = [from.octets(), to.octets()].concat();
        let pseudo: u32 = words.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        udp.set_checksum((pseudo + 17 + u32::from(length)) as u16);
        frame
    }

    #[test]
    fn checksums_are_completed() {
        for payload in [&b"even"[..], b"odd", b""] {
            let mut frame = frame(payload);
            assert!(complete(&header(1, 0, 34, 6), &mut frame, true));
            let udp = UdpPacket::new_checked(&frame[34..]).unwrap();
            let (from, to) = (Ipv4Address::new(10, 0, 0, 1), Ipv4Address::new(10, 0, 0, 2));
            assert!(udp.checksum() != 0 && udp.verify_checksum(&from.into(), &to.into()));
        }
    }

    #[test]
    fn unrequested_checksums_stay_and_invalid_requests_are_dropped() {
        let original = frame(b"data");
        let mut changed = original.clone();
        assert!(complete(&header(0, 0, 34, 6), &mut changed, true));
        assert_eq!(changed, original);
        let refused = [
            (header(1, 0, 34, 6), false),
            (header(1, 0, 34, 8), true),
            (header(1, 0, 39, 6), true),
            (header(1, 0, 47, 6), true),
            (header(1, 0, u16::MAX, 16), true),
            (header(2, 0, 34, 6), true),
            (header(1, 1, 34, 16), true),
            (header(0, 1, 0, 0), true),
        ];
        for (header, allowed) in refused {
            assert!(!complete(&header, &mut changed, allowed), "{header:?}");
            assert_eq!(changed, original);
        }
    }
}
