//! The CD-ROM: vmd's vioscsi.

mod command;

use std::fmt;

use virtio_bindings::virtio_ring::VRING_DESC_F_NEXT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Capabilities;

use self::command::{CdRom, Data, REQUEST, RESPONSE, Reply};
use super::{
    device::{DeviceState, VirtioDevice},
    device_type::DeviceType,
    disk::Disk,
    fault::Fault,
    queue::{GuestRam, Ring, Round},
};
use crate::{bus::Width, warning_limit::warn_limited};

/// The device configuration (`VIOSCSI_*` in vioscsi.h): offset, width in bytes, value.
const CONFIG: [(u8, usize, u32); 10] = [
    (0, 4, 1),    // request queues
    (4, 4, 17),   // segments of a request
    (8, 4, 2048), // sectors of a request: the size of a block, in fact
    (12, 4, 1),   // commands at a time
    (16, 4, 0),   // length of an event
    (20, 4, 96),  // length of sense data
    (24, 4, 32),  // length of a CDB
    (28, 2, 0),   // highest channel
    (30, 2, 1),   // highest target
    (32, 4, 1),   // highest LUN
];
/// The registers that vmd answers whatever the width: events and channels.
const ANY_WIDTH: [u8; 2] = [16, 28];

/// A virtio SCSI controller with one drive: target 0, LUN 0, a CD inserted.
pub struct Scsi {
    drive: CdRom,
    within_descriptors: bool,
}

impl Scsi {
    /// A drive with `disk`, an ISO image, inserted. Bytes after the last whole block of 2048 are
    /// not accessible.
    pub fn new(disk: Box<dyn Disk>) -> Self {
        Self { drive: CdRom::new(disk), within_descriptors: false }
    }

    /// Sets whether answers end at the length of the driver's descriptor. vmd's answers do not (see
    /// `reply`): INQUIRY's 96 bytes overwrite the memory behind the 36 bytes that a driver may have
    /// requested.
    pub const fn keep_within_descriptors(&mut self, keep: bool) {
        self.within_descriptors = keep;
    }

    /// Writes the reply to the request whose header is `descriptor`. Returns whether it could be
    /// written.
    ///
    /// vmd writes to the following descriptors by their numbers, whether or not NEXT is set, and
    /// writes the whole answer, whatever length the descriptor announces; only the data of READ(10)
    /// is split by descriptor lengths.
    fn reply(
        &self,
        ram: &GuestRam,
        ring: &Ring<'_>,
        descriptor: &Descriptor,
        response: &[u8; RESPONSE],
        data: Data,
    ) -> Result<bool, Fault> {
        let mut target = ring.next(descriptor)?;
        if !put(ram, &target, response) {
            return Ok(false);
        }
        match data {
            Data::None => Ok(true),
            Data::Whole(mut bytes) => {
                target = ring.next(&target)?;
                if self.within_descriptors {
                    bytes.truncate(target.len() as usize);
                }
                Ok(put(ram, &target, &bytes))
            }
            Data::Spread(bytes) => {
                let mut rest = bytes.as_slice();
                let (mut empty, mut descriptors) = (0u32, 0u32);
                loop {
                    descriptors += 1;
                    target = ring.next(&target)?;
                    let (now, later) = rest.split_at(rest.len().min(target.len() as usize));
                    if !put(ram, &target, now) {
                        return Ok(false);
                    }
                    rest = later;
                    if rest.is_empty() {
                        return Ok(true);
                    }
                    // A full ring of empty descriptors in a row: vmd would loop forever.
                    empty = if now.is_empty() { empty + 1 } else { 0 };
                    if empty > u32::from(ring.mask()) {
                        return Err(ring.endless());
                    }
                    // The chain is circular. vmd walks it once for each byte in the worst case.
                    if empty == 0 && descriptors > ring.size() {
                        return Ok(false);
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Scsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scsi").field("blocks", &self.drive.blocks()).finish_non_exhaustive()
    }
}

/// Writes `bytes` to a descriptor's address, ignoring its length and direction. Returns whether it
/// succeeded.
fn put(ram: &GuestRam, descriptor: &Descriptor, bytes: &[u8]) -> bool {
    let written = ram.write_slice(bytes, GuestAddress(descriptor.addr().0)).is_ok();
    if !written {
        warn_limited!(address = descriptor.addr().0, "vioscsi: answer outside guest RAM");
    }
    written
}

/// The header of the request at `descriptor`; `None` if it is not chained or lies outside RAM.
fn header(ram: &GuestRam, descriptor: &Descriptor) -> Option<[u8; REQUEST]> {
    let mut request = [0; REQUEST];
    let chained = u32::from(descriptor.flags()) & VRING_DESC_F_NEXT != 0;
    (chained && ram.read_slice(&mut request, GuestAddress(descriptor.addr().0)).is_ok()).then_some(request)
}

impl VirtioDevice for Scsi {
    const DEVICE_TYPE: DeviceType = DeviceType::Scsi;

    fn features(&self, _capabilities: &Capabilities) -> u32 {
        0
    }

    /// A register is answered only in its own width; an offset that is not the start of a register
    /// reads as all ones (`vioscsi_io`, 7.8).
    fn read_config(&self, offset: u8, width: Width) -> Option<u32> {
        let Some(&(_, bytes, value)) = CONFIG.iter().find(|register| register.0 == offset) else {
            return Some(u32::MAX);
        };
        (width.bytes() == bytes || ANY_WIDTH.contains(&offset)).then_some(value)
    }

    /// Registers are answered in their own width or byte by byte, and otherwise not at all. The
    /// highest channel clears 16 bits of EAX at any width, and the length of an event all 32
    /// (`vioscsi_io`, 7.7).
    fn read_legacy_config(&self, offset: u8, width: Width, eax: u32) -> Option<u32> {
        let &(start, bytes, value) =
            CONFIG.iter().find(|register| (register.0..register.0 + register.1 as u8).contains(&offset))?;
        match start {
            16 => (offset == 16).then_some(0),
            28 => Some(eax & 0xffff_0000),
            _ => {
                let byte = offset - start;
                let whole = byte == 0 && width.bytes() == bytes;
                let mask = width.mask();
                (whole || width == Width::Byte).then_some(eax & !mask | value >> (8 * byte) & mask)
            }
        }
    }

    /// Processes the requests of a queue. vmd treats all three queues alike, so task management
    /// functions are executed as commands. Processing stops at a request that is not chained or
    /// lies outside RAM, and at a request beyond the number of the queue's entries.
    ///
    /// vmd raises the line if the *last* request was answered (`vioscsi_notifyq`).
    fn notify(&mut self, queue: u16, state: &mut DeviceState) -> Result<bool, Fault> {
        let Some(queue_state) = state.queues.get(usize::from(queue)) else {
            return Ok(false);
        };
        let (size, mut last_avail) = (queue_state.size, queue_state.last_avail);
        let ring = state.ring(queue)?;
        let mask = ring.mask();
        let mut index = last_avail & mask;
        let mut served = 0;
        let (mut raise, mut answered_any) = (false, false);
        let mut round = Round::new(DeviceType::Scsi);
        let mut deferred = false;
        while index != ring.avail_index()? & mask {
            if round.is_over() {
                (deferred, last_avail) = (true, index);
                break;
            }
            round.count();
            served += 1;
            if served >= size {
                break;
            }
            let head = ring.avail_entry(index)? & mask;
            let descriptor = ring.descriptor(head)?;
            let Some(request) = header(&state.ram, &descriptor) else {
                break;
            };
            let reply = if request[1] > 0 || request[3] > 0 {
                // Target and LUN, as virtio numbers them in bytes 1 and 3; only 0 and 0 exist.
                if ring.next(&descriptor)?.len() as usize > RESPONSE {
                    break;
                }
                Reply::bad_target()
            } else {
                self.drive.execute(&request)
            };
            let done = match reply {
                Reply::Answer(response, data) => {
                    round.moved(data.length() as u64);
                    raise = self.reply(&state.ram, &ring, &descriptor, &response, data)?;
                    answered_any |= raise;
                    raise
                }
                Reply::GivenUp => {
                    raise = false;
                    false
                }
                Reply::Unsupported => true,
            };
            if done {
                ring.push_used(head, descriptor.len())?;
                last_avail = ring.avail_index()? & mask;
            }
            index = index.wrapping_add(1) & mask;
        }
        if answered_any {
            state.mark_only_served();
        }
        let queue_state = &mut state.queues[usize::from(queue)];
        queue_state.last_avail = last_avail;
        queue_state.deferred = deferred;
        Ok(raise)
    }

    /// Unlocks the door; a reset by the driver does not.
    fn power_on(&mut self) {
        self.drive.unlock();
    }
}
