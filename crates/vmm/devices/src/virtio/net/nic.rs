//! The NIC: its two queues, filtering, and the device configuration.

use std::{collections::VecDeque, fmt, os::fd::BorrowedFd};

use virtio_bindings::{
    virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_MAC},
    virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_NEXT, VRING_USED_F_NO_NOTIFY},
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Capabilities;

use super::{
    backend::FrameBackend,
    checksum, dhcp,
    frame::{ETHERNET_HEADER, MAX_FRAME},
    local::LocalLink,
    mac::MacAddr,
};
use crate::{
    bus::Width,
    virtio::{
        device::{DeviceState, VirtioDevice},
        device_type::DeviceType,
        fault::Fault,
        pci::VirtioPci,
        queue::{GuestRam, Ring, Round, in_one_region},
    },
    warning_limit::warn_limited,
};

/// The queue on which the guest receives.
const RX: u16 = 0;
/// The queue on which the guest sends.
const TX: u16 = 1;

/// Largest number of segments in a chain: vmd's array of I/O vectors.
const MAX_SEGMENTS: usize = 1024;

/// Largest number of vmd's own answers that wait for the guest; further ones are dropped. vmd keeps
/// them in a pipe.
const MAX_INJECTED: usize = 64;

/// Configuration of a NIC.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Whether to drop frames that the guest sends from another address, and received frames that
    /// are neither multicast nor for this address (`locked lladdr` in vm.conf(5)).
    pub locked: bool,
    /// The addresses with which vmd answers DHCP itself (`vmctl start -L`); `None` if it does not.
    pub local: Option<LocalLink>,
}

/// A NIC.
pub struct Net {
    options: NetOptions,
    backend: Box<dyn FrameBackend>,
    /// vmd's own answers that wait for room in the guest's queue.
    injected: VecDeque<Vec<u8>>,
    /// Whether the guest has notified its receive queue since the last reset; vmd does not read the
    /// tap before that.
    receiving: bool,
    /// Length of the virtio header in bytes: 12 from 7.8 on, 10 before.
    header: usize,
    buffer: Vec<u8>,
}

impl Net {
    /// A network device on `backend`.
    pub fn new(capabilities: &Capabilities, options: NetOptions, backend: Box<dyn FrameBackend>) -> Self {
        Self {
            options,
            backend,
            injected: VecDeque::new(),
            receiving: false,
            header: if capabilities.virtio_1 { 12 } else { 10 },
            buffer: vec![0; MAX_FRAME],
        }
    }

    /// Its MAC address.
    pub const fn mac(&self) -> MacAddr {
        self.options.mac
    }

    /// Moves frames into the guest's buffers until either or the [`Round`] is exhausted. Returns
    /// whether to interrupt, or `None` if a malformed chain requires a device reset.
    fn fill(&mut self, state: &mut DeviceState) -> Result<Option<bool>, Fault> {
        let ring = state.ring(RX)?;
        // Notifications of new buffers are not needed: vmd checks the ring when a frame arrives.
        ring.set_used_flags(VRING_USED_F_NO_NOTIFY as u16)?;
        let first = state.queues[usize::from(RX)].last_avail;
        let mut index = first;
        let mut round = Round::new(DeviceType::Net);
        while !round.is_over() && index != ring.avail_index()? {
            let head = ring.avail_entry(index)?;
            let Some(chain) = self.receive_chain(&state.ram, &ring, head)? else {
                return Ok(None);
            };
            let Ok(frame) = self.next_frame(&mut round) else {
                return Ok(None);
            };
            let Some(length) = frame else {
                break;
            };
            if !self.put_frame(&state.ram, &chain, length) {
                return Ok(None);
            }
            let used = length.min(chain.room) + self.header;
            ring.push_used(head, used as u32)?;
            index = index.wrapping_add(1);
        }
        let raise = index != first && u32::from(ring.avail_flags()?) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        let queue = &mut state.queues[usize::from(RX)];
        queue.last_avail = index;
        queue.deferred = round.is_over();
        Ok(Some(raise))
    }

    /// The buffers of a receive chain, or `None` if it is malformed: too short for the virtio
    /// header in its first descriptor or for an Ethernet header in total, not writable, outside RAM
    /// or endless.
    fn receive_chain(&self, ram: &GuestRam, ring: &Ring<'_>, head: u16) -> Result<Option<Chain>, Fault> {
        let Some(chain) = self.chain(ram, ring, head, true)? else {
            return Ok(None);
        };
        Ok((chain.room >= ETHERNET_HEADER).then_some(chain))
    }

    /// Collects the segments of a chain whose descriptors must be all writable, or all read-only.
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
        // vmd checks the whole first buffer when it receives, but only the part behind the header
        // when it sends.
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
            // More descriptors than the queue has: the chain is circular.
            if chain.segments.len() >= MAX_SEGMENTS || chain.segments.len() > ring.size() as usize {
                return Ok(None);
            }
        }
        Ok(Some(chain))
    }

    /// Reads the next frame for the guest into the buffer and returns its length; `None` if there
    /// is none, or only filtered ones came until the end of `round`.
    fn next_frame(&mut self, round: &mut Round) -> std::io::Result<Option<usize>> {
        while !round.is_over() {
            round.count();
            let length = if let Some(frame) = self.injected.pop_front() {
                self.buffer[..frame.len()].copy_from_slice(&frame);
                frame.len()
            } else {
                match self.backend.receive(&mut self.buffer) {
                    Ok(Some(length)) => length,
                    Ok(None) => return Ok(None),
                    Err(error) => {
                        warn_limited!(%error, "vionet: cannot receive");
                        return Err(error);
                    }
                }
            };
            if length >= ETHERNET_HEADER && self.passes_filter(&self.buffer[..length]) {
                return Ok(Some(length));
            }
        }
        Ok(None)
    }

    fn passes_filter(&self, frame: &[u8]) -> bool {
        !self.options.locked || frame[0] & 1 != 0 || frame[..6] == self.options.mac.0
    }

    /// Writes the virtio header and the frame in the buffer, cut to the chain's length.
    fn put_frame(&self, ram: &GuestRam, chain: &Chain, length: usize) -> bool {
        let mut header = [0; 12];
        if self.header == 12 {
            // vmd stores the number of descriptors here, although mergeable buffers are not
            // offered.
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

    /// Sends the available frames of the guest, those of a [`Round`]. Returns whether to interrupt,
    /// or `None` if a malformed chain requires a device reset.
    fn send(&mut self, state: &mut DeviceState) -> Result<Option<bool>, Fault> {
        if !state.driver_ok() {
            return Ok(Some(false));
        }
        let offload = state.driver_features & 1 << VIRTIO_NET_F_CSUM != 0;
        let inspect = state.capabilities.net_checksum_offload;
        let ring = state.ring(TX)?;
        let first = state.queues[usize::from(TX)].last_avail;
        let mut index = first;
        let mut answered = false;
        let mut round = Round::new(DeviceType::Net);
        while !round.is_over() && index != ring.avail_index()? {
            round.count();
            let head = ring.avail_entry(index)?;
            let Some(chain) = self.chain(&state.ram, &ring, head, false)? else {
                return Ok(None);
            };
            let mut used = chain.room;
            if chain.room >= ETHERNET_HEADER {
                let offload = inspect.then_some(offload);
                match self.send_chain(&state.ram, &chain, offload, &mut answered) {
                    Sent::Yes => used += self.header,
                    Sent::Dropped => {}
                    Sent::Failed => return Ok(None),
                }
            }
            ring.push_used(head, used as u32)?;
            index = index.wrapping_add(1);
        }
        let raise = index != first && u32::from(ring.avail_flags()?) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        let queue = &mut state.queues[usize::from(TX)];
        queue.last_avail = index;
        queue.deferred = round.is_over();
        Ok(Some(raise))
    }

    /// Sends one frame, or answers it as the DHCP server.
    ///
    /// The filters see only the first segment of a frame. `answered` says whether a DHCP request
    /// was already answered in this batch: vmd does not clear its pointer to the answer, so a
    /// second request goes to the network (`vionet_tx`, `dhcp_request`). `offload` says whether the
    /// driver may leave checksums to the device; `None` up to 7.9, where vmd ignores the virtio
    /// header.
    fn send_chain(
        &mut self,
        ram: &GuestRam,
        chain: &Chain,
        offload: Option<bool>,
        answered: &mut bool,
    ) -> Sent {
        if chain.room > MAX_FRAME {
            warn_limited!(length = chain.room, "vionet: frame longer than tap(4) accepts");
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
                warn_limited!("vionet: frame with an invalid virtio header dropped");
                return Sent::Dropped;
            }
        }
        let first = &frame[..chain.segments.first().map_or(0, |segment| segment.1)];
        if self.options.locked && first.get(6..12) != Some(&self.options.mac.0) {
            warn_limited!("vionet: frame from a foreign address dropped");
            return Sent::Dropped;
        }
        if let Some(local) = self.options.local.as_ref().filter(|_| !*answered)
            && let Some(reply) = dhcp::reply(local, self.options.mac, first)
        {
            *answered = true;
            if self.injected.len() < MAX_INJECTED {
                self.injected.push_back(reply);
            }
            return Sent::Dropped;
        }
        match self.backend.send(&frame) {
            Ok(()) => Sent::Yes,
            Err(error) => {
                warn_limited!(%error, "vionet: cannot send");
                Sent::Failed
            }
        }
    }

    /// Receives the waiting frames as vmd's receive thread does. Returns whether to interrupt.
    fn receive(&mut self, state: &mut DeviceState) -> Result<bool, Fault> {
        if !self.receiving || !state.driver_ok() {
            return Ok(false);
        }
        let filled = self.fill(state)?;
        Ok(conclude(state, filled))
    }
}

enum Sent {
    Yes,
    /// The frame is used without being sent; its header does not count as used.
    Dropped,
    Failed,
}

/// A chain of buffers.
struct Chain {
    /// Guest physical address of the virtio header.
    header: u64,
    /// The buffers without the header: address and length in bytes.
    segments: Vec<(u64, usize)>,
    /// Total length of the segments in bytes.
    room: usize,
}

fn has_next(descriptor: &Descriptor) -> bool {
    u32::from(descriptor.flags()) & VRING_DESC_F_NEXT != 0
}

/// Records the outcome of a queue in the registers. Returns whether to raise the line.
fn conclude(state: &mut DeviceState, outcome: Option<bool>) -> bool {
    match outcome {
        Some(false) => false,
        Some(true) => {
            state.mark_served();
            true
        }
        None => {
            state.request_reset();
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
    const DEVICE_TYPE: DeviceType = DeviceType::Net;

    /// MAC only: no segmentation, no merged buffers, no link status. From 8.0 on also checksum
    /// offload for sent frames (80.html).
    fn features(&self, capabilities: &Capabilities) -> u32 {
        let checksums = if capabilities.net_checksum_offload { 1 << VIRTIO_NET_F_CSUM } else { 0 };
        1 << VIRTIO_NET_F_MAC | checksums
    }

    /// The byte of the MAC address at each offset, whatever the width; all else is unknown
    /// (`vionet_dev_read`).
    fn read_config(&self, offset: u8, _width: Width) -> Option<u32> {
        self.options.mac.0.get(usize::from(offset)).map(|&byte| byte.into())
    }

    fn read_legacy_config(&self, offset: u8, width: Width, _eax: u32) -> Option<u32> {
        self.read_config(offset, width)
    }

    fn notify(&mut self, queue: u16, state: &mut DeviceState) -> Result<bool, Fault> {
        match queue {
            RX => {
                self.receiving = true;
                self.receive(state)
            }
            TX => {
                let sent = self.send(state)?;
                let raise = conclude(state, sent);
                // A sent frame may already have an answer.
                if self.receive(state)? {
                    state.interrupt(RX);
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
    /// Receives frames for the guest. The event loop calls this when [`VirtioPci::backend_fd`] is
    /// readable; other calls do no harm.
    pub fn receive(&mut self) {
        self.work(RX, Net::receive);
    }

    /// The file descriptor that becomes readable when a frame arrives, if the backend has one.
    pub fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        self.model().backend.fd()
    }

    /// When the backend has work to do, on its clock in nanoseconds; `None` if it has none.
    pub fn deadline(&self) -> Option<u64> {
        self.model().backend.deadline()
    }

    /// Does the backend's work that is due, and receives frames for the guest.
    pub fn expire(&mut self) {
        let before = self.deadline();
        self.model_mut().backend.expire();
        if before != self.deadline() {
            self.receive();
        }
    }

    /// Number of frames for the guest that were lost in front of its receive queue
    /// ([`FrameBackend::failed_outputs`]).
    pub fn failed_outputs(&self) -> u64 {
        self.model().backend.failed_outputs()
    }

    /// Whether the backend's other end is closed for good.
    pub fn is_closed(&self) -> bool {
        self.model().backend.is_closed()
    }

    /// Whether the guest can accept a frame now.
    ///
    /// While this is false, [`VirtioPci::backend_fd`] stays readable and no event announces the
    /// change: with its first frame vmd suppresses notifications of new buffers, and spins. An
    /// event loop should stop watching the descriptor and check again after a tick of the host.
    pub fn can_receive(&self) -> bool {
        let state = self.state();
        self.model().receiving
            && state.driver_ok()
            && state
                .ring(RX)
                .and_then(|ring| ring.avail_index())
                .is_ok_and(|index| index != state.queues[usize::from(RX)].last_avail)
    }
}
