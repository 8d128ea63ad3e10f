//! Test helpers shared by the models: port accesses, a recorder of interrupt lines, random steps.

use std::sync::Mutex;

use proptest::prelude::*;

use crate::{
    bus::{PortAccess, PortDevice, Width},
    irqchip::{InterruptController, line::IrqLine},
};

/// EAX before every read by [`input`]; a test recognises unwritten bytes by it.
pub(crate) const EAX: u32 = 0xdead_beef;

/// An OUT.
pub(crate) fn out(device: &mut impl PortDevice, port: u16, width: Width, eax: u32) {
    device.access(&mut PortAccess::output(port, width, eax));
}

/// All of EAX after an IN.
pub(crate) fn input(device: &mut impl PortDevice, port: u16, width: Width) -> u32 {
    let mut access = PortAccess::input(port, width, EAX);
    device.access(&mut access);
    access.eax
}

/// A byte-wide OUT.
pub(crate) fn outb(device: &mut impl PortDevice, port: u16, value: u8) {
    out(device, port, Width::Byte, value.into());
}

/// AL after a byte-wide IN.
pub(crate) fn inb(device: &mut impl PortDevice, port: u16) -> u8 {
    input(device, port, Width::Byte) as u8
}

/// Records every change of the interrupt lines.
#[derive(Debug, Default)]
pub(crate) struct LineRecorder(Mutex<Vec<(u8, bool)>>);

impl LineRecorder {
    /// Line `irq` of a fresh recorder, and the recorder.
    pub(crate) fn one(irq: u8) -> (IrqLine, std::sync::Arc<Self>) {
        let lines = std::sync::Arc::new(Self::default());
        (IrqLine::new(std::sync::Arc::clone(&lines) as _, irq), lines)
    }

    /// The changes since the last call: the line, and whether it was raised.
    pub(crate) fn take(&self) -> Vec<(u8, bool)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl InterruptController for LineRecorder {
    fn assert_irq(&self, irq: u8) {
        self.0.lock().unwrap().push((irq, true));
    }

    fn deassert_irq(&self, irq: u8) {
        self.0.lock().unwrap().push((irq, false));
    }
}

/// One random action on a model.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A port access.
    Access(PortAccess),
    /// Time passes, in nanoseconds.
    Wait(u64),
    /// A number that each test interprets itself.
    Other(u32),
}

/// Any sequence of up to 200 actions on a model at `ports`.
pub(crate) fn steps(ports: &'static [u16]) -> impl Strategy<Value = Vec<Step>> {
    let width = prop_oneof![3 => Just(Width::Byte), 1 => Just(Width::Word), 2 => Just(Width::Dword)];
    let value = prop_oneof![2 => any::<u32>(), 2 => 0u32..0x100, 1 => Just(u32::MAX)];
    let access =
        (prop::sample::select(ports), width, any::<bool>(), value).prop_map(|(port, width, out, eax)| {
            Step::Access(if out {
                PortAccess::output(port, width, eax)
            } else {
                PortAccess::input(port, width, eax)
            })
        });
    let wait = prop_oneof![0u64..100_000_000, 0u64..100_000_000_000].prop_map(Step::Wait);
    let step = prop_oneof![8 => access, 2 => wait, 1 => any::<u32>().prop_map(Step::Other)];
    prop::collection::vec(step, 0..200)
}

/// Number of cases per property: few, because the fuzz targets run longer.
pub(crate) fn config() -> ProptestConfig {
    ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }
}
