//! The PCI bus: for every write to configuration space, functions see only offsets within their
//! BARs.
#![no_main]

use std::sync::Arc;

use devices::{
    bus::{PortAccess, PortDevice, Width},
    pci::{CONFIG_ADDRESS, Identity, OPENBSD, PciBus, PciFunction},
};
use libfuzzer_sys::fuzz_target;
use vmd_release::Generation;
use vmmlinux_fuzz::{NoLines, Step};

struct Function;

impl PciFunction for Function {
    fn identity(&self) -> Identity {
        Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: 8,
            subclass: 0x80,
            subsystem_vendor: OPENBSD,
            subsystem: 4,
        }
    }

    fn capabilities(&self) -> Vec<Vec<u8>> {
        vec![vec![9; 24]; 3]
    }

    fn bar_access(&mut self, offset: u16, access: &mut PortAccess) {
        assert!(offset < 0x1000 && access.port >= 0x1000);
        access.answer_dword(offset.into());
    }

    fn reset(&mut self) {}
}

fuzz_target!(|input: (bool, u8, Vec<Step>)| {
    let (old, functions, script) = input;
    let generation = if old { Generation::V7_7 } else { Generation::V7_8 };
    let mut bus = PciBus::new(generation.capabilities(), Arc::new(NoLines));
    for n in 0..functions % 12 {
        assert_eq!(bus.add(|_| Function).is_ok(), n < 10);
    }
    for step in script {
        let ports = [0xcf8, 0xcfc, 0xcfd, 0xcfe, 0xcff, 0x1000, 0x2004, 0xc000, 0xefff, 0xf000, 0xffff];
        if let Some(mut access) = step.access(&ports) {
            bus.access(&mut access);
        }
        match step {
            // Mostly addresses of existing functions.
            Step::Other { argument, .. } => {
                let address = 0x8000_0000 | argument & 0x7fff;
                bus.access(&mut PortAccess::output(CONFIG_ADDRESS, Width::Dword, address));
            }
            Step::SetClock { seconds: 0..=9 } => bus.reset(),
            Step::Wait { micros } => {
                let port = (micros as u16).max(0x1000);
                bus.access(&mut PortAccess::input(port, Width::Dword, 0));
            }
            _ => {}
        }
    }
});
