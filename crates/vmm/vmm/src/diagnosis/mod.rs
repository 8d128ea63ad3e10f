//! Diagnoses of fatal exits: what the guest did, where, and what to do about it.

pub(crate) mod memory_map;
pub(crate) mod symbols;

use std::fmt;

use devices::{
    bus::{Direction, Width},
    virtio::Fault,
};
use serde::{Deserialize, Serialize};

/// Location of the guest's code at an exit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestLocation {
    /// Linear address of the instruction (RIP with the code segment's base).
    pub rip: u64,
    /// The kernel's symbol and offset there, if known.
    pub symbol: Option<String>,
}

impl fmt::Display for GuestLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.rip)?;
        self.symbol.as_ref().map_or(Ok(()), |symbol| write!(f, " ({symbol})"))
    }
}

/// An access to an address without memory. vmd up to 7.9 ends the VM without a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideRam {
    /// The guest-physical address.
    pub address: u64,
    /// Whether it was a write.
    pub write: bool,
    /// Width in bytes, 1 to 8.
    pub width: usize,
    /// Value of a write.
    pub value: Option<u64>,
    /// The instruction.
    pub at: GuestLocation,
}

impl OutsideRam {
    /// The device that PCs have at the address, if known.
    pub fn pc_range(&self) -> Option<&'static memory_map::PcRange> {
        memory_map::find(self.address)
    }

    /// What to do about it.
    pub fn help(&self) -> String {
        let advice = self.pc_range().map_or(
            "a vmd VM has no memory-mapped devices up to 7.9: the guest must not access addresses outside its e820 map",
            |range| range.advice,
        );
        match self.at.symbol {
            Some(_) => advice.to_owned(),
            None => {
                format!("{advice}; give the kernel's System.map and boot with `nokaslr` to see the function")
            }
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
        self.pc_range().map_or(Ok(()), |range| write!(f, "; on PCs that is the {}", range.name))
    }
}

/// PCI devices for which SeaBIOS has I/O space, the host bridge not counted: it places their BARs
/// from 0x1000 on, and panics when they come to 0x9000. Two of them are rng and vmmci.
const FIRMWARE_PCI_DEVICES: usize = 8;

/// The firmware halted with interrupts disabled before it started a boot loader: SeaBIOS has
/// panicked. vmd gets EIO from vmm and ends the VM (`run ioctl failed`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareHalt {
    /// Number of PCI devices, the host bridge not counted.
    pub pci_devices: usize,
    /// The instruction.
    pub at: GuestLocation,
}

impl FirmwareHalt {
    pub(crate) const fn new(pci_devices: usize, at: GuestLocation) -> Self {
        Self { pci_devices, at }
    }

    const fn lacks_io_space(&self) -> bool {
        self.pci_devices > FIRMWARE_PCI_DEVICES
    }

    /// What to do about it.
    pub const fn help(&self) -> &'static str {
        if self.lacks_io_space() {
            "SeaBIOS has no I/O space for that many devices, on a real vmd either: give the VM at most 6 disks, \
             network interfaces and CD-ROM drives together"
        } else {
            "the firmware's last message on the console tells why; check the image that `--firmware` names"
        }
    }
}

impl fmt::Display for FirmwareHalt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the firmware panicked at {}", self.at)?;
        if self.lacks_io_space() {
            let devices = self.pci_devices;
            write!(f, ": it has I/O space for {FIRMWARE_PCI_DEVICES} PCI devices, and the VM has {devices}")?;
        }
        Ok(())
    }
}

/// A string or repeated port instruction (INS, OUTS), at which vmd ends the VM (x86_vm.c,
/// `vcpu_exit_inout`).
///
/// KVM reports an INS or OUTS of one item as IN or OUT: such an instruction works here and would
/// not on vmd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StringIo {
    /// The port.
    pub port: u16,
    /// Whether it is OUTS.
    pub write: bool,
    /// Width of an item in bytes.
    pub width: usize,
    /// Number of items.
    pub count: u32,
    /// The instruction.
    pub at: GuestLocation,
}

impl StringIo {
    pub(crate) const fn new(
        port: u16,
        width: Width,
        direction: Direction,
        count: u32,
        at: GuestLocation,
    ) -> Self {
        Self { port, write: matches!(direction, Direction::Out), width: width.bytes(), count, at }
    }

    /// What to do about it.
    pub const fn help(&self) -> &'static str {
        "vmd emulates IN and OUT only: use a driver that does not use string instructions"
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

/// A virtio request at which a process of vmd dies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFault {
    /// The device and the error in the request.
    pub reason: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The instruction that made the request, or the next port access.
    pub at: GuestLocation,
}

impl DeviceFault {
    pub(crate) fn new(fault: &Fault, at: GuestLocation) -> Self {
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

/// A vCPU could not continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuError {
    /// KVM's reason.
    pub reason: String,
    /// The instruction.
    pub at: GuestLocation,
}

impl VcpuError {
    /// What to do about it.
    pub const fn help(&self) -> &'static str {
        "usually the guest's code, page tables or stack lie at an address without memory"
    }
}

impl fmt::Display for VcpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the vCPU cannot continue at {}: {}", self.at, self.reason)
    }
}
