//! virtio 1.x in an I/O BAR, as vmd has it from 7.8 on.
//!
//! | offset | |
//! |---|---|
//! | 0x000 | common configuration |
//! | 0x100 | notify: the queue's number is written anywhere in here (multiplier 0) |
//! | 0x200 | ISR: reading anywhere in here clears it and lowers the line |
//! | 0x300 | device configuration |
//!
//! Registers are matched by their exact offset, and an access of any width is answered as 32 bits.
//! Widths matter to some writes only: the feature registers and the queue addresses accept 32-bit
//! writes, the status accepts 8-bit writes, and other widths are dropped there; the remaining
//! registers take EAX whatever the width (`virtio_io_cfg` in virtio.c, `vionet_cfg_read` and
//! `vionet_cfg_write` in vionet.c, 7.8).
//!
//! Reads where there is no register: see `unknown` and `unknown_register`.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::virtio::{
    device::{DeviceState, VirtioDevice},
    device_type::DeviceType,
    fault::Fault,
    queue::Queue,
};
use crate::{
    bus::{Direction, PortAccess, Width},
    irqchip::msi::NO_VECTOR,
};

/// The feature bit of virtio 1.x.
pub(super) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// The largest queue size in entries: IOV_MAX on OpenBSD.
const QUEUE_SIZE_MAX: u32 = 1024;
/// Size in bytes that vmd reserves for each capability, and their distance in configuration space.
const CAPABILITY_SLOT: usize = 24;

/// Areas of the BAR, by the high byte of the offset.
mod area {
    pub(super) const COMMON: u16 = 0x000;
    pub(super) const NOTIFY: u16 = 0x100;
    pub(super) const ISR: u16 = 0x200;
    pub(super) const DEVICE: u16 = 0x300;
}

/// Offsets in the common configuration (virtio 1.2, 4.1.4.3).
mod reg {
    pub(super) const DEVICE_FEATURE_SELECT: u8 = 0x00;
    pub(super) const DEVICE_FEATURE: u8 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u8 = 0x08;
    pub(super) const DRIVER_FEATURE: u8 = 0x0c;
    pub(super) const CONFIG_MSIX_VECTOR: u8 = 0x10;
    pub(super) const NUM_QUEUES: u8 = 0x12;
    pub(super) const DEVICE_STATUS: u8 = 0x14;
    pub(super) const CONFIG_GENERATION: u8 = 0x15;
    pub(super) const QUEUE_SELECT: u8 = 0x16;
    pub(super) const QUEUE_SIZE: u8 = 0x18;
    pub(super) const QUEUE_MSIX_VECTOR: u8 = 0x1a;
    pub(super) const QUEUE_ENABLE: u8 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u8 = 0x1e;
    pub(super) const QUEUE_DESC: u8 = 0x20;
    pub(super) const QUEUE_DESC_HIGH: u8 = 0x24;
    pub(super) const QUEUE_AVAIL: u8 = 0x28;
    pub(super) const QUEUE_AVAIL_HIGH: u8 = 0x2c;
    pub(super) const QUEUE_USED: u8 = 0x30;
    pub(super) const QUEUE_USED_HIGH: u8 = 0x34;
}

/// The capability list of a device as `virtio_pci_add_cap` in virtio.c builds it: common, device
/// (if it has a configuration), ISR, notify, each in 24 bytes of which 16 are announced
/// (`golden/pci/k73.config.hex.txt`).
pub(super) fn capabilities(device_type: DeviceType) -> Vec<Vec<u8>> {
    // Capability types (virtio 1.2, 4.1.4).
    const COMMON_CFG: u8 = 1;
    const NOTIFY_CFG: u8 = 2;
    const ISR_CFG: u8 = 3;
    const DEVICE_CFG: u8 = 4;
    const VENDOR_SPECIFIC: u8 = 0x09;
    const ANNOUNCED: u8 = 16;

    let device = device_type.config_length().map(|length| (DEVICE_CFG, area::DEVICE, length));
    [
        Some((COMMON_CFG, area::COMMON, 0x38)),
        device,
        Some((ISR_CFG, area::ISR, 1)),
        Some((NOTIFY_CFG, area::NOTIFY, 2)),
    ]
    .into_iter()
    .flatten()
    .map(|(what, offset, length)| {
        let mut capability = vec![0; CAPABILITY_SLOT];
        capability[0] = VENDOR_SPECIFIC;
        capability[2] = ANNOUNCED;
        capability[3] = what;
        capability[8..12].copy_from_slice(&u32::from(offset).to_le_bytes());
        capability[12..16].copy_from_slice(&length.to_le_bytes());
        capability
    })
    .collect()
}

/// The transport's own registers.
///
/// The queue registers are one set. A write to QUEUE_SELECT loads them from the queue, and a write
/// to any of them stores all of them (`virtio_update_qs`, `virtio_update_qa`).
#[derive(Debug, Default)]
pub(in crate::virtio) struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    queue_size: u16,
    queue_enable: u16,
    queue_desc: u64,
    queue_avail: u64,
    queue_used: u64,
    /// The 0.9 queue address, used for a driver that has not accepted VERSION_1.
    legacy_pfn: u32,
    queue_vector: Option<u16>,
}

impl Registers {
    pub(super) fn access<M: VirtioDevice>(
        &mut self,
        state: &mut DeviceState,
        model: &mut M,
        offset: u16,
        access: &mut PortAccess,
    ) -> Result<(), Fault> {
        let register = offset as u8;
        match (access.direction, offset & 0xff00) {
            (Direction::In, area::COMMON) => access.answer_dword(self.read(state, register)),
            (Direction::In, area::DEVICE) => {
                if let Some(value) = model.read_config(register, access.width) {
                    access.answer_dword(value);
                } else if !state.in_vm_process() {
                    access.answer_dword(unknown(state, area::DEVICE));
                }
            }
            (Direction::In, area::NOTIFY) => read_notify(state, access),
            (Direction::In, area::ISR) => {
                access.answer_dword(state.isr.into());
                state.isr = 0;
                state.irq.deassert();
            }
            (Direction::In, area) => access.answer_dword(unknown(state, area)),
            (Direction::Out, area::COMMON) => {
                return self.write(state, model, register, access.width, access.eax);
            }
            (Direction::Out, area::NOTIFY) => {
                let queue = access.eax as u16;
                if model.notify(queue, state)? {
                    state.interrupt(queue);
                }
            }
            // Neither the ISR nor any device configuration can be written.
            (Direction::Out, _) => {}
        }
        Ok(())
    }

    fn read(&self, state: &DeviceState, register: u8) -> u32 {
        match register {
            reg::DEVICE_FEATURE_SELECT => self.device_feature_select,
            reg::DEVICE_FEATURE => features(state, state.device_features, self.device_feature_select),
            reg::DRIVER_FEATURE_SELECT => self.driver_feature_select,
            reg::DRIVER_FEATURE => features(state, state.driver_features, self.driver_feature_select),
            reg::CONFIG_MSIX_VECTOR => state.config_vector.into(),
            reg::QUEUE_MSIX_VECTOR => self.queue_vector(state).into(),
            reg::NUM_QUEUES => state.queues.len() as u32,
            reg::DEVICE_STATUS => state.status.into(),
            // The configuration never changes, and all queues have the same notify offset.
            reg::CONFIG_GENERATION | reg::QUEUE_NOTIFY_OFF => 0,
            reg::QUEUE_SELECT => self.queue_select.into(),
            reg::QUEUE_SIZE => self.queue_size.into(),
            reg::QUEUE_ENABLE => self.queue_enable.into(),
            reg::QUEUE_DESC => self.queue_desc as u32,
            reg::QUEUE_DESC_HIGH => (self.queue_desc >> 32) as u32,
            reg::QUEUE_AVAIL => self.queue_avail as u32,
            reg::QUEUE_AVAIL_HIGH => (self.queue_avail >> 32) as u32,
            reg::QUEUE_USED => self.queue_used as u32,
            reg::QUEUE_USED_HIGH => (self.queue_used >> 32) as u32,
            _ => unknown_register(state),
        }
    }

    fn write<M: VirtioDevice>(
        &mut self,
        state: &mut DeviceState,
        model: &mut M,
        register: u8,
        width: Width,
        eax: u32,
    ) -> Result<(), Fault> {
        let dword = width == Width::Dword;
        match register {
            reg::DEVICE_FEATURE_SELECT if dword => self.device_feature_select = eax,
            reg::DRIVER_FEATURE_SELECT if dword => self.driver_feature_select = eax,
            reg::DRIVER_FEATURE if dword => accept_features(state, self.driver_feature_select, eax),
            reg::DEVICE_STATUS if width == Width::Byte => {
                // vmd accepts every status; FEATURES_OK is never refused.
                state.status = eax as u8;
                if state.status == 0 {
                    self.reset(state);
                    model.reset();
                }
            }
            reg::CONFIG_MSIX_VECTOR | reg::QUEUE_MSIX_VECTOR
                if state.vectors() > 0 && width == Width::Word =>
            {
                self.set_vector(state, register, eax as u16);
            }
            reg::QUEUE_SELECT => {
                self.queue_select = eax as u16;
                self.load_queue(state);
            }
            reg::QUEUE_SIZE => {
                self.queue_size = eax.min(QUEUE_SIZE_MAX) as u16;
                return self.store_queue(state);
            }
            reg::QUEUE_ENABLE => {
                self.queue_enable = eax as u16;
                return self.store_queue(state);
            }
            _ if dword => {
                let (address, high) = match register {
                    reg::QUEUE_DESC => (&mut self.queue_desc, false),
                    reg::QUEUE_DESC_HIGH => (&mut self.queue_desc, true),
                    reg::QUEUE_AVAIL => (&mut self.queue_avail, false),
                    reg::QUEUE_AVAIL_HIGH => (&mut self.queue_avail, true),
                    reg::QUEUE_USED => (&mut self.queue_used, false),
                    reg::QUEUE_USED_HIGH => (&mut self.queue_used, true),
                    _ => return Ok(()),
                };
                *address = if high {
                    u64::from(eax) << 32 | u64::from(*address as u32)
                } else {
                    *address >> 32 << 32 | u64::from(eax)
                };
                return self.store_queue(state);
            }
            _ => {}
        }
        Ok(())
    }

    /// QUEUE_MSIX_VECTOR, from 8.0 on: of the entropy device the selected queue's vector, which a
    /// reset clears (`virtio_update_qs`, `virtio_pci_msix_io`); of all others the vector written
    /// last, whichever queue is selected.
    fn queue_vector(&self, state: &DeviceState) -> u16 {
        let vector = if state.device_type == DeviceType::Rng {
            state.queue_vectors.get(usize::from(self.queue_select)).copied()
        } else {
            self.queue_vector
        };
        vector.unwrap_or(NO_VECTOR)
    }

    /// Sets the MSI-X vector in `register`; a vector that does not exist becomes "none".
    fn set_vector(&mut self, state: &mut DeviceState, register: u8, vector: u16) {
        let vector = if vector < state.vectors() { vector } else { NO_VECTOR };
        if register == reg::CONFIG_MSIX_VECTOR {
            state.config_vector = vector;
        } else if let Some(queue) = state.queue_vectors.get_mut(usize::from(self.queue_select)) {
            *queue = vector;
            self.queue_vector = Some(vector);
        }
    }

    /// Handles a reset by the driver. The feature selectors keep their value and, up to 7.9, so do
    /// the queue registers and the queues' mappings; only a NIC lowers its line.
    fn reset(&mut self, state: &mut DeviceState) {
        state.driver_features = 0;
        state.isr = 0;
        state.config_vector = NO_VECTOR;
        state.queue_vectors.fill(NO_VECTOR);
        self.queue_select = 0;
        let unmaps = has_split_rings(state);
        if !unmaps {
            self.load_queue(state);
        }
        let size = state.device_type.queue_size();
        for queue in &mut state.queues {
            *queue = Queue { mapped: queue.mapped.filter(|_| !unmaps), ..Queue::modern(size) };
        }
        if unmaps {
            self.load_queue(state);
        }
        if state.device_type == DeviceType::Net {
            state.irq.deassert();
        }
    }

    /// Fills the queue registers from the selected queue. A queue that does not exist shows size 0,
    /// disabled, and the previous queue's addresses. Up to 7.9 nothing changes before VERSION_1 is
    /// accepted.
    fn load_queue(&mut self, state: &DeviceState) {
        if !is_modern(state) {
            self.legacy_pfn = (state.queues[0].gpa >> 12) as u32;
            return;
        }
        let Some(queue) = state.queues.get(usize::from(self.queue_select)) else {
            self.queue_size = 0;
            self.queue_enable = 0;
            return;
        };
        let (avail, used) = if has_split_rings(state) {
            queue.split.unwrap_or_default()
        } else {
            let ring = |offset: u32| queue.gpa.wrapping_add(offset.into());
            (ring(queue.avail_offset), ring(queue.used_offset))
        };
        self.queue_size = queue.size as u16;
        self.queue_desc = queue.gpa;
        self.queue_avail = avail;
        self.queue_used = used;
        self.queue_enable = queue.enabled.into();
    }

    /// Copies the queue registers into the selected queue.
    ///
    /// Up to 7.9 a zero or odd size disables the queue, a size need not be a power of two, and a
    /// table outside RAM ends the VM. 8.0 disables every invalid queue.
    fn store_queue(&mut self, state: &mut DeviceState) -> Result<(), Fault> {
        let modern = is_modern(state);
        let split = has_split_rings(state);
        let index = if modern { self.queue_select } else { 0 };
        let Some(queue) = state.queues.get_mut(usize::from(index)) else {
            return Ok(());
        };
        if split {
            queue.gpa = self.queue_desc;
            queue.size = self.queue_size.into();
            queue.split = Some((self.queue_avail, self.queue_used));
            queue.map_split(&state.ram);
            queue.enabled = queue.mapped.is_some() && self.queue_enable == 1;
            return Ok(());
        }
        if modern {
            queue.gpa = self.queue_desc;
            queue.size = self.queue_size.into();
            let usable = queue.size > 0 && queue.size % 2 == 0;
            let offset = |ring: u64| if usable { ring.wrapping_sub(queue.gpa) as u32 } else { 0 };
            queue.avail_offset = offset(self.queue_avail);
            queue.used_offset = offset(self.queue_used);
            queue.enabled = usable && self.queue_enable == 1;
        } else {
            queue.gpa = u64::from(self.legacy_pfn) << 12;
            queue.lay_out_legacy();
        }
        if queue.gpa == 0 {
            queue.mapped = None;
            queue.last_avail = 0;
            queue.deferred = false;
            return Ok(());
        }
        queue.map(&state.ram, state.device_type, index)
    }
}

/// Whether the rings can be at any distance from the table: up to 7.9 vmd stores the distance in 32
/// bits (`virtio_update_qa` in virtio.c).
fn has_split_rings(state: &DeviceState) -> bool {
    state.capabilities.virtio_split_rings
}

/// Whether the queue registers are virtio 1.x's. Up to 7.9 this depends on the features accepted so
/// far.
fn is_modern(state: &DeviceState) -> bool {
    has_split_rings(state) || state.driver_features & VERSION_1 != 0
}

/// The value of an area of the BAR without registers, of a device configuration's unknown register
/// or of the notify area: all ones; from 8.0 on zero from rng's notify area, from all of a disk's,
/// and from a NIC's but the notify area (`virtio_io_notify`, `vioblk_read`, `vionet_read`).
const fn unknown(state: &DeviceState, area: u16) -> u32 {
    let zero = match state.device_type {
        DeviceType::Rng => area == area::NOTIFY,
        DeviceType::Net => area != area::NOTIFY,
        DeviceType::Blk => true,
        DeviceType::Scsi => false,
    };
    if state.capabilities.unknown_registers_read_zero && zero { 0 } else { u32::MAX }
}

/// The value of a common configuration's register that does not exist, or of a feature word beyond
/// the second: zero, but all ones from a NIC of 7.8 (`golden/pci/k612.v1cfg.net.txt`), which makes
/// Linux see unsupported features in words 2 and 3. Whether 7.9 answers so for the feature words is
/// unsettled ([`vmd_release::Unsettled::feature_words_read_ones`]).
fn unknown_register(state: &DeviceState) -> u32 {
    if state.device_type == DeviceType::Net && state.capabilities.net_unknown_registers_read_ones {
        u32::MAX
    } else {
        0
    }
}

fn features(state: &DeviceState, features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ if state.capabilities.feature_words_read_ones => u32::MAX,
        _ => unknown_register(state),
    }
}

/// Accepts features: a write adds bits that the device offers; only a reset clears them.
fn accept_features(state: &mut DeviceState, select: u32, value: u32) {
    let accepted = match select {
        0 => u64::from(value),
        1 => u64::from(value) << 32,
        _ => return,
    };
    state.driver_features = (state.driver_features | accepted) & state.device_features;
}

/// Answers a read of the notify area as [`unknown`] says. Up to 7.9 a device in vmd's VM process
/// first treats EAX as a notification and does not answer if it names no queue (`virtio_io_notify`;
/// `golden/pci/k73.v1cfg.rng.txt`, where the bytes shown for the device configuration are the
/// previous EAX).
fn read_notify(state: &DeviceState, access: &mut PortAccess) {
    let names_a_queue = usize::from(access.eax as u16) < state.queues.len();
    let answers = state.capabilities.unknown_registers_read_zero || names_a_queue;
    if answers || !state.in_vm_process() {
        access.answer_dword(unknown(state, area::NOTIFY));
    }
}
