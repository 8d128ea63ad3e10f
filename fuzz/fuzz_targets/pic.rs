//! The pair of 8259s: exactly the pending interrupts can be delivered.
#![no_main]

use devices::{bus::PortDevice, irqchip::i8259::Pic};
use libfuzzer_sys::fuzz_target;
use vmmlinux_fuzz::Step;

fuzz_target!(|script: Vec<Step>| {
    let mut pic = Pic::new();
    for step in script {
        if let Some(mut access) = step.access(&[0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1]) {
            pic.access(&mut access);
        }
        match step {
            Step::Other { what: 0..=99, argument } => pic.assert_irq(argument as u8),
            Step::Other { what: 100..=199, argument } => pic.deassert_irq(argument as u8),
            Step::Other { what, argument } => pic.set_level_triggered(argument as u8, what % 2 == 0),
            Step::Wait { .. } => {
                let pending = pic.pending();
                assert_eq!(pic.acknowledge().is_some(), pending);
            }
            _ => {}
        }
    }
});
