//! Diagnoses of fatal exits: what the guest did, where, and what to do about it.

pub(crate) mod memory_map;
pub(crate) mod symbols;

use std::fmt;

use devices::{
    bus::{Direction, Width},
    virtio::Fault,
};
use serde::{Deserialize, Serialize};

/// Where the guest's processor was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    /// Linear address of the instruction (RIP with the code segment's base).
    pub rip: u64,
    /// The kernel's symbol there, if symbols were given and cover it.
    pub symbol: Option<String>,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.rip)?;
        self.symbol.as_ref().map_or(Ok(()), |symbol| write!(f, " ({symbol})"))
    }
}

/// An access to an address where there is no memory. On vmd up to 7.9 that ends the VM without a word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideRam {
    /// The guest-physical address.
    pub address: u64,
    /// Whether it was a write.
    pub write: bool,
    /// Width in bytes, 1 to 8.
    pub width: usize,
    /// What is written.
    pub value: Option<u64>,
    /// The instruction.
    pub at: At,
}

impl OutsideRam {
    /// What lives at the address on PCs, if it is a known place.
    pub fn place(&self) -> Option<&'static memory_map::Place> {
        memory_map::find(self.address)
    }

    /// What to do about it.
    pub fn help(&self) -> String {
        let advice = self.place().map_or(
            "a vmd VM has no memory-mapped devices up to 7.9: the guest must not touch anything outside its e820 map",
            |place| place.advice,
        );
        match self.at.symbol {
            Some(_) => advice.to_owned(),
            None => format!("{advice}; with the kernel's System.map and `nokaslr` the function can be named"),
        }
    }
}

impl fmt::Display for OutsideRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.write { "wrote" } else { "read" };
        write!(
            f,
            "the guest {verb} {} bytes at {:#x}, where it has no memory, from {}",
            self.width, self.address, self.at
        )?;
        if let Some(value) = self.value {
            write!(f, " (value {value:#x})")?;
        }
        self.place().map_or(Ok(()), |place| write!(f, "; on PCs that is the {}", place.name))
    }
}

/// A string or repeated port instruction (INS, OUTS), for which vmd gives up (x86_vm.c, `vcpu_exit_inout`).
///
/// KVM tells such instructions from IN and OUT only when they move more than one item at once: an INS or OUTS that
/// moves one item passes here and would not on vmd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StringIo {
    /// The port.
    pub port: u16,
    /// Whether the guest writes.
    pub write: bool,
    /// Bytes per item.
    pub width: usize,
    /// Items.
    pub count: u32,
    /// The instruction.
    pub at: At,
}

impl StringIo {
    pub(crate) const fn new(port: u16, width: Width, direction: Direction, count: u32, at: At) -> Self {
        Self { port, write: matches!(direction, Direction::Out), width: width.bytes(), count, at }
    }

    /// What to do about it.
    pub const fn help(&self) -> &'static str {
        "vmd emulates IN and OUT only: use a driver that moves one register's width at a time"
    }
}

impl fmt::Display for StringIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instruction = if self.write { "OUTS" } else { "INS" };
        write!(
            f,
            "the guest moved {} items of {} bytes with a string instruction (REP {instruction}) at port {:#x} from {}",
            self.count, self.width, self.port, self.at
        )
    }
}

/// A request of a virtio device at which a process of vmd dies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFault {
    /// Which device and what was wrong.
    pub reason: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The instruction that made the request, or after which it was noticed.
    pub at: At,
}

impl DeviceFault {
    pub(crate) fn new(fault: &Fault, at: At) -> Self {
        Self { reason: fault.to_string(), help: Some(fault_help(fault).into()), at }
    }
}

/// Advice for the guest's developer about `fault`.
const fn fault_help(fault: &Fault) -> &'static str {
    match fault {
        Fault::NullRing { .. } => {
            "vmd ends the VM here; the driver must write the queue's address before it notifies it"
        }
        Fault::RingOutsideRam { .. } => {
            "vmd ends the VM here; the driver must put its rings into RAM that the e820 map lists"
        }
        Fault::RequestTooLarge { .. } => "vmd ends the VM here (`viornd descriptor size too large`)",
        Fault::EndlessChain { .. } => {
            "vmd's vCPU thread spins forever here; the driver must chain buffers for the whole answer"
        }
    }
}

impl fmt::Display for DeviceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, at {}", self.reason, self.at)
    }
}

/// The processor could not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuError {
    /// What KVM said.
    pub reason: String,
    /// The instruction.
    pub at: At,
}

impl VcpuError {
    /// What to do about it.
    pub const fn help(&self) -> &'static str {
        "most often the guest jumped to, or put its page tables or stack, where it has no memory"
    }
}

impl fmt::Display for VcpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest's processor cannot go on at {}: {}", self.at, self.reason)
    }
}
