//! Disks: vmd's vioblk.

use std::fmt;

use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT,
    },
    virtio_ring::VRING_DESC_F_NEXT,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Capabilities;

use super::{
    device::{DeviceState, VirtioDevice},
    device_type::DeviceType,
    disk::Disk,
    fault::Fault,
    queue::{GuestRam, Ring, Round, in_one_region, ram_size},
};
use crate::{bus::Width, warning_limit::warn_limited};

/// Bytes in a sector.
const SECTOR: u64 = 512;
/// Number of segments per request that the configuration announces (`VIOBLK_SEG_MAX_DEFAULT`): the
/// queue size without header and status.
const SEG_MAX: u32 = 126;
/// Number of segments that vmd accepts: its array of I/O vectors, less one.
const MAX_SEGMENTS: usize = 1023;
/// Bytes per transfer between the disk and guest RAM.
const CHUNK: usize = 1 << 20;

/// A disk device.
pub struct Blk {
    disk: Box<dyn Disk>,
    capacity: u64,
    buffer: Vec<u8>,
}

impl Blk {
    /// A disk device on `disk`. Bytes after the last whole sector are not accessible.
    pub fn new(disk: Box<dyn Disk>) -> Self {
        let capacity = disk.size() / SECTOR;
        Self { disk, capacity, buffer: Vec::new() }
    }

    /// Size in sectors of 512 bytes.
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Processes one request. Returns the length for the used ring, or `None` if the request is
    /// malformed and the device must be reset.
    fn serve(&mut self, ring: &Ring<'_>, head: u16, round: &mut Round) -> Result<Option<u32>, Fault> {
        let ram = ring.ram();
        let command = ring.descriptor(head)?;
        if !has_next(&command) || command.is_write_only() {
            return Ok(None);
        }
        let header = command.addr().0;
        if !in_one_region(ram, header, 16) {
            return Ok(None);
        }
        let mut bytes = [0; 16];
        if ram.read_slice(&mut bytes, GuestAddress(header)).is_err() {
            return Ok(None);
        }
        let request = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let sector = u64::from_le_bytes([
            bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15],
        ]);

        let mut last = ring.next(&command)?;
        let status = match request {
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => {
                let write = request == VIRTIO_BLK_T_OUT;
                let done = self.transfer(ring, write, sector, &mut last, round)?;
                if done { VIRTIO_BLK_S_OK } else { VIRTIO_BLK_S_IOERR }
            }
            // This includes FLUSH on every generation (`vioblk_notifyq`; vioblk.c 1.36 of 8.0), and
            // GET_ID, which Linux sends without a feature bit.
            _ => VIRTIO_BLK_S_UNSUPP,
        };

        let mut steps = 0;
        while has_next(&last) {
            last = ring.next(&last)?;
            steps += 1;
            if steps >= ring.size() {
                return Ok(None);
            }
        }
        if !last.is_write_only() {
            return Ok(None);
        }
        if ram.write_slice(&[status as u8], GuestAddress(last.addr().0)).is_err() {
            warn_limited!("vioblk: the status of a request lies outside guest RAM");
        }
        Ok(Some(command.len()))
    }

    /// Transfers data between the disk and guest RAM. `descriptor` is the first one after the
    /// header; on return it is the one at which vmd stopped. Returns whether the transfer
    /// succeeded.
    ///
    /// The walk ends *before* the first descriptor without a successor, which must be the status;
    /// at least one descriptor is always used for data, even if it is the status (`vioblk_io`).
    ///
    /// Two bounds are not vmd's, and reach only drivers that use a descriptor or a buffer twice in
    /// a request: a chain has at most as many descriptors as the queue, and a request at most as
    /// many bytes as guest RAM.
    fn transfer(
        &mut self,
        ring: &Ring<'_>,
        write: bool,
        sector: u64,
        descriptor: &mut Descriptor,
        round: &mut Round,
    ) -> Result<bool, Fault> {
        let ram = ring.ram();
        let most = MAX_SEGMENTS.min(ring.size() as usize);
        let mut segments = Vec::new();
        let mut total = 0;
        loop {
            if descriptor.is_write_only() == write {
                return Ok(false);
            }
            let (address, length) = (descriptor.addr().0, descriptor.len());
            total += u64::from(length);
            if !in_one_region(ram, address, length.into()) || segments.len() >= most || total > ram_size(ram)
            {
                return Ok(false);
            }
            segments.push((address, length as usize));
            *descriptor = ring.next(descriptor)?;
            if !has_next(descriptor) {
                break;
            }
        }
        // vmd multiplies modulo 2^64 and passes the result to preadv(2) as an off_t; a negative
        // offset fails.
        let offset = sector.wrapping_mul(SECTOR);
        if i64::try_from(offset).is_err() {
            return Ok(false);
        }
        round.moved(total);
        let moved =
            if write { self.write(ram, &segments, offset) } else { self.read(ram, &segments, offset) };
        Ok(moved.unwrap_or_else(|error| {
            warn_limited!(%error, sector, write, "disk I/O failed");
            false
        }))
    }

    /// Reads into `segments`. Returns false if the disk ends before they are full.
    fn read(&mut self, ram: &GuestRam, segments: &[(u64, usize)], mut offset: u64) -> std::io::Result<bool> {
        for run in Runs::new(segments) {
            self.buffer.resize(run.length, 0);
            let read = self.disk.read_at(&mut self.buffer, offset)?;
            let mut from = &self.buffer[..read];
            for &(address, length) in &run.parts {
                let (now, rest) = from.split_at(length.min(from.len()));
                ram.write_slice(now, GuestAddress(address)).map_err(std::io::Error::other)?;
                from = rest;
            }
            if read < run.length {
                return Ok(false);
            }
            offset += read as u64;
        }
        Ok(true)
    }

    /// Writes from `segments`. Returns false if the disk accepts fewer bytes.
    fn write(&mut self, ram: &GuestRam, segments: &[(u64, usize)], mut offset: u64) -> std::io::Result<bool> {
        for run in Runs::new(segments) {
            self.buffer.resize(run.length, 0);
            let mut to = self.buffer.as_mut_slice();
            for &(address, length) in &run.parts {
                let (now, rest) = to.split_at_mut(length);
                ram.read_slice(now, GuestAddress(address)).map_err(std::io::Error::other)?;
                to = rest;
            }
            if self.disk.write_at(&self.buffer, offset)? < run.length {
                return Ok(false);
            }
            offset += run.length as u64;
        }
        Ok(true)
    }
}

fn has_next(descriptor: &Descriptor) -> bool {
    u32::from(descriptor.flags()) & VRING_DESC_F_NEXT != 0
}

/// Pieces of segments that go to the disk in one call, at most [`CHUNK`] bytes in all.
struct Run {
    parts: Vec<(u64, usize)>,
    length: usize,
}

struct Runs<'a> {
    segments: &'a [(u64, usize)],
    done: usize,
}

impl<'a> Runs<'a> {
    const fn new(segments: &'a [(u64, usize)]) -> Self {
        Self { segments, done: 0 }
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let mut run = Run { parts: Vec::new(), length: 0 };
        while let Some((&(address, length), rest)) = self.segments.split_first() {
            let part = (length - self.done).min(CHUNK - run.length);
            run.parts.push((address + self.done as u64, part));
            run.length += part;
            self.done += part;
            if self.done == length {
                self.segments = rest;
                self.done = 0;
            }
            if run.length == CHUNK {
                break;
            }
        }
        (!run.parts.is_empty()).then_some(run)
    }
}

impl fmt::Debug for Blk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blk").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl VirtioDevice for Blk {
    const DEVICE_TYPE: DeviceType = DeviceType::Blk;

    /// SEG_MAX. Never FLUSH, on any generation (vioblk.c, 7.8; 1.36 of 8.0). Never RO: a read-only
    /// disk answers writes with an I/O error.
    fn features(&self, _capabilities: &Capabilities) -> u32 {
        1 << VIRTIO_BLK_F_SEG_MAX
    }

    /// 32-bit reads return capacity and seg_max; every other read, narrower reads of these
    /// registers included, is unknown (`vioblk_dev_read`).
    fn read_config(&self, offset: u8, width: Width) -> Option<u32> {
        Some(match (offset, width) {
            (0, Width::Dword) => self.capacity as u32,
            (4, Width::Dword) => (self.capacity >> 32) as u32,
            (12, Width::Dword) => SEG_MAX,
            _ => return None,
        })
    }

    /// The same registers by aligned reads of any width; a misaligned read returns 0
    /// (`handle_io_read`, 7.7).
    fn read_legacy_config(&self, offset: u8, width: Width, _eax: u32) -> Option<u32> {
        let (register, byte) = match offset {
            0..8 => (self.capacity >> (32 * (offset / 4)), offset % 4),
            12..16 => (SEG_MAX.into(), offset - 12),
            _ => return None,
        };
        let aligned = usize::from(byte) % width.bytes() == 0;
        Some(if aligned { (register as u32) >> (8 * byte) & width.mask() } else { 0 })
    }

    /// Processes the available requests, as many as the queue has entries; more are deferred. vmd
    /// reports 16 used bytes for every request, because it uses the length of the header's
    /// descriptor (`vioblk_notifyq`). After a malformed request it starts again at the same entry.
    ///
    /// 7.8 checks the queue number off by one: queue 1, which does not exist, counts as a queue
    /// without a ring and ends the VM.
    fn notify(&mut self, queue: u16, state: &mut DeviceState) -> Result<bool, Fault> {
        if state.capabilities.blk_queue_off_by_one && queue == DeviceType::Blk.queues() {
            return Err(Fault::NullRing { device: DeviceType::Blk, queue });
        }
        let Some(queue_state) = state.queues.get(usize::from(queue)) else {
            return Ok(false);
        };
        let mut index = queue_state.last_avail;
        let ring = state.ring(queue)?;
        let mut served = false;
        let mut well_formed = true;
        let mut round = Round::new(DeviceType::Blk);
        let mut deferred = false;
        while index != ring.avail_index()? {
            if round.is_over() {
                deferred = true;
                break;
            }
            let head = ring.avail_entry(index)?;
            let Some(length) = self.serve(&ring, head, &mut round)? else {
                well_formed = false;
                break;
            };
            round.count();
            served = true;
            ring.push_used(head, length)?;
            index = index.wrapping_add(1);
        }
        if served {
            state.mark_served();
        }
        if !well_formed {
            state.request_reset();
            return Ok(true);
        }
        let queue_state = &mut state.queues[usize::from(queue)];
        queue_state.last_avail = index;
        queue_state.deferred = deferred;
        Ok(served)
    }
}
