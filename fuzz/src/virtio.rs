//! An arbitrary guest driver for a virtio device.

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use devices::{
    bus::{PortAccess, Width},
    pci::PciFunction,
    virtio::{FaultSlot, GuestRam, VirtioDevice, VirtioPci, VirtioResources, disk::Disk},
};
use vm_memory::{Bytes, GuestAddress};
use vmd_release::Generation;

use crate::{AnyWidth, line};

/// RAM of the guest, in bytes.
const RAM: u32 = 1 << 20;
/// Address of the buffers; the queues are below, 64 KiB each.
pub const BUFFERS: u64 = 0x4_0000;
/// Bytes in the disk.
const DISK: usize = 64 * 1024;

/// A small disk in memory.
#[derive(Clone)]
pub struct MemoryDisk(Arc<Mutex<Vec<u8>>>);

impl Default for MemoryDisk {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((0..DISK).map(|at| (at / 512) as u8).collect())))
    }
}

impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        DISK as u64
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let bytes = self.0.lock().unwrap();
        let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or(&[]);
        let length = buffer.len().min(from.len());
        buffer[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }

    fn write_at(&mut self, buffer: &[u8], offset: u64) -> std::io::Result<usize> {
        let mut bytes = self.0.lock().unwrap();
        let to = usize::try_from(offset).ok().and_then(|at| bytes.get_mut(at..)).unwrap_or(&mut []);
        let length = buffer.len().min(to.len());
        to[..length].copy_from_slice(&buffer[..length]);
        Ok(length)
    }
}

/// A guest physical address.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Address {
    /// One of the first pages for buffers.
    Buffer(u8),
    /// This number of bytes before the end of RAM.
    End(u8),
    /// Anywhere.
    Any(u64),
}

impl Address {
    fn get(self) -> u64 {
        match self {
            Self::Buffer(page) => BUFFERS + u64::from(page % 64) * 4096,
            Self::End(before) => u64::from(RAM) - u64::from(before),
            Self::Any(address) => address,
        }
    }
}

/// A descriptor.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Entry {
    address: Address,
    length: u16,
    /// The length is this value instead if it is a multiple of 16: rarely, because large transfers
    /// are slow.
    huge: u32,
    flags: u8,
    next: u8,
}

/// One action of the guest.
#[derive(Arbitrary, Clone, Debug)]
pub enum Step {
    /// It reads a register.
    In { offset: u16, width: AnyWidth, eax: u32 },
    /// It writes a register.
    Out { offset: u16, width: AnyWidth, eax: u32 },
    /// It writes a small number into one of the first registers.
    OutSmall { offset: u8, width: AnyWidth, value: u8 },
    /// It initialises the device as a driver does.
    Start,
    /// It writes a descriptor.
    Descriptor { queue: u8, index: u8, entry: Entry },
    /// It writes an entry of the available ring.
    Available { queue: u8, slot: u8, head: u16 },
    /// It advances the available ring's index by this number.
    Advance { queue: u8, by: u8 },
    /// It sets the available ring's index.
    Jump { queue: u8, index: u16 },
    /// It writes to RAM.
    Poke { address: Address, bytes: [u8; 16] },
    /// It notifies a queue.
    Notify { queue: u8 },
    /// A power cycle.
    PowerCycle,
    /// A number that each target interprets itself.
    Other,
}

/// A device and its guest.
pub struct Machine<M> {
    /// The device.
    pub device: VirtioPci<M>,
    ram: GuestRam,
    faults: FaultSlot,
    legacy: bool,
}

impl<M: VirtioDevice> Machine<M> {
    /// A VM at power-on.
    pub fn new(generation: Generation, model: M) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
        let faults = FaultSlot::default();
        let attachment =
            VirtioResources { capabilities: generation.capabilities(), ram: ram.clone(), irq: line(5), faults: faults.clone() };
        let device = VirtioPci::new(model, attachment);
        Self { device, ram, faults, legacy: generation == Generation::V7_7 }
    }

    fn input(&mut self, offset: u16, width: Width, eax: u32) -> u32 {
        let mut access = PortAccess::input(0xc000 + offset, width, eax);
        self.device.bar_access(offset, &mut access);
        access.eax
    }

    fn output(&mut self, offset: u16, width: Width, eax: u32) {
        self.device.bar_access(offset, &mut PortAccess::output(0xc000 + offset, width, eax));
    }

    /// Table and available ring of a queue.
    fn queue(queue: u8) -> (u64, u64) {
        let queue = u64::from(queue) % u64::from(M::DEVICE_TYPE.queues());
        let table = 0x1_0000 * (queue + 1);
        (table, table + 16 * u64::from(M::DEVICE_TYPE.queue_size()))
    }

    /// Initialises the device.
    pub fn start(&mut self) {
        let status = if self.legacy { 0x12 } else { 0x14 };
        self.output(status, Width::Byte, 0);
        if self.legacy {
            for queue in 0..M::DEVICE_TYPE.queues() {
                self.output(0x0e, Width::Word, queue.into());
                let (table, _) = Self::queue(queue as u8);
                self.output(0x08, Width::Dword, (table >> 12) as u32);
            }
        } else {
            for word in 0..2 {
                self.output(0x08, Width::Dword, word);
                self.output(0x0c, Width::Dword, u32::MAX);
            }
            for queue in 0..M::DEVICE_TYPE.queues() {
                self.output(0x16, Width::Word, queue.into());
                let (table, avail) = Self::queue(queue as u8);
                let used = (avail + 4 + 2 * u64::from(M::DEVICE_TYPE.queue_size())).next_multiple_of(4096);
                for (register, address) in [(0x20, table), (0x28, avail), (0x30, used)] {
                    self.output(register, Width::Dword, address as u32);
                }
                self.output(0x1c, Width::Word, 1);
            }
        }
        self.output(status, Width::Byte, 0x0f);
    }

    /// Writes to RAM, up to its end.
    pub fn poke(&self, address: u64, bytes: &[u8]) {
        let _ = self.ram.write_slice(bytes, GuestAddress(address));
    }

    /// Writes a descriptor.
    pub fn descriptor(&self, queue: u8, index: u8, entry: Entry) {
        let (table, _) = Self::queue(queue);
        let length = if entry.huge % 16 == 0 { entry.huge } else { u32::from(entry.length) };
        let mut bytes = entry.address.get().to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(u16::from(entry.flags & 7).to_le_bytes());
        bytes.extend(u16::from(entry.next).to_le_bytes());
        self.poke(table + 16 * u64::from(index), &bytes);
    }

    /// Writes a valid descriptor with its own buffer.
    pub fn buffer(&self, queue: u8, index: u8, length: u32, flags: u8) {
        let (table, _) = Self::queue(queue);
        let mut bytes = (BUFFERS + u64::from(index) * 4096).to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(u16::from(flags).to_le_bytes());
        bytes.extend((u16::from(index) + 1).to_le_bytes());
        self.poke(table + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain available, and notifies.
    pub fn submit(&mut self, queue: u8, head: u16) {
        let (_, avail) = Self::queue(queue);
        let index: u16 = self.ram.read_obj(GuestAddress(avail + 2)).unwrap();
        let slot = u64::from(index) % u64::from(M::DEVICE_TYPE.queue_size());
        self.poke(avail + 4 + 2 * slot, &head.to_le_bytes());
        self.poke(avail + 2, &index.wrapping_add(1).to_le_bytes());
        self.notify(queue);
    }

    /// Notifies a queue.
    pub fn notify(&mut self, queue: u8) {
        self.output(if self.legacy { 0x10 } else { 0x100 }, Width::Word, queue.into());
    }

    /// Executes one step. Returns false once the VM has ended.
    pub fn step(&mut self, step: &Step) -> bool {
        match *step {
            Step::In { offset, width, eax } => drop(self.input(offset & 0xfff, width.into(), eax)),
            Step::Out { offset, width, eax } => self.output(offset & 0xfff, width.into(), eax),
            Step::OutSmall { offset, width, value } => self.output(offset.into(), width.into(), value.into()),
            Step::Start => self.start(),
            Step::Descriptor { queue, index, entry } => self.descriptor(queue, index, entry),
            Step::Available { queue, slot, head } => {
                let (_, avail) = Self::queue(queue);
                self.poke(avail + 4 + 2 * u64::from(slot), &head.to_le_bytes());
            }
            Step::Advance { queue, by } => {
                let (_, avail) = Self::queue(queue);
                let index: u16 = self.ram.read_obj(GuestAddress(avail + 2)).unwrap();
                self.poke(avail + 2, &index.wrapping_add(by.into()).to_le_bytes());
            }
            Step::Jump { queue, index } => {
                let (_, avail) = Self::queue(queue);
                self.poke(avail + 2, &index.to_le_bytes());
            }
            Step::Poke { address, ref bytes } => self.poke(address.get(), bytes),
            Step::Notify { queue } => self.notify(queue),
            Step::PowerCycle => self.device.reset(),
            Step::Other => {}
        }
        self.faults.get().is_none()
    }
}

/// Runs steps on one of the devices: those with `kind` odd are started first.
pub fn run_any(generation: Generation, kind: u8, steps: &[Step]) {
    use devices::virtio::{
        blk::Blk,
        net::{MacAddr, Net, NetOptions, Unplugged},
        rng::Rng,
        scsi::Scsi,
    };
    let started = kind & 1 != 0;
    match kind / 2 % 4 {
        0 => run(generation, Rng::from_source(|bytes| bytes.fill(1)), started, steps, |_| {}),
        1 => {
            let blk = Blk::new(Box::new(MemoryDisk::default()));
            run(generation, blk, started, steps, |_| {});
        }
        2 => run(generation, Scsi::new(Box::new(MemoryDisk::default())), started, steps, |_| {}),
        _ => {
            let options = NetOptions { mac: MacAddr::generated(0, 0), locked: true, local: None };
            let net = Net::new(&generation.capabilities(), options, Box::new(Unplugged));
            run(generation, net, started, steps, |machine: &mut Machine<Net>| {
                machine.device.can_receive();
                machine.device.receive();
            });
        }
    }
}

fn run<M: VirtioDevice>(
    generation: Generation,
    model: M,
    started: bool,
    steps: &[Step],
    mut other: impl FnMut(&mut Machine<M>),
) {
    let mut machine = Machine::new(generation, model);
    if started {
        machine.start();
    }
    for step in steps {
        if matches!(step, Step::Other) {
            other(&mut machine);
        }
        if !machine.step(step) {
            break;
        }
    }
}
