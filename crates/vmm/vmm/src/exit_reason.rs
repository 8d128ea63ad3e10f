//! How a guest ends.

use std::fmt;

use devices::{
    bus::{Direction, Width},
    virtio::Fault,
    vmmci,
};
use miette::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::memory_map;

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitReason {
    /// It reset itself, by a triple fault, which is the only way that vmd has up to 7.9, or through one of the ports
    /// that 8.0 has for it, and the machine was told not to start it again.
    Reset,
    /// It was asked to go down (`vmctl stop`), acknowledged that, and has gone down.
    Stopped,
    /// It executed HLT with interrupts disabled: what Linux' `poweroff` and `halt` come to without ACPI. vmd gets EIO
    /// from vmm and ends the VM (vmm_machdep.c, `svm_handle_hlt`; golden/reboot).
    HaltedWithInterruptsOff(At),
    /// It powered itself off through ACPI (S5), which it can from 8.0 on.
    PoweredOff,
    /// It told vmd through vmmci that it was going down, and was ended after the time for that.
    GuestShutdown,
    /// It was asked to go down or to reboot and did not acknowledge that within 3 s.
    NotAcknowledged,
    /// It acknowledged that it was asked to go down or to reboot, and had not done so after 120 s.
    NotFinished,
    /// It was to go down or to reboot and had no vmmci driver that was ready: vmd ends such a VM at once.
    NoDriver,
    /// The control side ended it (`vmctl stop -f`).
    Killed,
    /// It made a request of a virtio device at which a process of vmd dies, and the VM with it.
    DeviceFault(DeviceFault),
    /// It accessed an address where there is no memory.
    OutsideRam(OutsideRam),
    /// It executed a string or repeated port instruction, which vmd cannot emulate.
    StringIo(StringIo),
    /// The processor could not go on in a way that KVM can explain no further.
    VcpuError(VcpuError),
}

impl ExitReason {
    /// A process's exit status for it: 0 when the guest went down in order, 1 when it was ended by force, 3 for what
    /// kills a VM under vmd.
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Reset
            | Self::Stopped
            | Self::HaltedWithInterruptsOff(_)
            | Self::PoweredOff
            | Self::GuestShutdown => 0,
            Self::NotAcknowledged | Self::NotFinished | Self::NoDriver | Self::Killed => 1,
            Self::OutsideRam(_) | Self::StringIo(_) | Self::DeviceFault(_) | Self::VcpuError(_) => 3,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Stopped => f.write_str("the guest went down as asked"),
            Self::HaltedWithInterruptsOff(at) => {
                write!(f, "the guest halted with interrupts disabled at {at}")
            }
            Self::PoweredOff => f.write_str("the guest powered itself off through ACPI"),
            Self::GuestShutdown => {
                f.write_str("the guest announced its shutdown through vmmci and was ended")
            }
            Self::NotAcknowledged => {
                f.write_str("the guest did not acknowledge within 3 s that it was to go down, and was ended")
            }
            Self::NotFinished => {
                f.write_str("the guest had not gone down 120 s after it said it would, and was ended")
            }
            Self::NoDriver => {
                f.write_str("the guest had no vmmci driver that could be told to go down, and was ended")
            }
            Self::DeviceFault(d) => d.fmt(f),
            Self::Killed => f.write_str("the guest was ended by force"),
            Self::OutsideRam(d) => d.fmt(f),
            Self::StringIo(d) => d.fmt(f),
            Self::VcpuError(d) => d.fmt(f),
        }
    }
}

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

/// What the guest's developer can do about `fault`.
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
            "vmd's vCPU thread spins for ever here; the driver must chain buffers for the whole answer"
        }
    }
}

impl fmt::Display for DeviceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, at {}", self.reason, self.at)
    }
}

impl From<vmmci::End> for ExitReason {
    fn from(end: vmmci::End) -> Self {
        match end.reason {
            vmmci::Reason::NoDriver => Self::NoDriver,
            vmmci::Reason::NotAcknowledged => Self::NotAcknowledged,
            vmmci::Reason::NotFinished => Self::NotFinished,
            vmmci::Reason::GuestPowersOff => Self::GuestShutdown,
        }
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

/// A way of ending that would kill the VM under vmd, as an error with a diagnosis.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FatalExit(pub ExitReason);

impl Diagnostic for FatalExit {
    fn help(&self) -> Option<Box<dyn fmt::Display + '_>> {
        match &self.0 {
            ExitReason::OutsideRam(d) => Some(Box::new(d.help())),
            ExitReason::StringIo(d) => Some(Box::new(d.help())),
            ExitReason::VcpuError(d) => Some(Box::new(d.help())),
            ExitReason::DeviceFault(d) => d.help.as_ref().map(|help| Box::new(help) as _),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fch() -> OutsideRam {
        let at = At { rip: 0xffff_ffff_8123_4567, symbol: Some("print_s5_reset_status_mmio+0x27".into()) };
        OutsideRam { address: 0xfed8_0300, write: false, width: 4, value: None, at }
    }

    #[test]
    fn the_recorded_death_of_linux_7_3_is_explained() {
        // golden/dmesg/k73.default.killed-by-s5_reset-mmio.txt
        let ended = ExitReason::OutsideRam(fch());
        let text = ended.to_string();
        for part in ["read 4 bytes at 0xfed80300", "print_s5_reset_status_mmio+0x27", "AMD FCH"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(ended.exit_status(), 3);
        let help = FatalExit(ended).help().unwrap().to_string();
        assert!(help.contains("initcall_blacklist=print_s5_reset_status_mmio"), "{help}");
    }

    #[test]
    fn without_symbols_the_help_says_how_to_get_them() {
        let mut diagnosis = fch();
        diagnosis.at.symbol = None;
        assert!(diagnosis.help().contains("System.map"));
        diagnosis.address = 0x4000_0000;
        assert!(diagnosis.help().contains("e820"));
    }

    #[test]
    fn ends_survive_a_round_trip() {
        for ended in [
            ExitReason::Reset,
            ExitReason::PoweredOff,
            ExitReason::OutsideRam(fch()),
            ExitReason::StringIo(StringIo::new(0x1f0, Width::Word, Direction::In, 256, At::default())),
            ExitReason::VcpuError(VcpuError { reason: "x".into(), at: At::default() }),
        ] {
            let text = serde_json::to_string(&ended).unwrap();
            assert_eq!(serde_json::from_str::<ExitReason>(&text).unwrap(), ended);
        }
    }
}
