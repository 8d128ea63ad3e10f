//! The CD-ROM: vmd's vioscsi.

mod command;

use std::fmt;

use virtio_bindings::virtio_ring::VRING_DESC_F_NEXT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Generation;

use self::command::{CdRom, Data, Reply};
use super::{DeviceState, Fault, GuestRam, Kind, VirtioDevice, disk::Disk, ring::Ring};
use crate::bus::Width;

/// Length of a request's header: LUN 8, tag 8, attributes 3, CDB 32.
const REQUEST: usize = 51;
/// Length of a response's header: sense length 4, residual 4, qualifier 2, status, response, sense 96.
const RESPONSE: usize = 108;
/// The response of a target that does not exist.
const BAD_TARGET: u8 = 3;

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

/// A virtio SCSI controller with a CD in its only drive, which is target 0, LUN 0.
pub struct Scsi {
    drive: CdRom,
    keeps_within: bool,
}

impl Scsi {
    /// A drive with `disk`, an ISO image, in it. Bytes after the last whole block of 2048 are not seen.
    pub fn new(disk: Box<dyn Disk>) -> Self {
        Self { drive: CdRom::new(disk), keeps_within: false }
    }

    /// Whether answers end where the driver's descriptor does, from now on. vmd's do not, see `reply`: INQUIRY's 96
    /// bytes overwrite what comes behind the 36 that a driver may have asked for.
    pub const fn keep_within_descriptors(&mut self, keep: bool) {
        self.keeps_within = keep;
    }

    /// Writes the reply to a request whose header is `descriptor`. Returns whether it could be written.
    ///
    /// vmd writes to the descriptors that follow by their numbers, whether or not NEXT is set, and as many bytes as
    /// it has, whatever length the descriptor announces; only the data of a READ(10) is spread as the driver asks.
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
                if self.keeps_within {
                    bytes.truncate(target.len() as usize);
                }
                Ok(put(ram, &target, &bytes))
            }
            Data::Spread(bytes) => {
                let mut rest = bytes.as_slice();
                let mut empty = 0u32;
                loop {
                    target = ring.next(&target)?;
                    let (now, later) = rest.split_at(rest.len().min(target.len() as usize));
                    if !put(ram, &target, now) {
                        return Ok(false);
                    }
                    rest = later;
                    if rest.is_empty() {
                        return Ok(true);
                    }
                    // As many descriptors in a row as there are, all empty: vmd goes round in circles.
                    empty = if now.is_empty() { empty + 1 } else { 0 };
                    if empty > u32::from(ring.mask()) {
                        return Err(ring.endless());
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

/// Writes to where a descriptor points, without a look at its length and direction.
fn put(ram: &GuestRam, descriptor: &Descriptor, bytes: &[u8]) -> bool {
    let written = ram.write_slice(bytes, GuestAddress(descriptor.addr().0)).is_ok();
    if !written {
        tracing::warn!(address = descriptor.addr().0, "vioscsi: an answer lies outside guest RAM");
    }
    written
}

impl VirtioDevice for Scsi {
    const KIND: Kind = Kind::Scsi;

    fn features(&self, _generation: Generation) -> u32 {
        0
    }

    /// A register that is read with another width than its own is not answered; an offset that is no register's
    /// start reads as all ones (`vioscsi_io`, 7.8).
    fn read_config(&self, offset: u8, width: Width) -> Option<u32> {
        let Some(&(_, bytes, value)) = CONFIG.iter().find(|register| register.0 == offset) else {
            return Some(u32::MAX);
        };
        (width.bytes() == bytes || ANY_WIDTH.contains(&offset)).then_some(value)
    }

    /// Registers are answered in their own width or byte by byte, and not at all otherwise. The highest channel
    /// clears 16 bits of EAX for any width, and the length of an event all 32 (`vioscsi_io`, 7.7).
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

    /// Serves the requests of a queue. All three are served alike, so that task management functions are taken for
    /// commands. A request that is not chained or lies outside RAM stops the queue where it is, and so does one that
    /// comes after as many as the queue has entries.
    ///
    /// The interrupt is the last request's affair: vmd raises the line if *that one* was answered
    /// (`vioscsi_notifyq`).
    fn notify(&mut self, queue: u16, io: &mut DeviceState) -> Result<bool, Fault> {
        let Some(state) = io.queues.get(usize::from(queue)) else {
            return Ok(false);
        };
        let (size, mut last_avail) = (state.size, state.last_avail);
        let ring = io.ring(queue)?;
        let mask = ring.mask();
        let mut index = last_avail & mask;
        let mut served = 0;
        let (mut raise, mut answered_any) = (false, false);
        while index != ring.avail_index()? & mask {
            served += 1;
            if served >= size {
                break;
            }
            let head = ring.avail_entry(index)? & mask;
            let descriptor = ring.descriptor(head)?;
            if u32::from(descriptor.flags()) & VRING_DESC_F_NEXT == 0 {
                break;
            }
            let mut request = [0; REQUEST];
            if io.ram.read_slice(&mut request, GuestAddress(descriptor.addr().0)).is_err() {
                break;
            }
            let reply = if request[1] > 0 || request[3] > 0 {
                // Any target but 0 and any LUN but 0, as virtio numbers them in bytes 1 and 3.
                if ring.next(&descriptor)?.len() as usize > RESPONSE {
                    break;
                }
                Reply::bad_target()
            } else {
                self.drive.execute(&request)
            };
            let done = match reply {
                Reply::Answer(response, data) => {
                    raise = self.reply(&io.ram, &ring, &descriptor, &response, data)?;
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
            io.mark_only_served();
        }
        io.queues[usize::from(queue)].last_avail = last_avail;
        Ok(raise)
    }

    /// The door is open again. No reset by the driver does that.
    fn power_on(&mut self) {
        self.drive.unlock();
    }
}
