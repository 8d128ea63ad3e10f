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
//! Registers are matched by their exact offset and, with few exceptions, answered as 32 bits
//! whatever the width (`virtio_rnd_io` in virtio.c, `vioscsi_io` in vioscsi.c, `handle_io_read` and
//! `handle_io_write` in vioblk.c and vionet.c, 7.7).

use crate::bus::{Direction, PortAccess};
use crate::virtio::{
    device::{DeviceState, VirtioDevice},
    device_type::DeviceType,
    fault::Fault,
    queue::LEGACY_PAGE,
};

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

/// The transport's own registers; all refer to the selected queue. The size reads 0 until a queue
/// was selected.
#[derive(Debug, Default)]
pub(in crate::virtio) struct Registers {
    pfn: u32,
    size: u16,
    select: u16,
    notify: u16,
}

impl Registers {
    pub(super) fn access<M: VirtioDevice>(
        &mut self,
        state: &mut DeviceState,
        model: &mut M,
        offset: u16,
        access: &mut PortAccess,
    ) -> Result<(), Fault> {
        match access.direction {
            Direction::In => {
                self.read(state, model, offset, access);
                Ok(())
            }
            Direction::Out => self.write(state, model, offset, access.eax),
        }
    }

    fn read<M: VirtioDevice>(
        &self,
        state: &mut DeviceState,
        model: &M,
        offset: u16,
        access: &mut PortAccess,
    ) {
        // vioscsi answers this register in the access's own width.
        let by_width = state.device_type == DeviceType::Scsi;
        match offset {
            reg::DEVICE_FEATURES => access.answer_dword(state.device_features as u32),
            reg::DRIVER_FEATURES => access.answer_dword(state.driver_features as u32),
            reg::QUEUE_PFN => access.answer_dword(self.pfn),
            reg::QUEUE_SIZE if by_width => access.answer(self.size.into()),
            reg::QUEUE_SIZE => access.answer_dword(self.size.into()),
            reg::QUEUE_SELECT => access.answer_dword(self.select.into()),
            reg::QUEUE_NOTIFY => access.answer_dword(self.notify.into()),
            reg::DEVICE_STATUS if by_width => access.answer(state.status.into()),
            reg::DEVICE_STATUS => access.answer_dword(state.status.into()),
            reg::ISR => {
                access.answer_dword(state.isr.into());
                state.isr = 0;
                if isr_read_lowers_line(state.device_type) {
                    state.irq.deassert();
                }
            }
            _ => {
                let value = offset
                    .checked_sub(reg::DEVICE_CONFIG)
                    .and_then(|offset| u8::try_from(offset).ok())
                    .and_then(|offset| model.read_legacy_config(offset, access.width, access.eax));
                if let Some(value) = value {
                    access.answer_dword(value);
                } else if !state.in_vm_process() {
                    access.answer_dword(u32::MAX);
                }
            }
        }
    }

    fn write<M: VirtioDevice>(
        &mut self,
        state: &mut DeviceState,
        model: &mut M,
        offset: u16,
        eax: u32,
    ) -> Result<(), Fault> {
        match offset {
            // vmd accepts features that the device did not offer.
            reg::DRIVER_FEATURES => state.driver_features = eax.into(),
            reg::QUEUE_PFN => {
                self.pfn = eax;
                return self.store_queue(state);
            }
            reg::QUEUE_SELECT => {
                self.select = eax as u16;
                self.load_queue(state);
            }
            reg::QUEUE_NOTIFY => {
                if state.device_type == DeviceType::Blk && state.needs_reset() {
                    return Ok(());
                }
                self.notify = eax as u16;
                if model.notify(self.notify, state)? {
                    state.irq.assert();
                }
            }
            reg::DEVICE_STATUS => {
                state.status = eax as u8;
                if state.status == 0 && state.device_type != DeviceType::Rng {
                    self.reset(state)?;
                    model.reset();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Handles a reset by the driver; viornd ignores it. Only the selected queue loses its address,
    /// which becomes 0 instead of "none": a later notification would be processed from there.
    fn reset(&mut self, state: &mut DeviceState) -> Result<(), Fault> {
        state.driver_features = 0;
        self.pfn = 0;
        self.store_queue(state)?;
        self.size = 0;
        self.load_queue(state);
        self.select = 0;
        self.notify = 0;
        state.isr = 0;
        for queue in &mut state.queues {
            queue.last_avail = 0;
            queue.deferred = false;
        }
        if isr_read_lowers_line(state.device_type) {
            state.irq.deassert();
        }
        Ok(())
    }

    /// Fills the queue registers from the selected queue. A queue that does not exist shows size 0
    /// and the previous queue's address.
    fn load_queue(&mut self, state: &DeviceState) {
        match state.queues.get(usize::from(self.select)) {
            Some(queue) => {
                self.pfn = (queue.gpa / LEGACY_PAGE) as u32;
                self.size = queue.size as u16;
            }
            None => self.size = 0,
        }
    }

    /// Sets and maps the address of the selected queue.
    fn store_queue(&self, state: &mut DeviceState) -> Result<(), Fault> {
        let Some(queue) = state.queues.get_mut(usize::from(self.select)) else {
            return Ok(());
        };
        queue.gpa = u64::from(self.pfn) * LEGACY_PAGE;
        queue.map(&state.ram, state.device_type, self.select)
    }
}

/// Whether reading the ISR lowers the line. vioscsi of 7.7 clears its ISR register on a read but
/// lowers its line neither then nor at a reset (`vioscsi_io`).
const fn isr_read_lowers_line(device_type: DeviceType) -> bool {
    !matches!(device_type, DeviceType::Scsi)
}
