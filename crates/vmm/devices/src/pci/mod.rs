//! PCI as vmd(8) has it: one bus, configuration mechanism 1, functions with one 4 KiB I/O BAR
//! (pci.c).
//!
//! A guest can observe:
//!
//! - A write to the data port that is not 32 bits wide goes to the *lowest* bytes of the register,
//!   whatever the offset: a write to STATUS reaches COMMAND. (Linux writes 64 to the latency timer
//!   at 0x0d; in `tests/golden/pci` the value is at 0x0c.) Reads are correct.
//! - Every register can be written, vendor and device IDs included, but the ROM base address.
//!   COMMAND has no effect: BARs always decode.
//! - Writing all ones to a BAR stores its size mask, and 0 where there is no BAR, so that the
//!   register keeps it.
//! - Bus and function number are checked for reads only; a write to any bus or function reaches
//!   function 0 of bus 0.
//! - A BAR at 0xf000 decodes nothing.
//! - A BAR keeps bit 1, and with it set starts two ports later (`PCI_MAPREG_IO_ADDR` in pcireg.h
//!   clears bit 0 only).
//! - INTA goes to the line in the guest-writable interrupt line register, for the functions that
//!   [`LineRegister`] names.
//!
//! 8.0 writes narrow values to the correct bytes, keeps BARs aligned, and gives virtio devices MSI,
//! MSI-X and a second BAR, in memory, for the MSI-X table ([`crate::irqchip::msi`]).

use std::{any::Any, array, fmt, marker::PhantomData, sync::Arc};

use vmd_release::{Capabilities, LineRegister};

use crate::{
    bus::{
        Direction, PortAccess, PortDevice, Width,
        mmio::{self, MmioAccess, MmioRefused},
    },
    irqchip::{
        InterruptController,
        line::IrqLine,
        msi::{self, Messages},
    },
};

/// The address port. Only an access at exactly this port reaches the register.
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// The first of the four data ports.
pub const CONFIG_DATA: u16 = 0xcfc;
/// The first port that BARs can decode; the last is 0xffff (`VM_PCI_IO_BAR_BASE`).
pub const IO_START: u16 = 0x1000;

/// The lines in the order in which functions get them (`pci_pic_irqs`).
pub const IRQS: [u8; 10] = [3, 5, 6, 7, 9, 10, 11, 12, 14, 15];

/// Largest number of capabilities per function.
pub const MAX_CAPABILITIES: usize = 8;
/// Size in bytes of each capability in the configuration space.
pub const CAPABILITY_SIZE: usize = 24;

const BAR_SIZE: u16 = 0x1000;
const SLOTS: usize = 32;
const ENABLE: u32 = 1 << 31;
const NOTHING: u32 = u32::MAX;

/// Index of BAR 1 in a configuration space.
const MEMORY_BAR: usize = 0x14 / 4;
const CAPABILITIES: usize = 0x40;
const ROM_BASE: u8 = 0x30;
const BARS: std::ops::RangeInclusive<u8> = 0x10..=0x24;
/// Interrupt line (byte 0) and interrupt pin (byte 1).
const INTERRUPT: u8 = 0x3c;
const INTA: u8 = 1;
/// A line that does not exist.
const NO_LINE: u8 = 0xff;
/// Subsystem ID of the entropy device.
const RNG: u16 = 4;

/// The identifying registers of a function's configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID, offset 0x00.
    pub vendor: u16,
    /// Device ID, offset 0x02.
    pub device: u16,
    /// Revision, offset 0x08.
    pub revision: u8,
    /// Base class, offset 0x0b.
    pub class: u8,
    /// Subclass, offset 0x0a.
    pub subclass: u8,
    /// Subsystem vendor ID, offset 0x2c.
    pub subsystem_vendor: u16,
    /// Subsystem ID, offset 0x2e.
    pub subsystem: u16,
}

/// OpenBSD's vendor ID.
pub const OPENBSD: u16 = 0x0b5d;

/// The host bridge in slot 0: identity only.
const HOST_BRIDGE: Identity = Identity {
    vendor: OPENBSD,
    device: 0x0666,
    revision: 0,
    class: 6,
    subclass: 0,
    subsystem_vendor: OPENBSD,
    subsystem: 0,
};

/// A PCI function with one 4 KiB I/O BAR and INTA: all of vmd's devices up to 7.9.
pub trait PciFunction: Any + Send {
    /// Its identifying registers.
    fn identity(&self) -> Identity;

    /// Its capabilities in list order, at most [`MAX_CAPABILITIES`] of [`CAPABILITY_SIZE`] bytes
    /// each. Each starts with the capability ID and one byte for the "next" pointer, which the bus
    /// fills in; the body follows. Empty for none.
    fn capabilities(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Number of its MSI-X vectors, from 8.0 on; 0 for a function without MSI and MSI-X. These two
    /// precede [`PciFunction::capabilities`] in the list.
    fn vectors(&self) -> u16 {
        0
    }

    /// Handles an access at `offset` (0 to 0xfff) in its I/O BAR.
    fn bar_access(&mut self, offset: u16, access: &mut PortAccess);

    /// Whether an access has left work for [`PciFunction::run_deferred`].
    fn has_deferred(&self) -> bool {
        false
    }

    /// Does a part of the work that accesses have left. It is bounded, and may leave work again.
    fn run_deferred(&mut self) {}

    /// Returns the function to its power-on state.
    fn reset(&mut self);
}

/// The bus has no line left for another function.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the PCI bus has no interrupt line left for one more device")]
pub struct BusFull;

/// The 256 bytes of a configuration space.
type Space = [u32; 64];

/// The slot of a function of type `F` on the bus that it was added to.
pub struct PciSlot<F> {
    index: usize,
    function: PhantomData<fn() -> F>,
}

impl<F> Clone for PciSlot<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for PciSlot<F> {}

struct Slot {
    /// The line that vmd assigned.
    irq: u8,
    line: IrqLine,
    messages: Arc<Messages>,
    function: Box<dyn PciFunction>,
}

/// The bus: the host bridge in slot 0, then the functions in the order of their addition.
pub struct PciBus {
    capabilities: Capabilities,
    controller: Arc<dyn InterruptController>,
    address: u32,
    /// The functions, from slot 1 on.
    slots: Vec<Slot>,
    spaces: [Space; SLOTS],
}

impl PciBus {
    /// A bus with the host bridge only.
    pub fn new(capabilities: Capabilities, controller: Arc<dyn InterruptController>) -> Self {
        let mut spaces = [[0; 64]; SLOTS];
        spaces[0] = space(HOST_BRIDGE, None, &[]);
        Self { capabilities, controller, address: 0, slots: Vec::new(), spaces }
    }

    /// Adds the function that `build` returns for its interrupt line. It gets the next slot, the
    /// next of [`IRQS`] as a level-triggered line, and the next 4 KiB of I/O space from
    /// [`IO_START`] on.
    pub fn add<F: PciFunction + 'static>(
        &mut self,
        build: impl FnOnce(IrqLine) -> F,
    ) -> Result<PciSlot<F>, BusFull> {
        let irq = *IRQS.get(self.slots.len()).ok_or(BusFull)?;
        let messages = Arc::new(Messages::new(Arc::clone(&self.controller)));
        let line = IrqLine::new(Arc::clone(&self.controller), irq).with_messages(Arc::clone(&messages));
        self.slots.push(Slot { irq, line: line.clone(), messages, function: Box::new(build(line)) });
        let index = self.slots.len() - 1;
        self.power_on(index);
        Ok(PciSlot { index, function: PhantomData })
    }

    /// The function that was added to `slot` of this bus.
    pub fn function<F: PciFunction + 'static>(&self, slot: PciSlot<F>) -> &F {
        let function: &dyn Any = &*self.slots[slot.index].function;
        function.downcast_ref().expect("a slot of this bus has the function that was added to it")
    }

    /// The function that was added to `slot` of this bus.
    pub fn function_mut<F: PciFunction + 'static>(&mut self, slot: PciSlot<F>) -> &mut F {
        let function: &mut dyn Any = &mut *self.slots[slot.index].function;
        function.downcast_mut().expect("a slot of this bus has the function that was added to it")
    }

    /// The slot of the first function whose subsystem ID is `subsystem`, host bridge included
    /// (`pci_find_first_device`; the boot order identifies devices by it).
    pub fn find_subsystem(&self, subsystem: u16) -> Option<usize> {
        self.spaces[..=self.slots.len()]
            .iter()
            .position(|space| space[0x2c / 4] >> 16 == u32::from(subsystem))
    }

    /// Whether a function has work for [`PciBus::run_deferred`].
    pub fn has_deferred(&self) -> bool {
        self.slots.iter().any(|slot| slot.function.has_deferred())
    }

    /// Has all functions do a part of the work that they have deferred.
    pub fn run_deferred(&mut self) {
        for slot in &mut self.slots {
            slot.function.run_deferred();
        }
    }

    /// Returns the bus and all functions to their power-on state. This makes the lines
    /// level-triggered again, so the interrupt controller must be reset first.
    pub fn reset(&mut self) {
        self.address = 0;
        self.spaces = [[0; 64]; SLOTS];
        self.spaces[0] = space(HOST_BRIDGE, None, &[]);
        for n in 0..self.slots.len() {
            self.slots[n].function.reset();
            self.power_on(n);
        }
    }

    /// Fills the configuration space of function `n`.
    fn power_on(&mut self, n: usize) {
        let Slot { irq, line, messages, function } = &self.slots[n];
        line.route(*irq);
        self.controller.set_level_triggered(*irq, true);
        let bar = IO_START + BAR_SIZE * n as u16;
        let vectors = function.vectors();
        messages.power_on(vectors);
        let mut capabilities = function.capabilities();
        if vectors > 0 {
            capabilities.splice(0..0, msi::capabilities(vectors));
        }
        self.spaces[n + 1] = space(function.identity(), Some((bar, *irq)), &capabilities);
        if vectors > 0 {
            let before = self.slots[..n].iter().filter(|slot| slot.messages.vectors() > 0).count() as u32;
            self.spaces[n + 1][MEMORY_BAR] = mmio::WINDOW_BASE as u32 + before * msi::BAR_SIZE;
        }
    }

    fn config_address(&mut self, access: &mut PortAccess) {
        match access.direction {
            Direction::Out => self.address = access.merge_into(self.address),
            Direction::In => access.answer(self.address),
        }
    }

    fn config_data(&mut self, access: &mut PortAccess) {
        let present = self.slots.len() + 1;
        let device = (self.address >> 11 & 0x1f) as usize;
        let exists = if self.capabilities.pci_first_empty_slot_reads_zero {
            // Empty slots can be written; the first one reads as zeroes.
            access.direction == Direction::Out || device <= present
        } else {
            device < present
        };
        if self.address & ENABLE == 0 || !exists {
            if access.direction == Direction::In {
                access.answer(NOTHING);
            }
            return;
        }
        let register = (self.address & 0xfc) as u8;
        let byte = (access.port - CONFIG_DATA) as u8;
        if self.capabilities.pci_narrow_writes {
            self.config_data_8_0(device, register, byte, access);
        } else {
            self.config_data_7_9(device, register, byte, access);
        }
        if access.direction == Direction::Out && register == INTERRUPT && (1..present).contains(&device) {
            self.route_line(device - 1);
        }
    }

    /// Leads INTA of function `n` to the line in its interrupt line register, if this generation
    /// does so for the function.
    fn route_line(&self, n: usize) {
        let [line, pin, ..] = self.spaces[n + 1][usize::from(INTERRUPT / 4)].to_le_bytes();
        let Slot { line: wire, function, .. } = &self.slots[n];
        match self.capabilities.line_register {
            LineRegister::Rng if function.identity().subsystem != RNG => {}
            LineRegister::AllWithPin if pin != INTA => wire.route(NO_LINE),
            LineRegister::All | LineRegister::Rng | LineRegister::AllWithPin => wire.route(line),
        }
    }

    fn config_data_7_9(&mut self, device: usize, register: u8, byte: u8, access: &mut PortAccess) {
        let present = self.slots.len() + 1;
        let value = &mut self.spaces[device][usize::from(register / 4)];
        match access.direction {
            Direction::Out => {
                let has_bar = device > 0 && device < present;
                write_register(value, register, byte, has_bar, *access);
            }
            Direction::In => {
                let function_0 = self.address & 0x00ff_0700 == 0;
                access.answer(if function_0 { read_register(*value, byte, access.width) } else { NOTHING });
            }
        }
    }

    fn config_data_8_0(&mut self, device: usize, register: u8, byte: u8, access: &mut PortAccess) {
        let function_0 = self.address & 0x00ff_0700 == 0;
        if !function_0 || usize::from(byte) + access.width.bytes() > 4 {
            if access.direction == Direction::In {
                access.answer(NOTHING);
            }
            return;
        }
        let space = &mut self.spaces[device];
        let value = space[usize::from(register / 4)];
        if access.direction == Direction::In {
            access.answer(value >> (8 * byte));
            return;
        }
        let messages = device.checked_sub(1).map(|n| &self.slots[n].messages);
        let vectors = messages.map_or(0, |messages| messages.vectors());
        let mask = access.width.mask() << (8 * byte);
        let written = value & !mask | access.eax << (8 * byte) & mask;
        // A single write of all ones requests a BAR's size; otherwise the address bits are kept.
        let sizing = access.width == Width::Dword && access.eax == u32::MAX;
        let bar = |size: u32| if sizing { !(size - 1) } else { written & !(size - 1) };
        let written = match register {
            ROM_BASE => value,
            0x10 if messages.is_some() => bar(BAR_SIZE.into()) | 1,
            0x14 if vectors > 0 => bar(msi::BAR_SIZE),
            0x10..=0x24 => 0,
            msi::MSI if vectors > 0 => {
                if written & msi::MSI_ENABLE != 0 {
                    space[usize::from(msi::MSIX / 4)] &= !msi::MSIX_ENABLE;
                }
                value & !msi::MSI_ENABLE | written & msi::MSI_ENABLE
            }
            // MSI's data: 16 bits.
            0x4c if vectors > 0 => written & 0xffff,
            msi::MSIX if vectors > 0 => {
                const WRITABLE: u32 = msi::MSIX_ENABLE | msi::MSIX_MASK;
                if written & msi::MSIX_ENABLE != 0 {
                    space[usize::from(msi::MSI / 4)] &= !msi::MSI_ENABLE;
                }
                value & !WRITABLE | written & WRITABLE
            }
            // BIR and offsets of the table and the pending bits.
            0x5c | 0x60 if vectors > 0 => value,
            _ => written,
        };
        space[usize::from(register / 4)] = written;
        if let Some(messages) = messages.filter(|_| vectors > 0) {
            let at = |offset: u8| space[usize::from((msi::MSI + offset) / 4)];
            let address = u64::from(at(4)) | u64::from(at(8)) << 32;
            let message = (at(0) & msi::MSI_ENABLE != 0).then_some((address, at(12)));
            messages.configure(message, space[usize::from(msi::MSIX / 4)]);
        }
    }

    /// Handles an access in the memory window that no other device claims: to an MSI-X table, or
    /// else to unclaimed space, which reads as ones.
    pub fn mmio(&mut self, access: &mut MmioAccess) -> Result<(), MmioRefused> {
        for (slot, space) in self.slots.iter().zip(&self.spaces[1..]) {
            let offset = access.address.wrapping_sub((space[MEMORY_BAR] & !0xf).into());
            if slot.messages.vectors() > 0 && offset < msi::BAR_SIZE.into() {
                return slot.messages.mmio(offset as u32, access);
            }
        }
        if access.direction == Direction::In {
            access.answer_ones();
        }
        Ok(())
    }

    fn io(&mut self, access: &mut PortAccess) {
        let mut claims = self.slots.iter_mut().zip(&self.spaces[1..]).filter_map(|(slot, space)| {
            // vmd computes in 16 bits: the end of a BAR in the last 4 KiB wraps to 0, and the BAR
            // contains no port.
            let start = space[0x10 / 4] as u16 & !1;
            let end = start.wrapping_add(BAR_SIZE);
            (start..end).contains(&access.port).then_some((slot, access.port.wrapping_sub(start)))
        });
        let claim = if self.capabilities.pci_last_bar_wins { claims.next_back() } else { claims.next() };
        match (claim, access.direction) {
            (Some((slot, offset)), _) => slot.function.bar_access(offset, access),
            (None, Direction::In) => access.answer(NOTHING),
            (None, Direction::Out) => {}
        }
    }
}

fn read_register(value: u32, byte: u8, width: Width) -> u32 {
    match width {
        Width::Dword => value,
        Width::Word if byte == 0 => value,
        Width::Word => value >> 16,
        Width::Byte => value >> (byte * 8),
    }
}

fn write_register(value: &mut u32, register: u8, byte: u8, has_bar: bool, mut access: PortAccess) {
    let offset = register + byte;
    if BARS.contains(&offset) {
        let is_bar = has_bar && register == *BARS.start();
        // vmd compares all of EAX, whatever the width of the write.
        if access.eax == u32::MAX {
            access.eax = if is_bar { !u32::from(BAR_SIZE - 1) } else { 0 };
        }
        if is_bar {
            access.eax |= 1;
        }
    }
    if offset != ROM_BASE {
        *value = access.merge_into(*value);
    }
}

/// The configuration space at power-on of a function with the BAR and line in `resources`.
fn space(identity: Identity, resources: Option<(u16, u8)>, capabilities: &[Vec<u8>]) -> Space {
    let mut bytes = [0; 256];
    let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    put(0x00, &identity.vendor.to_le_bytes());
    put(0x02, &identity.device.to_le_bytes());
    put(0x08, &[identity.revision, 0, identity.subclass, identity.class]);
    put(0x2c, &identity.subsystem_vendor.to_le_bytes());
    put(0x2e, &identity.subsystem.to_le_bytes());
    if let Some((bar, irq)) = resources {
        put(0x10, &(bar | 1).to_le_bytes());
        put(0x3c, &[irq, 1]);
    }
    assert!(capabilities.len() <= MAX_CAPABILITIES, "a function has at most {MAX_CAPABILITIES} capabilities");
    for (n, capability) in capabilities.iter().enumerate() {
        assert!((2..=CAPABILITY_SIZE).contains(&capability.len()), "a capability has 2 to 24 bytes");
        let offset = CAPABILITIES + n * CAPABILITY_SIZE;
        put(offset, capability);
        let next = if n + 1 < capabilities.len() { offset + CAPABILITY_SIZE } else { 0 };
        put(offset + 1, &[next as u8]);
        put(0x06, &[0x10]);
        put(0x34, &[CAPABILITIES as u8]);
    }
    array::from_fn(|n| u32::from_le_bytes(array::from_fn(|byte| bytes[n * 4 + byte])))
}

impl PortDevice for PciBus {
    fn access(&mut self, access: &mut PortAccess) {
        match access.port {
            CONFIG_ADDRESS => self.config_address(access),
            0xcfc..=0xcff => self.config_data(access),
            IO_START.. => self.io(access),
            _ => {}
        }
    }
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus")
            .field("capabilities", &self.capabilities)
            .field("address", &self.address)
            .field("slots", &(self.slots.len() + 1))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmd_release::Generation;

    use super::*;
    use crate::{
        irqchip::i8259::SharedPic,
        testing::{self, EAX, input, out},
    };

    /// A function that records accesses and answers with the offset.
    struct Recorder {
        identity: Identity,
        capabilities: Vec<Vec<u8>>,
        vectors: u16,
        seen: Vec<u16>,
    }

    impl PciFunction for Recorder {
        fn identity(&self) -> Identity {
            self.identity
        }

        fn capabilities(&self) -> Vec<Vec<u8>> {
            self.capabilities.clone()
        }

        fn vectors(&self) -> u16 {
            self.vectors
        }

        fn bar_access(&mut self, offset: u16, access: &mut PortAccess) {
            self.seen.push(offset);
            access.answer_dword(offset.into());
        }

        fn reset(&mut self) {
            self.seen.clear();
        }
    }

    /// A capability for a virtio 1.x structure: ID, type, offset in the BAR, length.
    fn virtio_cap(kind: u8, offset: u32, length: u32) -> Vec<u8> {
        let mut cap = vec![9, 0, 16, kind, 0, 0, 0, 0];
        cap.extend(offset.to_le_bytes());
        cap.extend(length.to_le_bytes());
        if kind == 2 {
            cap.extend([0; 4]);
        }
        cap
    }

    fn virtio(id: u16, class: (u8, u8), config_length: Option<u32>) -> Recorder {
        let mut capabilities = vec![virtio_cap(1, 0, 0x38)];
        capabilities.extend(config_length.map(|length| virtio_cap(4, 0x300, length)));
        capabilities.extend([virtio_cap(3, 0x200, 1), virtio_cap(2, 0x100, 2)]);
        Recorder {
            identity: Identity {
                vendor: 0x1af4,
                device: 0x1040 + id,
                revision: 1,
                class: class.0,
                subclass: class.1,
                subsystem_vendor: OPENBSD,
                subsystem: id,
            },
            capabilities,
            vectors: 0,
            seen: Vec::new(),
        }
    }

    fn rng() -> Recorder {
        virtio(4, (8, 0x80), None)
    }

    fn blk() -> Recorder {
        virtio(2, (1, 0), Some(0x18))
    }

    fn net() -> Recorder {
        virtio(1, (8, 0x80), Some(8))
    }

    fn vmmci() -> Recorder {
        Recorder {
            identity: Identity {
                vendor: OPENBSD,
                device: 0x0777,
                revision: 0,
                class: 7,
                subclass: 0x80,
                subsystem_vendor: OPENBSD,
                subsystem: 0xffff,
            },
            capabilities: Vec::new(),
            vectors: 0,
            seen: Vec::new(),
        }
    }

    fn bus_of(generation: Generation, functions: Vec<Recorder>) -> PciBus {
        let mut bus = PciBus::new(generation.capabilities(), Arc::new(SharedPic::new(Box::new(|| {}))));
        for function in functions {
            bus.add(|_| function).unwrap();
        }
        bus
    }

    fn bus() -> PciBus {
        bus_of(Generation::V7_8, vec![rng(), blk(), vmmci()])
    }

    fn select(bus: &mut PciBus, device: u8, offset: u8) -> u16 {
        let address = ENABLE | u32::from(device) << 11 | u32::from(offset & 0xfc);
        out(bus, CONFIG_ADDRESS, Width::Dword, address);
        CONFIG_DATA + u16::from(offset & 3)
    }

    fn read(bus: &mut PciBus, device: u8, offset: u8, width: Width) -> u32 {
        let port = select(bus, device, offset);
        input(bus, port, width)
    }

    fn write(bus: &mut PciBus, device: u8, offset: u8, width: Width, value: u32) {
        let port = select(bus, device, offset);
        out(bus, port, width, value);
    }

    fn dump(bus: &mut PciBus, device: u8) -> Vec<u8> {
        (0..64).flat_map(|n| read(bus, device, n * 4, Width::Dword).to_le_bytes()).collect()
    }

    /// The accesses of the firmware to every function, and of Linux to those it drives: BAR sizing
    /// and placement, COMMAND, the latency timer.
    fn boot(bus: &mut PciBus, device: u8, bar: Option<u32>, driven: bool) {
        if device > 0 {
            for register in (0x10..=0x24).step_by(4).chain([0x30]) {
                let old = read(bus, device, register, Width::Dword);
                write(bus, device, register, Width::Dword, u32::MAX);
                let size = read(bus, device, register, Width::Dword);
                assert_eq!(size, if register == 0x10 { 0xffff_f001 } else { 0 });
                let new = bar.filter(|_| register == 0x10).unwrap_or(old);
                write(bus, device, register, Width::Dword, new);
            }
        }
        write(bus, device, 0x04, Width::Word, 0x0103);
        if driven {
            write(bus, device, 0x04, Width::Word, 0x0107);
            write(bus, device, 0x0d, Width::Byte, 64);
        }
    }

    /// The configuration spaces in a recording, as `od` or `hexdump -C` print them.
    fn recorded(text: &str) -> Vec<Vec<u8>> {
        let mut functions = Vec::<Vec<u8>>::new();
        for line in text.lines() {
            if line.starts_with("## ") || line.starts_with("--- ") {
                functions.push(Vec::new());
            }
            let Some(space) = functions.last_mut() else { continue };
            let line = line.split('|').next().unwrap();
            let words: Vec<_> = line.split_whitespace().collect();
            let bytes = match words.len() {
                16 => &words[..],
                17 if words[0].len() == 8 => &words[1..],
                _ => continue,
            };
            space.extend(bytes.iter().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
        }
        for space in &mut functions {
            // hexdump prints "*" for repeated lines; here these are zeroes at the end of the space.
            space.resize(256, 0);
        }
        functions
    }

    #[test]
    fn byte_for_byte_as_recorded_without_network() {
        let golden = recorded(include_str!("../../../../../tests/golden/pci/k73.config.hex.txt"));
        assert_eq!(golden.len(), 4);
        let mut bus = bus();
        let bars = [None, Some(0xc001), Some(0xd001), Some(0xe001)];
        for (device, bar) in bars.into_iter().enumerate() {
            boot(&mut bus, device as u8, bar, device == 1 || device == 2);
            assert_eq!(dump(&mut bus, device as u8), golden[device], "device {device}");
        }
    }

    #[test]
    fn byte_for_byte_as_recorded_with_network() {
        let golden = recorded(include_str!("../../../../../tests/golden/pci/k612.with-net.pci.txt"));
        assert_eq!(golden.len(), 5);
        let mut bus = bus_of(Generation::V7_8, vec![rng(), net(), blk(), vmmci()]);
        for device in 0..5 {
            boot(&mut bus, device, None, (1..4).contains(&device));
            assert_eq!(dump(&mut bus, device), golden[usize::from(device)], "device {device}");
        }
    }

    /// A bus with two virtio devices of 8.0.
    fn bus_8_0() -> PciBus {
        bus_of(Generation::V8_0, vec![Recorder { vectors: 2, ..rng() }, Recorder { vectors: 2, ..blk() }])
    }

    #[test]
    fn msi_and_msix_come_first_and_exclude_each_other() {
        let mut bus = bus_8_0();
        let mut byte = |offset| read(&mut bus, 1, offset, Width::Byte) as u8;
        let (mut at, mut ids) = (byte(0x34), Vec::new());
        while at != 0 {
            ids.push((at, byte(at)));
            at = byte(at + 1);
        }
        assert_eq!(ids[..3], [(msi::MSI, 5), (msi::MSIX, 0x11), (0x70, 9)]);
        write(&mut bus, 1, 0x42, Width::Word, 0x0071);
        assert_eq!(read(&mut bus, 1, 0x40, Width::Dword) >> 16, 0x0081, "only the enable bit can be written");
        write(&mut bus, 1, 0x5a, Width::Word, 0xffff);
        assert_eq!(read(&mut bus, 1, 0x58, Width::Dword) >> 16, 0xc001);
        assert_eq!(read(&mut bus, 1, 0x40, Width::Dword) >> 16, 0x0080);
        write(&mut bus, 1, 0x5c, Width::Dword, 0);
        assert_eq!(read(&mut bus, 1, 0x5c, Width::Dword), 1);
    }

    #[test]
    fn the_table_is_where_bar_1_says() {
        let mut bus = bus_8_0();
        let masked = |bus: &mut PciBus, address| {
            let mut access = MmioAccess::read(address, 4);
            bus.mmio(&mut access).unwrap();
            access.value() as u32
        };
        write(&mut bus, 1, 0x14, Width::Dword, u32::MAX);
        assert_eq!(read(&mut bus, 1, 0x14, Width::Dword), 0xffff_0000);
        write(&mut bus, 1, 0x14, Width::Dword, 0xf234_5678);
        assert_eq!(read(&mut bus, 1, 0x14, Width::Dword), 0xf234_0000);
        assert_eq!(read(&mut bus, 2, 0x14, Width::Dword), 0xf001_0000);
        assert_eq!([0xf234_000c, 0xf001_000c, 0xf000_000c].map(|at| masked(&mut bus, at)), [1, 1, u32::MAX]);
    }

    #[test]
    fn narrow_writes_of_8_0_reach_the_addressed_bytes() {
        let mut bus = bus_8_0();
        write(&mut bus, 1, 0x3d, Width::Byte, 7);
        assert_eq!(read(&mut bus, 1, 0x3c, Width::Dword), 0x703);
        write(&mut bus, 1, 0x06, Width::Word, 0x1234);
        assert_eq!(read(&mut bus, 1, 0x04, Width::Dword) >> 16, 0x1234);
        write(&mut bus, 1, 0x10, Width::Dword, u32::MAX);
        assert_eq!(read(&mut bus, 1, 0x10, Width::Dword), 0xffff_f001);
        write(&mut bus, 1, 0x10, Width::Dword, 0xc123);
        assert_eq!(read(&mut bus, 1, 0x10, Width::Dword), 0xc001);
    }

    #[test]
    fn lines_are_assigned_in_order_and_level_triggered() {
        let pic = Arc::new(SharedPic::new(Box::new(|| {})));
        let mut bus = PciBus::new(Generation::V7_8.capabilities(), Arc::clone(&pic) as _);
        for irq in IRQS {
            bus.add(|line| {
                assert_eq!(line.irq(), irq);
                rng()
            })
            .unwrap();
        }
        assert_eq!(bus.add(|_| rng()).err(), Some(BusFull));
        let mut access = PortAccess::input(0x4d0, Width::Byte, 0);
        pic.access(&mut access);
        assert_eq!(access.eax, 0xe8);
        let mut access = PortAccess::input(0x4d1, Width::Byte, 0);
        pic.access(&mut access);
        assert_eq!(access.eax, 0xde);
        for (n, irq) in (1..).zip(IRQS) {
            assert_eq!(read(&mut bus, n, 0x3c, Width::Dword), 0x100 | u32::from(irq));
            assert_eq!(read(&mut bus, n, 0x10, Width::Dword), (0x1000 * u32::from(n)) | 1);
        }
    }

    #[test]
    fn reads_of_any_width_are_correct() {
        let mut bus = bus();
        assert_eq!(read(&mut bus, 1, 0x00, Width::Dword), 0x1044_1af4);
        assert_eq!(read(&mut bus, 1, 0x02, Width::Word), EAX & 0xffff_0000 | 0x1044);
        assert_eq!(read(&mut bus, 1, 0x0b, Width::Byte), EAX & 0xffff_ff00 | 0x08);
    }

    #[test]
    fn narrow_writes_go_to_the_lowest_bytes_of_the_register() {
        let mut bus = bus();
        write(&mut bus, 1, 0x06, Width::Word, 0xf900);
        assert_eq!(read(&mut bus, 1, 0x04, Width::Dword), 0x0010_f900);
        write(&mut bus, 1, 0x3d, Width::Byte, 0x77);
        assert_eq!(read(&mut bus, 1, 0x3c, Width::Dword), 0x0177);
    }

    #[test]
    fn identifying_registers_can_be_written_and_the_rom_base_cannot() {
        let mut bus = bus();
        write(&mut bus, 2, 0x00, Width::Dword, 0x1234_5678);
        assert_eq!(read(&mut bus, 2, 0x00, Width::Dword), 0x1234_5678);
        write(&mut bus, 2, 0x30, Width::Dword, 0xffff_f800);
        assert_eq!(read(&mut bus, 2, 0x30, Width::Dword), 0);
        bus.reset();
        assert_eq!(read(&mut bus, 2, 0x00, Width::Dword), 0x1042_1af4);
    }

    #[test]
    fn without_the_enable_bit_reads_are_all_ones_in_width_and_writes_are_lost() {
        let mut bus = bus();
        out(&mut bus, CONFIG_ADDRESS, Width::Dword, 0x0800);
        assert_eq!(input(&mut bus, CONFIG_DATA, Width::Byte), EAX | 0xff);
        assert_eq!(input(&mut bus, CONFIG_DATA, Width::Dword), u32::MAX);
        out(&mut bus, CONFIG_DATA, Width::Dword, 0);
        assert_eq!(read(&mut bus, 1, 0, Width::Dword), 0x1044_1af4);
    }

    #[test]
    fn the_address_port_takes_narrow_writes() {
        let mut bus = bus();
        out(&mut bus, CONFIG_ADDRESS, Width::Dword, 0x8000_18fc);
        out(&mut bus, CONFIG_ADDRESS, Width::Byte, 0x08);
        assert_eq!(input(&mut bus, CONFIG_ADDRESS, Width::Dword), 0x8000_1808);
        assert_eq!(input(&mut bus, CONFIG_ADDRESS + 1, Width::Byte), EAX, "the port is not part of the bus");
    }

    #[test]
    fn writes_to_other_buses_and_functions_reach_bus_0() {
        let mut bus = bus();
        for address in [0x8001_0800, 0x8000_0900, 0x80ff_0f00] {
            out(&mut bus, CONFIG_ADDRESS, Width::Dword, address);
            assert_eq!(input(&mut bus, CONFIG_DATA, Width::Dword), u32::MAX);
            out(&mut bus, CONFIG_DATA, Width::Dword, address);
            assert_eq!(read(&mut bus, 1, 0, Width::Dword), address);
        }
    }

    #[test]
    fn empty_slots_by_generation() {
        let mut bus = bus();
        write(&mut bus, 4, 0, Width::Dword, 5);
        assert_eq!(read(&mut bus, 4, 0, Width::Dword), u32::MAX);
        let mut old = bus_of(Generation::V7_7, vec![rng(), blk(), vmmci()]);
        assert_eq!(read(&mut old, 4, 0, Width::Dword), 0, "the first empty slot");
        assert_eq!(read(&mut old, 5, 0, Width::Dword), u32::MAX);
        write(&mut old, 4, 0, Width::Dword, 5);
        assert_eq!(read(&mut old, 4, 0, Width::Dword), 5);
    }

    #[test]
    fn ports_follow_the_current_bars() {
        let mut bus = bus();
        let seen = bus.add(|_| rng()).unwrap();
        assert_eq!(input(&mut bus, 0x4003, Width::Byte), 3);
        write(&mut bus, 4, 0x10, Width::Dword, 0xc000);
        assert_eq!(read(&mut bus, 4, 0x10, Width::Dword), 0xc001);
        assert_eq!(input(&mut bus, 0x4003, Width::Byte), EAX | 0xff, "unclaimed");
        assert_eq!(input(&mut bus, 0xcfff, Width::Byte), 0xfff);
        out(&mut bus, 0xd000, Width::Byte, 1);
        assert_eq!(bus.function(seen).seen, [3, 0xfff]);
        write(&mut bus, 4, 0x04, Width::Word, 0);
        assert_eq!(input(&mut bus, 0xc010, Width::Word), 0x10, "COMMAND has no effect");
    }

    #[test]
    fn a_bar_with_bit_1_starts_two_ports_later() {
        let mut bus = bus();
        let seen = bus.add(|_| rng()).unwrap();
        write(&mut bus, 4, 0x10, Width::Dword, 0xc002);
        assert_eq!(read(&mut bus, 4, 0x10, Width::Dword), 0xc003);
        assert_eq!(input(&mut bus, 0xc001, Width::Byte), EAX | 0xff, "unclaimed");
        for port in [0xc002, 0xd001] {
            input(&mut bus, port, Width::Byte);
        }
        assert_eq!(bus.function(seen).seen, [0, 0xfff]);
    }

    /// Lines that an interrupt of rng (slot 1) and of blk (slot 2) reaches after their interrupt
    /// line registers were set to 7, and then after rng's pin register was cleared, too.
    fn lines_after_writes(generation: Generation) -> [Vec<(u8, bool)>; 3] {
        let recorder = Arc::new(testing::LineRecorder::default());
        let mut bus = PciBus::new(generation.capabilities(), Arc::clone(&recorder) as _);
        let mut lines = Vec::new();
        for function in [rng(), blk()] {
            bus.add(|line| {
                lines.push(line);
                function
            })
            .unwrap();
        }
        let raised = |line: &IrqLine| {
            line.assert();
            recorder.take()
        };
        for device in [1, 2] {
            write(&mut bus, device, 0x3c, Width::Dword, 0x0107);
        }
        let [rng, blk] = [0, 1].map(|n: usize| raised(&lines[n]));
        write(&mut bus, 1, 0x3c, Width::Dword, 0x0007);
        [rng, blk, raised(&lines[0])]
    }

    #[test]
    fn inta_goes_to_the_line_in_the_interrupt_line_register() {
        let to = |irq| vec![(irq, true)];
        assert_eq!(lines_after_writes(Generation::V7_7), [to(7), to(7), to(7)]);
        assert_eq!(lines_after_writes(Generation::V7_8), [to(7), to(5), to(7)], "rng's only");
        assert_eq!(lines_after_writes(Generation::V8_0), [to(7), to(7), vec![]], "with a pin");
    }

    #[test]
    fn a_line_that_does_not_exist_raises_nothing_and_a_reset_restores_the_line() {
        let recorder = Arc::new(testing::LineRecorder::default());
        let mut bus = PciBus::new(Generation::V7_8.capabilities(), Arc::clone(&recorder) as _);
        let mut line = None;
        bus.add(|irq| {
            line = Some(irq);
            rng()
        })
        .unwrap();
        let line = line.unwrap();
        write(&mut bus, 1, 0x3c, Width::Byte, 0xff);
        line.assert();
        line.deassert();
        assert_eq!(recorder.take(), []);
        bus.reset();
        line.assert();
        assert_eq!(recorder.take(), [(IRQS[0], true)]);
    }

    #[test]
    fn a_bar_in_the_last_page_decodes_nothing() {
        let mut bus = bus();
        for value in [0xf000, u32::MAX] {
            write(&mut bus, 1, 0x10, Width::Dword, value);
            assert_eq!(input(&mut bus, 0xf000, Width::Dword), u32::MAX);
        }
    }

    #[test]
    fn where_bars_overlap_the_first_slot_wins_and_the_last_one_up_to_7_7() {
        for (generation, winner) in [(Generation::V7_7, 1), (Generation::V7_8, 0)] {
            let mut bus = PciBus::new(generation.capabilities(), Arc::new(SharedPic::new(Box::new(|| {}))));
            let functions = [bus.add(|_| rng()).unwrap(), bus.add(|_| blk()).unwrap()];
            write(&mut bus, 2, 0x10, Width::Dword, 0x1000);
            input(&mut bus, 0x1004, Width::Byte);
            assert_eq!(bus.function(functions[winner]).seen, [4]);
            assert!(bus.function(functions[1 - winner]).seen.is_empty());
        }
    }

    #[test]
    fn devices_are_found_by_subsystem() {
        let bus = bus();
        assert_eq!(bus.find_subsystem(2), Some(2));
        assert_eq!(bus.find_subsystem(8), None);
        assert_eq!(bus.find_subsystem(0), Some(0), "the bridge");
    }

    proptest! {
        #![proptest_config(testing::config())]

        #[test]
        fn no_sequence_of_accesses_does_harm(
            steps in testing::steps(&[0xcf8, 0xcf8, 0xcfc, 0xcfd, 0xcfe, 0xcff, 0x1000, 0x2fff, 0xf000, 0xffff])
        ) {
            for generation in [Generation::V7_7, Generation::V7_8] {
                let mut bus = bus_of(generation, vec![rng(), net(), blk(), vmmci()]);
                for step in &steps {
                    match step {
                        testing::Step::Access(access) => bus.access(&mut access.clone()),
                        // Mostly addresses of existing functions.
                        testing::Step::Other(n) => {
                            out(&mut bus, CONFIG_ADDRESS, Width::Dword, ENABLE | n & 0x3fff);
                        }
                        testing::Step::Wait(_) => {}
                    }
                }
            }
        }
    }
}
