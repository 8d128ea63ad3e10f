//! virtio 0.9 in an I/O BAR, as vmd has it up to 7.7.
//!
//! | offset | width in virtio 0.9 | |
//! |---|---|---|
//! | 0x00 | 32 | device features |
//! | 0x04 | 32 | driver features |
//! | 0x08 | 32 | queue address, in pages of 4 KiB |
//! | 0x0c | 16 | queue size |
//! | 0x0e | 16 | queue select |
//! | 0x10 | 16 | queue notify |
//! | 0x12 | 8 | status |
//! | 0x13 | 8 | ISR: reading clears it |
//! | 0x14 | | device configuration |
//!
//! Registers are matched by their exact offset and, with few exceptions, answered as 32 bits whatever the width
//! (`virtio_rnd_io` in virtio.c, `vioscsi_io` in vioscsi.c, `handle_io_read` and `handle_io_write` in vioblk.c and
//! vionet.c, 7.7).

use super::{DeviceState, Fault, Kind, VirtioDevice, ring};
use crate::bus::{Direction, PortAccess};

/// Offsets in the BAR.
mod reg {
    pub(super) const DEVICE_FEATURES: u16 = 0x00;
    pub(super) const DRIVER_FEATURES: u16 = 0x04;
    pub(super) const QUEUE_PFN: u16 = 0x08;
    pub(super) const QUEUE_SIZE: u16 = 0x0c;
    pub(super) const QUEUE_SELECT: u16 = 0x0e;
    pub(super) const QUEUE_NOTIFY: u16 = 0x10;
    pub(super) const DEVICE_STATUS: u16 = 0x12;
    pub(super) const ISR: u16 = 0x13;
    pub(super) const DEVICE_CONFIG: u16 = 0x14;
}

/// The registers that are the transport's own, all about the selected queue. The size reads 0 until a queue has been selected.
#[derive(Debug, Default)]
pub(super) struct Registers {
    pfn: u32,
    size: u16,
    select: u16,
    notify: u16,
}

impl Registers {
    pub(super) fn access<M: VirtioDevice>(
        &mut self,
        io: &mut DeviceState,
        model: &mut M,
        offset: u16,
        access: &mut PortAccess,
    ) -> Result<(), Fault> {
        match access.direction {
            Direction::In => {
                self.read(io, model, offset, access);
                Ok(())
            }
            Direction::Out => self.write(io, model, offset, access.eax),
        }
    }

    fn read<M: VirtioDevice>(&self, io: &mut DeviceState, model: &M, offset: u16, access: &mut PortAccess) {
        // A register of vioscsi that knows about widths.
        let by_width = io.kind == Kind::Scsi;
        match offset {
            reg::DEVICE_FEATURES => access.answer_dword(io.device_features as u32),
            reg::DRIVER_FEATURES => access.answer_dword(io.driver_features as u32),
            reg::QUEUE_PFN => access.answer_dword(self.pfn),
            reg::QUEUE_SIZE if by_width => access.answer(self.size.into()),
            reg::QUEUE_SIZE => access.answer_dword(self.size.into()),
            reg::QUEUE_SELECT => access.answer_dword(self.select.into()),
            reg::QUEUE_NOTIFY => access.answer_dword(self.notify.into()),
            reg::DEVICE_STATUS if by_width => access.answer(io.status.into()),
            reg::DEVICE_STATUS => access.answer_dword(io.status.into()),
            reg::ISR => {
                access.answer_dword(io.isr.into());
                io.isr = 0;
                if reading_the_isr_lowers_the_line(io.kind) {
                    io.irq.deassert();
                }
            }
            _ => {
                let value = offset
                    .checked_sub(reg::DEVICE_CONFIG)
                    .and_then(|offset| u8::try_from(offset).ok())
                    .and_then(|offset| model.read_legacy_config(offset, access.width, access.eax));
                if let Some(value) = value {
                    access.answer_dword(value);
                } else if !io.in_vm_process() {
                    access.answer_dword(u32::MAX);
                }
            }
        }
    }

    fn write<M: VirtioDevice>(
        &mut self,
        io: &mut DeviceState,
        model: &mut M,
        offset: u16,
        eax: u32,
    ) -> Result<(), Fault> {
        match offset {
            // Taken as it is: what the device did not offer is accepted too.
            reg::DRIVER_FEATURES => io.driver_features = eax.into(),
            reg::QUEUE_PFN => {
                self.pfn = eax;
                return self.store_queue(io);
            }
            reg::QUEUE_SELECT => {
                self.select = eax as u16;
                self.load_queue(io);
            }
            reg::QUEUE_NOTIFY => {
                if io.kind == Kind::Blk && io.needs_reset() {
                    return Ok(());
                }
                self.notify = eax as u16;
                if model.notify(self.notify, io)? {
                    io.irq.assert();
                }
            }
            reg::DEVICE_STATUS => {
                io.status = eax as u8;
                if io.status == 0 && io.kind != Kind::Rng {
                    self.reset(io)?;
                    model.reset();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A reset by the driver, which viornd ignores. Only the queue that is selected loses its address, which becomes
    /// 0 and not "none": a notification after it would be served from there.
    fn reset(&mut self, io: &mut DeviceState) -> Result<(), Fault> {
        io.driver_features = 0;
        self.pfn = 0;
        self.store_queue(io)?;
        self.size = 0;
        self.load_queue(io);
        self.select = 0;
        self.notify = 0;
        io.isr = 0;
        for queue in &mut io.queues {
            queue.last_avail = 0;
        }
        if reading_the_isr_lowers_the_line(io.kind) {
            io.irq.deassert();
        }
        Ok(())
    }

    /// Fills the queue registers from the selected queue; one that does not exist shows size 0 and the address of the
    /// one before.
    fn load_queue(&mut self, io: &DeviceState) {
        match io.queues.get(usize::from(self.select)) {
            Some(queue) => {
                self.pfn = (queue.gpa / ring::LEGACY_PAGE) as u32;
                self.size = queue.size as u16;
            }
            None => self.size = 0,
        }
    }

    /// Gives the selected queue its address.
    fn store_queue(&self, io: &mut DeviceState) -> Result<(), Fault> {
        let Some(queue) = io.queues.get_mut(usize::from(self.select)) else {
            return Ok(());
        };
        queue.gpa = u64::from(self.pfn) * ring::LEGACY_PAGE;
        queue.map(&io.ram, io.kind, self.select)
    }
}

/// vioscsi of 7.7 clears its ISR register when it is read but does not lower its line, nor does a reset (`vioscsi_io`).
const fn reading_the_isr_lowers_the_line(kind: Kind) -> bool {
    !matches!(kind, Kind::Scsi)
}
