//! The output queue of the host's tap, which holds frames until vmd has room for them in the guest's
//! receive queue.

use std::collections::VecDeque;

use smoltcp::wire::{EthernetFrame, EthernetProtocol, Ipv4Packet};

/// Most frames that wait; the next output fails (IFQ_MAXLEN).
pub(super) const MAX_WAITING: usize = 256;

/// Frames that the host has put out and vmd has not read.
#[derive(Debug, Default)]
pub(super) struct OutputQueue {
    frames: VecDeque<Vec<u8>>,
    /// Number of frames lost because the queue was full: failed outputs in netstat(1).
    failed: u64,
    /// Whether an output has failed since the sender was last called.
    refusing: bool,
    /// The ID of the latest datagram.
    id: u16,
}

impl OutputQueue {
    /// Puts out a frame. An IPv4 datagram gets another ID: OpenBSD's are random, whereas smoltcp's
    /// are all 0 (`ip_randomid`).
    pub(super) fn push(&mut self, mut frame: Vec<u8>) {
        if self.frames.len() >= MAX_WAITING {
            self.failed += 1;
            self.refusing = true;
            return;
        }
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
        if ethernet.ethertype() == EthernetProtocol::Ipv4 {
            // All 65536 IDs in an order without neighbours (Hull and Dobell).
            self.id = self.id.wrapping_mul(0x6255).wrapping_add(0x3619);
            let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
            ip.set_ident(self.id);
            ip.fill_checksum();
        }
        self.frames.push_back(frame);
    }

    /// Takes the oldest frame.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    /// Whether no frame waits.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether TCP goes on to send: it stops at the first output that fails and sends no more until
    /// it is called again, by an acknowledgement or a timer (`tcp_output`).
    pub(super) const fn accepts(&self) -> bool {
        !self.refusing
    }

    /// The sender is called again.
    pub(super) const fn resume(&mut self) {
        self.refusing = false;
    }

    /// Number of outputs that failed.
    pub(super) const fn failed(&self) -> u64 {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with an empty IPv4 datagram.
    fn frame() -> Vec<u8> {
        let mut frame = vec![0; 34];
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
        ethernet.set_ethertype(EthernetProtocol::Ipv4);
        let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_total_len(20);
        frame
    }

    #[test]
    fn the_output_after_the_256th_fails_and_stops_the_sender() {
        let mut queue = OutputQueue::default();
        (0..MAX_WAITING).for_each(|_| queue.push(frame()));
        assert!(queue.accepts());
        queue.push(frame());
        assert!(!queue.accepts());
        queue.resume();
        let waiting = std::iter::from_fn(|| queue.pop()).count();
        assert_eq!((waiting, queue.failed(), queue.accepts()), (MAX_WAITING, 1, true));
    }

    #[test]
    fn ids_of_datagrams_do_not_count_up() {
        let mut queue = OutputQueue::default();
        (0..4).for_each(|_| queue.push(frame()));
        let ids: Vec<u16> = std::iter::from_fn(|| queue.pop())
            .map(|frame| {
                let ip = Ipv4Packet::new_checked(frame[14..].to_vec()).unwrap();
                assert!(ip.verify_checksum());
                ip.ident()
            })
            .collect();
        assert!(ids.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) > 1), "{ids:?}");
    }
}
