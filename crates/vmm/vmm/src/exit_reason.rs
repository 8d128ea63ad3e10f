//! Exit reasons: why a guest ended.

use std::fmt;

use devices::vmmci;
use miette::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::diagnosis::{DeviceFault, FirmwareHalt, GuestLocation, OutsideRam, StringIo, VcpuError};

/// Why a guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitReason {
    /// The guest reset itself and is not restarted. It resets by a triple fault, the only way up to
    /// 7.9, or through a reset port of 8.0.
    Reset,
    /// The guest was asked to shut down (`vmctl stop`), acknowledged, and shut down.
    Stopped,
    /// The guest executed HLT with interrupts disabled, as Linux' `poweroff` and `halt` do without
    /// ACPI. vmd gets EIO from vmm and ends the VM (vmm_machdep.c, `svm_handle_hlt`;
    /// golden/reboot).
    HaltedWithInterruptsOff(GuestLocation),
    /// The firmware panicked: it halted with interrupts disabled before it started a boot loader.
    FirmwareHalted(FirmwareHalt),
    /// The guest made the hypercall 0x1234 at CPL 0, which ends the VM from 8.0 on
    /// (`vmx_handle_exit`, `svm_handle_exit` in vmm_machdep.c).
    Hypercall(GuestLocation),
    /// The guest powered itself off through ACPI (S5), from 8.0 on.
    PoweredOff,
    /// The guest announced its power-off through vmmci, and was ended after the timeout.
    GuestShutdown,
    /// The guest did not acknowledge a shutdown or reboot request within 3 s.
    NotAcknowledged,
    /// The guest acknowledged a shutdown or reboot request and did not complete it within 120 s.
    NotFinished,
    /// The guest was to be asked to shut down or reboot and had no vmmci driver ready: vmd ends
    /// such a VM at once.
    NoDriver,
    /// The VM was killed (`vmctl stop -f`).
    Killed,
    /// The guest made a virtio request at which a process of vmd dies, and the VM with it.
    DeviceFault(DeviceFault),
    /// The guest accessed an address without memory.
    OutsideRam(OutsideRam),
    /// The guest executed a string or repeated port instruction, which vmd cannot emulate.
    StringIo(StringIo),
    /// A vCPU could not continue, for a reason that only KVM knows.
    VcpuError(VcpuError),
}

impl ExitReason {
    /// Exit status of a process: 0 if the guest shut down or reset, 1 if it was killed, 3 if vmd's
    /// VM would have died.
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Reset
            | Self::Stopped
            | Self::HaltedWithInterruptsOff(_)
            | Self::PoweredOff
            | Self::GuestShutdown => 0,
            Self::NotAcknowledged | Self::NotFinished | Self::NoDriver | Self::Killed => 1,
            Self::OutsideRam(_)
            | Self::StringIo(_)
            | Self::DeviceFault(_)
            | Self::VcpuError(_)
            | Self::FirmwareHalted(_)
            | Self::Hypercall(_) => 3,
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
            Self::FirmwareHalted(d) => d.fmt(f),
            Self::Hypercall(at) => {
                write!(f, "the guest made the hypercall 0x1234, which ends the VM, at {at}")
            }
            Self::PoweredOff => f.write_str("the guest powered itself off through ACPI"),
            Self::GuestShutdown => {
                f.write_str("the guest announced its shutdown through vmmci and was ended")
            }
            Self::NotAcknowledged => {
                f.write_str("the guest did not acknowledge the shutdown request within 3 s, and was ended")
            }
            Self::NotFinished => f.write_str(
                "the guest acknowledged the shutdown request but was not down after 120 s, and was ended",
            ),
            Self::NoDriver => {
                f.write_str("the guest had no vmmci driver that could be asked to shut down, and was ended")
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

/// An exit reason that would kill the VM under vmd, as an error with a diagnosis.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FatalExit(pub ExitReason);

impl Diagnostic for FatalExit {
    fn help(&self) -> Option<Box<dyn fmt::Display + '_>> {
        match &self.0 {
            ExitReason::OutsideRam(d) => Some(Box::new(d.help())),
            ExitReason::StringIo(d) => Some(Box::new(d.help())),
            ExitReason::VcpuError(d) => Some(Box::new(d.help())),
            ExitReason::FirmwareHalted(d) => Some(Box::new(d.help())),
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
        let at = GuestLocation {
            rip: 0xffff_ffff_8123_4567,
            symbol: Some("print_s5_reset_status_mmio+0x27".into()),
        };
        OutsideRam { address: 0xfed8_0300, write: false, width: 4, value: None, at }
    }

    #[test]
    fn the_recorded_fatal_exit_of_linux_7_3_is_explained() {
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

    fn firmware_halt(pci_devices: usize) -> ExitReason {
        ExitReason::FirmwareHalted(FirmwareHalt::new(pci_devices, GuestLocation::default()))
    }

    #[test]
    fn a_firmware_without_io_space_is_told_from_other_panics() {
        let help = |ended| FatalExit(ended).help().unwrap().to_string();
        let full = firmware_halt(9);
        assert_eq!(full.exit_status(), 3, "not a guest that went down in order");
        assert!(full.to_string().contains("the VM has 9"), "{full}");
        assert!(help(full).contains("at most 6 disks"));
        let other = firmware_halt(8);
        assert_eq!(other.exit_status(), 3);
        assert!(!other.to_string().contains("PCI"), "{other}");
        assert!(help(other).contains("console"));
    }

    #[test]
    fn ends_survive_a_round_trip() {
        for ended in [
            ExitReason::Reset,
            ExitReason::PoweredOff,
            firmware_halt(9),
            ExitReason::Hypercall(GuestLocation::default()),
            ExitReason::OutsideRam(fch()),
            ExitReason::StringIo(StringIo::new(
                0x1f0,
                Width::Word,
                Direction::In,
                256,
                GuestLocation::default(),
            )),
            ExitReason::VcpuError(VcpuError { reason: "x".into(), at: GuestLocation::default() }),
        ] {
            let text = serde_json::to_string(&ended).unwrap();
            assert_eq!(serde_json::from_str::<ExitReason>(&text).unwrap(), ended);
        }
    }
}
