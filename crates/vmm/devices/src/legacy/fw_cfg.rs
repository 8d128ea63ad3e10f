//! The firmware configuration device of vmd(8), which SeaBIOS reads (fw_cfg.c, the same from 7.2 to
//! 7.9).
//!
//! It implements QEMU's interface with these limits: nothing can be written, an item is cleared
//! when its last byte has been read, items are read byte by byte or by DMA, and few exist:
//! signature, ID, "no graphics", the directory, and the files `etc/e820`, `etc/screen-and-debug`
//! and, if a boot device is chosen, `bootorder`.

use std::fmt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmd_release::BootDevice;

use crate::{
    acpi::tables,
    bus::{Direction, PortAccess, PortDevice, Width},
    memory_map::MemoryMap,
    pci::PciBus,
    virtio::GuestRam,
};

/// Selects an item.
pub const SELECTOR: u16 = 0x510;
/// Reads the selected item.
pub const DATA: u16 = 0x511;
/// Upper half of the address of a DMA descriptor, big-endian.
pub const DMA_HIGH: u16 = 0x514;
/// Lower half; writing it starts the transfer.
pub const DMA_LOW: u16 = 0x518;

/// The file with the RSDP, on 8.0 (`fw_cfg_add_acpi_rsdp`). The available sources do not contain
/// vmd's name for it; this is QEMU's.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";

const ITEM_SIGNATURE: u16 = 0x00;
const ITEM_ID: u16 = 0x01;
const ITEM_NO_GRAPHICS: u16 = 0x04;
const ITEM_DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;

/// Features: traditional interface and DMA.
const ID: u32 = 3;
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";

const CONTROL_ERROR: u32 = 0x01;
const CONTROL_READ: u32 = 0x02;
const CONTROL_SELECT: u32 = 0x08;
const CONTROL_WRITE: u32 = 0x10;

const NAME_SIZE: usize = 56;

/// Subsystem ID of the PCI function that is `device`.
const fn boot_subsystem(device: BootDevice) -> u16 {
    match device {
        BootDevice::Net => 1,
        BootDevice::Disk => 2,
        BootDevice::Cdrom => 8,
    }
}

/// The firmware's device path for `device` in PCI slot `slot`. The firmware tries no other device afterwards.
fn boot_order(device: BootDevice, slot: usize) -> String {
    match device {
        BootDevice::Net => "HALT".to_owned(),
        BootDevice::Disk => format!("/pci@i0cf8/*@{slot}\nHALT"),
        BootDevice::Cdrom => format!("/pci@i0cf8/*@{slot}/*@0/*@0,40000100\nHALT"),
    }
}

struct File {
    name: &'static str,
    data: Vec<u8>,
}

/// The firmware configuration device.
pub struct FwCfg {
    files: Vec<File>,
    /// Number of vmd's own files; later ones were added.
    own_files: usize,
    /// Added items by selector, which vmd does not have.
    added: Vec<(u16, Vec<u8>)>,
    item: Vec<u8>,
    offset: usize,
    dma_address: u64,
    memory: GuestRam,
}

impl FwCfg {
    /// Describes a VM with this memory and these PCI functions, which must be complete. Without
    /// `boot`, or without a function for it, the firmware chooses the boot device.
    pub fn new(memory: GuestRam, map: &MemoryMap, pci: &PciBus, boot: Option<BootDevice>) -> Self {
        let mut files = vec![
            File { name: "etc/e820", data: map.e820() },
            // Without this, SeaBIOS sends every character to the serial line twice.
            File { name: "etc/screen-and-debug", data: vec![0; 4] },
        ];
        if let Some((boot, slot)) =
            boot.and_then(|boot| Some((boot, pci.find_subsystem(boot_subsystem(boot))?)))
        {
            let mut data = boot_order(boot, slot).into_bytes();
            data.push(0);
            files.push(File { name: "bootorder", data });
        }
        let own_files = files.len();
        Self { files, own_files, added: Vec::new(), item: Vec::new(), offset: 0, dma_address: 0, memory }
    }

    /// Adds a file that vmd does not have, for firmware that does not know vmd.
    pub fn add_file(&mut self, name: &'static str, data: Vec<u8>) {
        assert!(name.len() < NAME_SIZE, "a name ends with a NUL");
        self.files.push(File { name, data });
    }

    /// Adds an item that vmd does not have, as [`FwCfg::add_file`]. vmd's own items have
    /// precedence.
    pub fn add_item(&mut self, selector: u16, data: Vec<u8>) {
        self.added.push((selector, data));
    }

    /// Removes all additions, so that software after the firmware sees vmd's items only.
    pub fn forget_additions(&mut self) {
        self.files.truncate(self.own_files);
        self.added.clear();
    }

    /// The same device with the ACPI file of 8.0.
    #[must_use]
    pub fn with_rsdp(mut self) -> Self {
        self.files.push(File { name: RSDP_FILE, data: tables::rsdp().to_vec() });
        self.own_files = self.files.len();
        self
    }

    /// Returns the device to its power-on state.
    pub fn reset(&mut self) {
        self.forget();
        self.dma_address = 0;
    }

    fn forget(&mut self) {
        self.item = Vec::new();
        self.offset = 0;
    }

    fn select(&mut self, selector: u16) {
        self.offset = 0;
        self.item = match selector {
            ITEM_SIGNATURE => b"QEMU".to_vec(),
            ITEM_ID => ID.to_le_bytes().to_vec(),
            ITEM_NO_GRAPHICS => 1_u16.to_le_bytes().to_vec(),
            ITEM_DIRECTORY => self.directory(),
            _ => selector
                .checked_sub(FIRST_FILE)
                .and_then(|n| self.files.get(usize::from(n)))
                .map(|file| &file.data)
                .or_else(|| self.added.iter().find(|(added, _)| *added == selector).map(|(_, data)| data))
                .cloned()
                .unwrap_or_default(),
        };
    }

    /// The directory: number of files, then for each file its size, selector, two reserved bytes
    /// and name. Big-endian.
    fn directory(&self) -> Vec<u8> {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (selector, file) in (FIRST_FILE..).zip(&self.files) {
            directory.extend((file.data.len() as u32).to_be_bytes());
            directory.extend(selector.to_be_bytes());
            directory.extend([0; 2]);
            let mut name = [0; NAME_SIZE];
            name[..file.name.len()].copy_from_slice(file.name.as_bytes());
            directory.extend(name);
        }
        directory
    }

    fn read_byte(&mut self) -> u8 {
        let Some(byte) = self.item.get(self.offset).copied() else { return 0 };
        self.advance(1);
        byte
    }

    /// An item is cleared after its last byte was read.
    fn advance(&mut self, count: usize) {
        self.offset += count;
        if self.offset == self.item.len() {
            self.forget();
        }
    }

    fn dma_port(&mut self, access: &mut PortAccess) {
        match (access.direction, access.width) {
            (Direction::Out, Width::Dword) => {
                let value = u64::from(access.eax.swap_bytes());
                if access.port == DMA_HIGH {
                    self.dma_address = value << 32;
                } else {
                    self.dma_address |= value;
                    self.start_dma();
                }
            }
            (Direction::Out, _) => self.dma_address = 0,
            (Direction::In, Width::Dword) => {
                let signature = u64::from_le_bytes(DMA_SIGNATURE);
                access.answer(if access.port == DMA_HIGH {
                    (signature >> 32) as u32
                } else {
                    signature as u32
                });
            }
            (Direction::In, _) => {}
        }
    }

    /// Executes the DMA descriptor: control, length and address, big-endian. The address is kept
    /// for the next attempt if it is not RAM.
    fn start_dma(&mut self) {
        let descriptor = GuestAddress(self.dma_address);
        let mut bytes = [0; 16];
        if self.memory.read_slice(&mut bytes, descriptor).is_err() {
            return;
        }
        let bytes = u128::from_be_bytes(bytes);
        let result = self.transfer((bytes >> 96) as u32, (bytes >> 64) as u32, bytes as u64);
        if self.memory.write_slice(&result.to_be_bytes(), descriptor).is_ok() {
            self.dma_address = 0;
        }
    }

    /// Executes one transfer; returns the new control word.
    fn transfer(&mut self, control: u32, length: u32, address: u64) -> u32 {
        if control & CONTROL_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let length = length as usize;
        let rest = &self.item[self.offset..];
        let count = rest.len().min(length);
        let refused = control & CONTROL_WRITE != 0;
        let failed =
            || control & CONTROL_READ != 0 && self.copy_out(&rest[..count], length, address).is_none();
        let result = if refused || failed() { CONTROL_ERROR } else { 0 };
        // Skipping and failed transfers advance without copying.
        self.advance(count);
        result
    }

    /// Writes `data` to guest memory, zero-filled up to `length` bytes. Nothing is written unless
    /// all of it is RAM.
    fn copy_out(&self, data: &[u8], length: usize, address: u64) -> Option<()> {
        let write = |data: &[u8], address: GuestAddress| {
            // Checked first, because a failing write could already have written a part.
            let whole = self.memory.check_range(address, data.len());
            (whole && self.memory.write_slice(data, address).is_ok()).then_some(())
        };
        let written = write(data, GuestAddress(address));
        let mut zeroes = length - data.len();
        let mut address = GuestAddress(address.checked_add(data.len() as u64)?);
        if zeroes > 0 && !self.memory.check_range(address, zeroes) {
            return None;
        }
        while zeroes > 0 {
            let page = [0; 4096];
            let count = zeroes.min(page.len());
            write(&page[..count], address)?;
            address.0 += count as u64;
            zeroes -= count;
        }
        written
    }
}

impl PortDevice for FwCfg {
    fn access(&mut self, access: &mut PortAccess) {
        match (access.port, access.direction) {
            (SELECTOR, Direction::Out) => self.select(access.value() as u16),
            (SELECTOR, Direction::In) => access.answer(0),
            (DATA, Direction::In) => access.answer(self.read_byte().into()),
            (DMA_HIGH | DMA_LOW, _) => self.dma_port(access),
            _ => {}
        }
    }
}

impl fmt::Debug for FwCfg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FwCfg")
            .field("files", &self.files.iter().map(|file| file.name).collect::<Vec<_>>())
            .field("offset", &self.offset)
            .field("dma_address", &self.dma_address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use vmd_release::Generation;

    use super::*;
    use crate::{
        irqchip::i8259::SharedPic,
        pci::{Identity, OPENBSD, PciFunction},
        testing::{self, EAX, inb, input, out},
    };

    const MIB: u64 = 1 << 20;

    struct Virtio(u16);

    impl PciFunction for Virtio {
        fn identity(&self) -> Identity {
            Identity {
                vendor: 0x1af4,
                device: 0x1040 + self.0,
                revision: 1,
                class: 0xff,
                subclass: 0,
                subsystem_vendor: OPENBSD,
                subsystem: self.0,
            }
        }

        fn bar_access(&mut self, _: u16, _: &mut PortAccess) {}

        fn reset(&mut self) {}
    }

    fn device(boot: Option<BootDevice>) -> FwCfg {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), MIB as usize)]).unwrap();
        let mut pci = PciBus::new(Generation::V7_8.capabilities(), Arc::new(SharedPic::new(Box::new(|| {}))));
        for id in [4, 1, 2, 8] {
            pci.add(|_| Virtio(id)).unwrap();
        }
        FwCfg::new(memory, &MemoryMap::new(&Generation::V7_8.capabilities(), 512 * MIB).unwrap(), &pci, boot)
    }

    fn read(device: &mut FwCfg, selector: u16, length: usize) -> Vec<u8> {
        out(device, SELECTOR, Width::Word, selector.into());
        (0..length).map(|_| inb(device, DATA)).collect()
    }

    fn directory(device: &mut FwCfg) -> Vec<(String, u16, u32)> {
        let count = read(device, ITEM_DIRECTORY, 4)[3];
        let entries = read(device, ITEM_DIRECTORY, 4 + usize::from(count) * 64);
        entries[4..]
            .chunks(64)
            .map(|entry| {
                let name = String::from_utf8(entry[8..].to_vec()).unwrap();
                let size = u32::from_be_bytes(entry[..4].try_into().unwrap());
                let selector = u16::from_be_bytes(entry[4..6].try_into().unwrap());
                (name.trim_end_matches('\0').to_owned(), selector, size)
            })
            .collect()
    }

    #[test]
    fn additions_can_be_read_until_they_are_removed() {
        let mut device = device(Some(BootDevice::Disk));
        let own = directory(&mut device);
        device.add_file("etc/more", vec![1, 2, 3]);
        device.add_item(0x0f, vec![9, 8]);
        let all = directory(&mut device);
        assert_eq!(all[..own.len()], own);
        let (name, selector, size) = all.last().unwrap();
        assert_eq!((name.as_str(), *size), ("etc/more", 3));
        assert_eq!(read(&mut device, *selector, 4), [1, 2, 3, 0]);
        assert_eq!(read(&mut device, 0x0f, 2), [9, 8]);
        device.forget_additions();
        assert_eq!(directory(&mut device), own);
        assert_eq!(read(&mut device, 0x0f, 2), [0, 0]);
    }

    fn dma(device: &mut FwCfg, control: u32, length: u32, address: u64) -> u32 {
        const DESCRIPTOR: u64 = 0x8_0000;
        let at = GuestAddress(DESCRIPTOR);
        let bytes = u128::from(control) << 96 | u128::from(length) << 64 | u128::from(address);
        device.memory.write_slice(&bytes.to_be_bytes(), at).unwrap();
        out(device, DMA_HIGH, Width::Dword, 0);
        out(device, DMA_LOW, Width::Dword, (DESCRIPTOR as u32).swap_bytes());
        let mut result = [0; 4];
        device.memory.read_slice(&mut result, at).unwrap();
        u32::from_be_bytes(result)
    }

    fn guest(device: &FwCfg, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        device.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    #[test]
    fn signature_id_and_no_graphics() {
        let mut device = device(None);
        assert_eq!(read(&mut device, 0, 6), b"QEMU\0\0");
        assert_eq!(read(&mut device, 1, 4), [3, 0, 0, 0]);
        assert_eq!(read(&mut device, 4, 2), [1, 0]);
        assert_eq!(read(&mut device, 0x1234, 2), [0, 0]);
    }

    /// `tests/golden/pit_rtc/k73.pittest.txt`: 510(w)=0000 511=00 514(l)=47464320.
    #[test]
    fn ports_at_rest() {
        let mut device = device(None);
        assert_eq!(input(&mut device, SELECTOR, Width::Word) & 0xffff, 0);
        assert_eq!(inb(&mut device, DATA), 0);
        assert_eq!(input(&mut device, DMA_HIGH, Width::Dword), 0x4746_4320);
        assert_eq!(input(&mut device, DMA_LOW, Width::Dword), 0x554d_4551);
        assert_eq!(input(&mut device, DMA_HIGH, Width::Word), EAX, "not answered");
    }

    #[test]
    fn files_are_in_the_directory() {
        let files = directory(&mut device(None));
        assert_eq!(files, [("etc/e820".into(), 0x20, 100), ("etc/screen-and-debug".into(), 0x21, 4)]);
        let mut device = device(Some(BootDevice::Disk));
        assert_eq!(directory(&mut device)[2], ("bootorder".into(), 0x22, 20));
        assert_eq!(read(&mut device, 0x22, 22), b"/pci@i0cf8/*@3\nHALT\0\0\0");
    }

    #[test]
    fn boot_orders() {
        for (boot, order) in [
            (BootDevice::Disk, "/pci@i0cf8/*@3\nHALT\0"),
            (BootDevice::Cdrom, "/pci@i0cf8/*@4/*@0/*@0,40000100\nHALT\0"),
            (BootDevice::Net, "HALT\0"),
        ] {
            let device = device(Some(boot));
            assert_eq!(device.files[2].data, order.as_bytes());
        }
    }

    #[test]
    fn an_item_is_cleared_after_its_last_byte() {
        let mut device = device(None);
        read(&mut device, 0, 4);
        assert!(device.item.is_empty());
        assert_eq!(inb(&mut device, DATA), 0);
    }

    #[test]
    fn dma_reads_and_fills_with_zeroes() {
        let mut device = device(None);
        device.memory.write_slice(&[0xff; 0x3000], GuestAddress(0x1000)).unwrap();
        assert_eq!(dma(&mut device, CONTROL_SELECT | CONTROL_READ, 0x2000, 0x1000), 0);
        let mut expected = b"QEMU".to_vec();
        expected.resize(0x2000, 0);
        expected.push(0xff);
        assert_eq!(guest(&device, 0x1000, 0x2001), expected);
    }

    #[test]
    fn dma_continues_at_its_position_and_skips() {
        let mut device = device(None);
        assert_eq!(dma(&mut device, 0x20 << 16 | CONTROL_SELECT | CONTROL_READ, 8, 0), 0);
        assert_eq!(dma(&mut device, 0x04, 12, 0), 0);
        assert_eq!(dma(&mut device, CONTROL_READ, 8, 0x100), 0);
        assert_eq!(guest(&device, 0, 8), [0; 8]);
        assert_eq!(guest(&device, 0x100, 8), [0, 0, 10, 0, 0, 0, 0, 0], "start of the second range: 640 KiB");
    }

    #[test]
    fn dma_errors() {
        let mut device = device(None);
        assert_eq!(dma(&mut device, CONTROL_SELECT | CONTROL_WRITE, 4, 0), CONTROL_ERROR);
        assert_eq!(dma(&mut device, CONTROL_SELECT | CONTROL_READ, 4, MIB - 2), CONTROL_ERROR);
        assert_eq!(guest(&device, MIB - 2, 2), [0, 0], "nothing was written");
        assert_eq!(dma(&mut device, CONTROL_SELECT | CONTROL_READ, u32::MAX, 0), CONTROL_ERROR);
        assert_eq!(dma(&mut device, CONTROL_READ, 4, u64::MAX), CONTROL_ERROR);
        out(&mut device, DMA_LOW, Width::Dword, u32::MAX);
        assert_eq!(device.dma_address, 0xffff_ffff, "kept");
        out(&mut device, DMA_LOW, Width::Byte, 0);
        assert_eq!(device.dma_address, 0);
    }

    proptest! {
        #![proptest_config(testing::config())]

        #[test]
        fn no_sequence_of_accesses_does_harm(
            steps in testing::steps(&[0x510, 0x511, 0x514, 0x518]), memory in any::<[u8; 16]>()
        ) {
            let mut device = device(Some(BootDevice::Disk));
            device.memory.write_slice(&memory, GuestAddress(0)).unwrap();
            for step in steps {
                match step {
                    testing::Step::Access(mut access) => device.access(&mut access),
                    testing::Step::Wait(nanos) => drop(dma(&mut device, nanos as u32, 50, nanos >> 20)),
                    testing::Step::Other(n) => drop(dma(&mut device, n >> 8, n, (n >> 4).into())),
                }
            }
        }
    }
}
