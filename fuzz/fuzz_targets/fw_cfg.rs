//! fw_cfg with DMA over guest memory with random descriptors.
#![no_main]

use std::sync::Arc;

use devices::{
    bus::{PortAccess, PortDevice, Width},
    legacy::fw_cfg::{DMA_HIGH, DMA_LOW, FwCfg},
    memory_map::MemoryMap,
    pci::PciBus,
    virtio::GuestRam,
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmd_release::{BootDevice, Generation};
use vmmlinux_fuzz::{NoLines, Step};

fuzz_target!(|input: (Vec<[u8; 16]>, Vec<Step>)| {
    let (descriptors, script) = input;
    let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x4000), (GuestAddress(0x8000), 0x1000)]).unwrap();
    for (n, descriptor) in descriptors.iter().take(256).enumerate() {
        memory.write_slice(descriptor, GuestAddress(n as u64 * 16)).unwrap();
    }
    let map = MemoryMap::new(&Generation::V7_8.capabilities(), 512 << 20).unwrap();
    let pci = PciBus::new(Generation::V7_8.capabilities(), Arc::new(NoLines));
    let mut device = FwCfg::new(memory, &map, &pci, Some(BootDevice::Disk));
    for step in script {
        if let Some(mut access) = step.access(&[0x510, 0x511, 0x514, 0x518]) {
            device.access(&mut access);
        }
        match step {
            Step::Other { what: 0, .. } => device.reset(),
            Step::Other { argument, .. } => {
                let address = argument % 0x1000;
                device.access(&mut PortAccess::output(DMA_HIGH, Width::Dword, 0));
                device.access(&mut PortAccess::output(DMA_LOW, Width::Dword, address.swap_bytes()));
            }
            _ => {}
        }
    }
});
