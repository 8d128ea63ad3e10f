//! Network interfaces: vmd's vionet.

mod backend;
mod checksum;
mod dhcp;
mod gateway;
mod local;
mod mac;

use std::{collections::VecDeque, fmt, os::fd::BorrowedFd};

use virtio_bindings::{
    virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_MAC},
    virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_NEXT, VRING_USED_F_NO_NOTIFY},
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Generation;

pub use self::{
    backend::{Backend, Stream, Tap, Unplugged},
    gateway::Gateway,
    local::{AddressError, LocalLink, LocalPrefix},
    mac::{MacAddr, ParseMacError},
};
use super::{
    DeviceState, Fault, GuestRam, Kind, VirtioDevice, VirtioPci,
    ring::{Ring, in_one_region},
};
use crate::bus::Width;

/// The queue on which the guest receives.
const RX: u16 = 0;
/// The queue on which the guest sends.
const TX: u16 = 1;

/// Length of an Ethernet header, and the shortest frame that vmd takes or gives.
const ETHERNET_HEADER: usize = 14;
/// The longest frame: what OpenBSD's tap(4) takes (`TUNMRU`).
const MAX_FRAME: usize = 16384;
/// How many segments a chain may have, vmd's array of I/O vectors.
const MAX_SEGMENTS: usize = 1024;

/// What a NIC is like.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Whether frames are dropped that are sent from another address, or are neither multicast nor for this one
    /// (`locked lladdr` in vm.conf(5)).
    pub locked: bool,
    /// Whether vmd answers DHCP itself, and with which addresses (`vmctl start -L`).
    pub local: Option<LocalLink>,
}

/// A NIC.
pub struct Net {
    options: NetOptions,
    backend: Box<dyn Backend>,
    /// Answers of vmd's own that wait for room in the guest's queue.
    injected: VecDeque<Vec<u8>>,
    /// The guest has notified its receive queue since the last reset; vmd does not look at the tap before that.
    receiving: bool,
    /// Length of the virtio header: 12 bytes from 7.8 on, 10 before.
    header: usize,
    buffer: Vec<u8>,
}

impl Net {
    /// The network device of `generation` on `backend`.
    pub fn new(generation: Generation, options: NetOptions, backend: Box<dyn Backend>) -> Self {
        Self {
            options,
            backend,
            injected: VecDeque::new(),
            receiving: false,
            header: if generation == Generation::V7_7 { 10 } else { 12 },
            buffer: vec![0; MAX_FRAME],
        }
    }

    /// Its MAC address.
    pub const fn mac(&self) -> MacAddr {
        self.options.mac
    }

    /// Moves frames into the guest's buffers until there are no more of either. `Ok(None)` for a chain so malformed
    /// that the device must be reset.
    fn fill(&mut self, io: &mut DeviceState) -> Result<Option<bool>, Fault> {
        let ring = io.ring(RX)?;
        // The guest need not tell about new buffers: vmd finds them when there is a frame.
        ring.set_used_flags(VRING_USED_F_NO_NOTIFY as u16)?;
        let first = io.queues[usize::from(RX)].last_avail;
        let mut index = first;
        while index != ring.avail_index()? {
            let head = ring.avail_entry(index)?;
            let Some(chain) = self.receive_chain(&io.ram, &ring, head)? else {
                return Ok(None);
            };
            let Ok(frame) = self.next_frame() else {
                return Ok(None);
            };
            let Some(length) = frame else {
                break;
            };
            if !self.put_frame(&io.ram, &chain, length) {
                return Ok(None);
            }
            let used = length.min(chain.room) + self.header;
            ring.push_used(head, used as u32)?;
            index = index.wrapping_add(1);
        }
        let raise = index != first && u32::from(ring.avail_flags()?) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        io.queues[usize::from(RX)].last_avail = index;
        Ok(Some(raise))
    }

    /// The buffers of a chain into which a frame may go, or `None` if it is malformed: too short for the header in
    /// its first descriptor or for an Ethernet header in all, not writable, outside RAM or without an end.
    fn receive_chain(&self, ram: &GuestRam, ring: &Ring<'_>, head: u16) -> Result<Option<Chain>, Fault> {
        let Some(chain) = self.chain(ram, ring, head, true)? else {
            return Ok(None);
        };
        Ok((chain.room >= ETHERNET_HEADER).then_some(chain))
    }

    /// Walks a chain whose descriptors must all be writable, or all not.
    fn chain(
        &self,
        ram: &GuestRam,
        ring: &Ring<'_>,
        head: u16,
        writable: bool,
    ) -> Result<Option<Chain>, Fault> {
        let mut descriptor = ring.descriptor(head & ring.mask())?;
        let (address, length) = (descriptor.addr().0, descriptor.len() as usize);
        if descriptor.is_write_only() != writable || length < self.header {
            return Ok(None);
        }
        let body = (address.wrapping_add(self.header as u64), length - self.header);
        // vmd looks at all of the first buffer when it receives, at what is behind the header when it sends.
        let (checked, checked_length) = if writable { (address, length) } else { body };
        if checked_length > 0 && !in_one_region(ram, checked, checked_length as u64) {
            return Ok(None);
        }
        let mut chain = Chain { header: address, segments: Vec::new(), room: body.1 };
        if writable || body.1 > 0 {
            chain.segments.push(body);
        }
        while has_next(&descriptor) {
            descriptor = ring.next(&descriptor)?;
            let (address, length) = (descriptor.addr().0, descriptor.len() as usize);
            if descriptor.is_write_only() != writable || !in_one_region(ram, address, length as u64) {
                return Ok(None);
            }
            chain.segments.push((address, length));
            chain.room += length;
            if chain.segments.len() >= MAX_SEGMENTS {
                return Ok(None);
            }
        }
        Ok(Some(chain))
    }

    /// Puts the next frame for the guest into the buffer and returns its length; `None` when there is none.
    fn next_frame(&mut self) -> std::io::Result<Option<usize>> {
        loop {
            let length = if let Some(frame) = self.injected.pop_front() {
                self.buffer[..frame.len()].copy_from_slice(&frame);
                frame.len()
            } else {
                match self.backend.receive(&mut self.buffer) {
                    Ok(Some(length)) => length,
                    Ok(None) => return Ok(None),
                    Err(error) => {
                        tracing::warn!(%error, "vionet: cannot receive");
                        return Err(error);
                    }
                }
            };
            if length >= ETHERNET_HEADER && self.lets_in(&self.buffer[..length]) {
                return Ok(Some(length));
            }
        }
    }

    fn lets_in(&self, frame: &[u8]) -> bool {
        !self.options.locked || frame[0] & 1 != 0 || frame[..6] == self.options.mac.0
    }

    /// Writes the header and the frame in the buffer, which is cut where the chain ends.
    fn put_frame(&self, ram: &GuestRam, chain: &Chain, length: usize) -> bool {
        let mut header = [0; 12];
        if self.header == 12 {
            // vmd counts descriptors here, although mergeable buffers are not offered.
            header[10..].copy_from_slice(&(chain.segments.len() as u16).to_le_bytes());
        }
        let mut rest = &self.buffer[..length.min(chain.room)];
        let mut written = ram.write_slice(&header[..self.header], GuestAddress(chain.header)).is_ok();
        for &(address, room) in &chain.segments {
            let (now, later) = rest.split_at(rest.len().min(room));
            written &= ram.write_slice(now, GuestAddress(address)).is_ok();
            rest = later;
        }
        written
    }

    /// Sends what the guest has made available. `Ok(None)` for a chain so malformed that the device must be reset.
    fn send(&mut self, io: &mut DeviceState) -> Result<Option<bool>, Fault> {
        if !io.driver_ok() {
            return Ok(Some(false));
        }
        let offload = io.driver_features & 1 << VIRTIO_NET_F_CSUM != 0;
        let inspect = io.generation >= Generation::V8_0;
        let ring = io.ring(TX)?;
        let first = io.queues[usize::from(TX)].last_avail;
        let mut index = first;
        let mut answered = false;
        while index != ring.avail_index()? {
            let head = ring.avail_entry(index)?;
            let Some(chain) = self.chain(&io.ram, &ring, head, false)? else {
                return Ok(None);
            };
            let mut used = chain.room;
            if chain.room >= ETHERNET_HEADER {
                let offload = inspect.then_some(offload);
                match self.send_chain(&io.ram, &chain, offload, &mut answered) {
                    Sent::Yes => used += self.header,
                    Sent::Dropped => {}
                    Sent::Failed => return Ok(None),
                }
            }
            ring.push_used(head, used as u32)?;
            index = index.wrapping_add(1);
        }
        let raise = index != first && u32::from(ring.avail_flags()?) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        io.queues[usize::from(TX)].last_avail = index;
        Ok(Some(raise))
    }

    /// Sends one frame, or answers it.
    ///
    /// Inspection sees no more of a frame than its first piece. `answered` is whether a DHCP request was already
    /// answered in this batch: vmd forgets to clear its pointer to the answer, and a second one goes to the network
    /// (`vionet_tx`, `dhcp_request`). `offload` is whether the driver may leave checksums to the device; `None` up to
    /// 7.9, where nobody looks at the virtio header.
    fn send_chain(
        &mut self,
        ram: &GuestRam,
        chain: &Chain,
        offload: Option<bool>,
        answered: &mut bool,
    ) -> Sent {
        if chain.room > MAX_FRAME {
            tracing::warn!(length = chain.room, "vionet: a frame longer than tap(4) takes");
            return Sent::Failed;
        }
        let mut frame = vec![0; chain.room];
        let mut rest = frame.as_mut_slice();
        for &(address, length) in &chain.segments {
            let (now, later) = rest.split_at_mut(length);
            if ram.read_slice(now, GuestAddress(address)).is_err() {
                return Sent::Failed;
            }
            rest = later;
        }
        if let Some(allowed) = offload {
            let mut header = [0; 12];
            if ram.read_slice(&mut header, GuestAddress(chain.header)).is_err() {
                return Sent::Failed;
            }
            if !checksum::complete(&header, &mut frame, allowed) {
                tracing::warn!("vionet: a frame with an invalid virtio header is dropped");
                return Sent::Dropped;
            }
        }
        let first = &frame[..chain.segments.first().map_or(0, |segment| segment.1)];
        if self.options.locked && first.get(6..12) != Some(&self.options.mac.0) {
            tracing::warn!("vionet: a frame from a foreign address is dropped");
            return Sent::Dropped;
        }
        if let Some(local) = self.options.local.as_ref().filter(|_| !*answered)
            && let Some(reply) = dhcp::reply(local, self.options.mac, first)
        {
            *answered = true;
            self.injected.push_back(reply);
            return Sent::Dropped;
        }
        match self.backend.send(&frame) {
            Ok(()) => Sent::Yes,
            Err(error) => {
                tracing::warn!(%error, "vionet: cannot send");
                Sent::Failed
            }
        }
    }

    /// Receives what there is, and makes of it what vmd's receiving thread does.
    fn receive(&mut self, io: &mut DeviceState) -> Result<bool, Fault> {
        if !self.receiving || !io.driver_ok() {
            return Ok(false);
        }
        let filled = self.fill(io)?;
        Ok(conclude(io, filled))
    }
}

enum Sent {
    Yes,
    /// Used up without being sent; its header does not count as used.
    Dropped,
    Failed,
}

/// A chain of buffers.
struct Chain {
    /// Where the virtio header is.
    header: u64,
    /// The buffers without the header.
    segments: Vec<(u64, usize)>,
    /// The length of all of them, in bytes.
    room: usize,
}

fn has_next(descriptor: &Descriptor) -> bool {
    u32::from(descriptor.flags()) & VRING_DESC_F_NEXT != 0
}

/// Marks in the registers how a queue went. Returns whether to raise the line.
fn conclude(io: &mut DeviceState, outcome: Option<bool>) -> bool {
    match outcome {
        Some(false) => false,
        Some(true) => {
            io.mark_served();
            true
        }
        None => {
            io.request_reset();
            true
        }
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("options", &self.options).finish_non_exhaustive()
    }
}

impl VirtioDevice for Net {
    const KIND: Kind = Kind::Net;

    /// MAC only: no segmentation, no merged buffers, no link status. From 8.0 on the guest may leave checksums of what
    /// it sends to the device (80.html).
    fn features(&self, generation: Generation) -> u32 {
        let checksums = if generation >= Generation::V8_0 { 1 << VIRTIO_NET_F_CSUM } else { 0 };
        1 << VIRTIO_NET_F_MAC | checksums
    }

    /// The bytes of the MAC address, one for each offset whatever the width; all else is all ones
    /// (`vionet_dev_read`).
    fn read_config(&self, offset: u8, _width: Width) -> Option<u32> {
        Some(self.options.mac.0.get(usize::from(offset)).map_or(u32::MAX, |&byte| byte.into()))
    }

    fn read_legacy_config(&self, offset: u8, width: Width, _eax: u32) -> Option<u32> {
        self.read_config(offset, width)
    }

    fn notify(&mut self, queue: u16, io: &mut DeviceState) -> Result<bool, Fault> {
        match queue {
            RX => {
                self.receiving = true;
                self.receive(io)
            }
            TX => {
                let sent = self.send(io)?;
                let raise = conclude(io, sent);
                // What was sent may have been answered already.
                if self.receive(io)? {
                    io.interrupt(RX);
                }
                Ok(raise)
            }
            _ => Ok(false),
        }
    }

    fn reset(&mut self) {
        self.receiving = false;
    }

    fn power_on(&mut self) {
        self.receiving = false;
        self.injected.clear();
    }
}

impl VirtioPci<Net> {
    /// Receives frames for the guest. To be called when [`VirtioPci::backend_fd`] is readable, or at any other time.
    pub fn receive(&mut self) {
        self.work(Net::receive);
    }

    /// The descriptor to be watched for frames, if the backend has one.
    pub fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        self.model().backend.fd()
    }

    /// Whether the guest can take a frame now.
    ///
    /// Where this is false a readable [`VirtioPci::backend_fd`] stays readable, and nothing tells when it becomes
    /// true: with its first frame vmd asks the guest not to notify it of new buffers, and spins. An event loop does
    /// better to stop watching and to ask again after a tick of the host.
    pub fn can_receive(&self) -> bool {
        let io = self.io();
        self.model().receiving
            && io.driver_ok()
            && io
                .ring(RX)
                .and_then(|ring| ring.avail_index())
                .is_ok_and(|index| index != io.queues[usize::from(RX)].last_avail)
    }
}
