//! How a guest ends.

use std::fmt;

use devices::vmmci;
use miette::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::diagnosis::{At, DeviceFault, OutsideRam, StringIo, VcpuError};

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
    use devices::bus::{Direction, Width};

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
