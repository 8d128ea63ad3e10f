//! Shared parts of the fuzz targets: random port accesses while time passes.

pub mod virtio;

use std::sync::Arc;

use arbitrary::Arbitrary;
use devices::{
    bus::{PortAccess, PortDevice, Width},
    clock::{Clock, ManualClock, Timed},
    irqchip::{InterruptController, line::IrqLine},
};

/// One random event for a device.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Step {
    /// The guest reads a port.
    In { port: u8, width: AnyWidth, eax: u32 },
    /// The guest writes a port.
    Out { port: u8, width: AnyWidth, eax: u32 },
    /// The guest writes a small number, which is rare among random 32 bits.
    OutByte { port: u8, value: u8 },
    /// Time passes, in microseconds, and due timers expire.
    Wait { micros: u32 },
    /// The host's clock is set.
    SetClock { seconds: u32 },
    /// A number that each target interprets itself.
    Other { what: u8, argument: u32 },
}

/// The width of an access.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum AnyWidth {
    Byte,
    Word,
    Dword,
}

impl From<AnyWidth> for Width {
    fn from(width: AnyWidth) -> Self {
        match width {
            AnyWidth::Byte => Self::Byte,
            AnyWidth::Word => Self::Word,
            AnyWidth::Dword => Self::Dword,
        }
    }
}

impl Step {
    /// The access to one of `ports`, if this step is an access.
    pub fn access(self, ports: &[u16]) -> Option<PortAccess> {
        let pick = |port: u8| ports[usize::from(port) % ports.len()];
        match self {
            Self::In { port, width, eax } => Some(PortAccess::input(pick(port), width.into(), eax)),
            Self::Out { port, width, eax } => Some(PortAccess::output(pick(port), width.into(), eax)),
            Self::OutByte { port, value } => Some(PortAccess::output(pick(port), Width::Byte, value.into())),
            Self::Wait { .. } | Self::SetClock { .. } | Self::Other { .. } => None,
        }
    }
}

/// Interrupt lines that are ignored.
#[derive(Debug)]
pub struct NoLines;

impl InterruptController for NoLines {
    fn assert_irq(&self, irq: u8) {
        assert!(irq < 16);
    }

    fn deassert_irq(&self, irq: u8) {
        assert!(irq < 16);
    }
}

/// A line of [`NoLines`].
pub fn line(irq: u8) -> IrqLine {
    IrqLine::new(Arc::new(NoLines), irq)
}

/// A host that booted a second ago, in November 2026.
pub fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(1_000_000_000, 1_795_348_415_505_915_777))
}

/// Runs a script on a device with timers. After each step no deadline may be due, because the event
/// loop would spin.
pub fn play<D: PortDevice + Timed>(
    device: &mut D,
    clock: &ManualClock,
    ports: &[u16],
    script: &[Step],
    mut other: impl FnMut(&mut D, u8, u32),
) {
    for step in script {
        if let Some(mut access) = step.access(ports) {
            device.access(&mut access);
        }
        match *step {
            Step::Wait { micros } => clock.advance(u64::from(micros) * 1000),
            Step::SetClock { seconds } => clock.set_realtime(u64::from(seconds) * 1_000_000_000),
            Step::Other { what, argument } => other(device, what, argument),
            _ => {}
        }
        device.expire();
        assert!(device.deadline().is_none_or(|at| at > clock.monotonic()));
    }
}
