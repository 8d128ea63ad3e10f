//! A guest driver for tests: lays out queues in RAM and accesses the device through port accesses
//! only.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::{Capabilities, Generation};

use crate::{
    bus::{PortAccess, Width},
    irqchip::{InterruptController, line::IrqLine},
    pci::PciFunction,
    virtio::{FaultSlot, GuestRam, VirtioDevice, VirtioPci, VirtioResources},
};

/// RAM of the test guests, in bytes.
pub(super) const RAM: usize = 4 << 20;
/// Address of the first queue; each queue has 64 KiB.
const QUEUES: u64 = 0x10_0000;
/// Address of the buffers, one page each.
pub(super) const BUFFERS: u64 = 0x20_0000;

/// EAX before an IN, which shows whether the device answered.
pub(super) const UNTOUCHED: u32 = 0xa5a5_a5a5;

/// Levels of the interrupt lines, as a bit map.
#[derive(Default)]
pub(super) struct LineLevels(AtomicU32);

impl InterruptController for LineLevels {
    fn assert_irq(&self, irq: u8) {
        self.0.fetch_or(1 << irq, Ordering::SeqCst);
    }

    fn deassert_irq(&self, irq: u8) {
        self.0.fetch_and(!(1 << irq), Ordering::SeqCst);
    }
}

/// A device with its guest driver.
pub(super) struct GuestDriver<M> {
    pub(super) device: VirtioPci<M>,
    pub(super) ram: GuestRam,
    pub(super) faults: FaultSlot,
    lines: Arc<LineLevels>,
    legacy: bool,
    next_avail: Vec<u16>,
    next_used: Vec<u16>,
}

/// One buffer of a request.
pub(super) enum Buffer<'a> {
    /// The device reads it.
    Out(&'a [u8]),
    /// The device writes up to this number of bytes.
    In(u32),
}

impl<M: VirtioDevice> GuestDriver<M> {
    pub(super) fn new(generation: Generation, model: M) -> Self {
        Self::with(generation.capabilities(), model)
    }

    /// A device of a vmd with `capabilities`.
    pub(super) fn with(capabilities: Capabilities, model: M) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let lines = Arc::new(LineLevels::default());
        let faults = FaultSlot::default();
        let resources = VirtioResources {
            capabilities,
            ram: ram.clone(),
            irq: IrqLine::new(lines.clone(), 5),
            faults: faults.clone(),
        };
        let queues = usize::from(M::DEVICE_TYPE.queues());
        Self {
            device: VirtioPci::new(model, resources),
            ram,
            faults,
            lines,
            legacy: !capabilities.virtio_1,
            next_avail: vec![0; queues],
            next_used: vec![0; queues],
        }
    }

    /// A driver that has initialised its device.
    pub(super) fn started(generation: Generation, model: M) -> Self {
        let mut guest = Self::new(generation, model);
        guest.start();
        guest
    }

    /// Replaces the RAM, as at power-on.
    pub(super) fn replace_ram(&mut self, ram: GuestRam) {
        self.device.replace_ram(ram.clone());
        self.ram = ram;
    }

    pub(super) fn input(&mut self, offset: u16, width: Width) -> u32 {
        let mut access = PortAccess::input(0xc000 + offset, width, UNTOUCHED);
        self.device.bar_access(offset, &mut access);
        access.eax
    }

    pub(super) fn output(&mut self, offset: u16, width: Width, value: u32) {
        self.device.bar_access(offset, &mut PortAccess::output(0xc000 + offset, width, value));
    }

    pub(super) fn line(&self) -> bool {
        self.lines.0.load(Ordering::SeqCst) != 0
    }

    /// Reads the ISR.
    pub(super) fn isr(&mut self) -> u32 {
        let offset = if self.legacy { 0x13 } else { 0x200 };
        self.input(offset, Width::Byte)
    }

    pub(super) fn status(&mut self) -> u32 {
        self.input(if self.legacy { 0x12 } else { 0x14 }, Width::Byte)
    }

    pub(super) fn set_status(&mut self, status: u32) {
        self.output(if self.legacy { 0x12 } else { 0x14 }, Width::Byte, status);
    }

    /// Resets and initialises the device with all offered features.
    pub(super) fn start(&mut self) {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        if self.legacy {
            let features = self.input(0, Width::Dword);
            self.output(4, Width::Dword, features);
        } else {
            for word in 0..2 {
                self.output(0, Width::Dword, word);
                let features = self.input(4, Width::Dword);
                self.output(8, Width::Dword, word);
                self.output(12, Width::Dword, features);
            }
            self.set_status(11);
            assert_eq!(self.status(), 11);
        }
        for queue in 0..M::DEVICE_TYPE.queues() {
            self.set_up_queue(queue);
            self.next_avail[usize::from(queue)] = 0;
            self.next_used[usize::from(queue)] = 0;
        }
        let ok = self.status() | 4;
        self.set_status(ok);
    }

    fn set_up_queue(&mut self, queue: u16) {
        let size = u32::from(M::DEVICE_TYPE.queue_size());
        let (table, avail, used) = Self::addresses(queue);
        self.ram.write_slice(&vec![0; 0x1_0000], GuestAddress(table)).unwrap();
        if self.legacy {
            self.output(0x0e, Width::Word, queue.into());
            assert_eq!(self.input(0x0c, Width::Word) & 0xffff, size);
            self.output(0x08, Width::Dword, (table >> 12) as u32);
        } else {
            self.output(0x16, Width::Word, queue.into());
            assert_eq!(self.input(0x18, Width::Word), size);
            for (register, address) in [(0x20, table), (0x28, avail), (0x30, used)] {
                self.output(register, Width::Dword, address as u32);
                self.output(register + 4, Width::Dword, (address >> 32) as u32);
            }
            self.output(0x1c, Width::Word, 1);
        }
    }

    /// Addresses of the descriptor table, the available ring and the used ring.
    pub(super) fn addresses(queue: u16) -> (u64, u64, u64) {
        let size = u64::from(M::DEVICE_TYPE.queue_size());
        let table = QUEUES + 0x1_0000 * u64::from(queue);
        let avail = table + 16 * size;
        let used = (avail + 4 + 2 * size).next_multiple_of(4096);
        (table, avail, used)
    }

    pub(super) fn set_descriptor(&self, queue: u16, index: u16, descriptor: Descriptor) {
        let (table, ..) = Self::addresses(queue);
        self.ram.write_obj(descriptor, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    /// Makes `head` available without a notification.
    pub(super) fn push(&mut self, queue: u16, head: u16) {
        let (_, avail, _) = Self::addresses(queue);
        let index = self.next_avail[usize::from(queue)];
        let slot = index % M::DEVICE_TYPE.queue_size();
        self.ram.write_obj(head, GuestAddress(avail + 4 + 2 * u64::from(slot))).unwrap();
        self.next_avail[usize::from(queue)] = index.wrapping_add(1);
        self.ram.write_obj(index.wrapping_add(1), GuestAddress(avail + 2)).unwrap();
    }

    pub(super) fn notify(&mut self, queue: u16) {
        self.output(if self.legacy { 0x10 } else { 0x100 }, Width::Word, queue.into());
    }

    /// Writes `buffers` as a chain from descriptor `head` on, each in its own page from `BUFFERS`
    /// on, and makes it available.
    pub(super) fn chain(&mut self, queue: u16, head: u16, buffers: &[Buffer<'_>]) {
        for (position, buffer) in buffers.iter().enumerate() {
            let index = head + position as u16;
            let address = Self::buffer(queue, index);
            let (length, mut flags) = match buffer {
                Buffer::Out(bytes) => {
                    self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
                    (bytes.len() as u32, 0)
                }
                Buffer::In(length) => (*length, VRING_DESC_F_WRITE as u16),
            };
            let mut next = 0;
            if position + 1 < buffers.len() {
                flags |= VRING_DESC_F_NEXT as u16;
                next = index + 1;
            }
            self.set_descriptor(queue, index, Descriptor::new(address, length, flags, next));
        }
        self.push(queue, head);
    }

    /// Address of the buffer of descriptor `index` in [`GuestDriver::chain`].
    pub(super) fn buffer(queue: u16, index: u16) -> u64 {
        BUFFERS + 0x8_0000 * u64::from(queue) + 4096 * u64::from(index)
    }

    pub(super) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Takes the next used element: head and length.
    pub(super) fn take_used(&mut self, queue: u16) -> Option<(u32, u32)> {
        let (.., used) = Self::addresses(queue);
        let index: u16 = self.ram.read_obj(GuestAddress(used + 2)).unwrap();
        let next = &mut self.next_used[usize::from(queue)];
        if *next == index {
            return None;
        }
        let slot = u64::from(*next % M::DEVICE_TYPE.queue_size());
        *next = next.wrapping_add(1);
        let [id, length] =
            [0, 4].map(|at| self.ram.read_obj(GuestAddress(used + 4 + 8 * slot + at)).unwrap());
        Some((id, length))
    }
}
