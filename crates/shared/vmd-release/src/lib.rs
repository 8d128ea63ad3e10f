//! Generations of OpenBSD's vmd(8) and what each of them shows to a guest; its disk formats and
//! boot devices.

mod capabilities;
mod media;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use capabilities::{Capabilities, LineRegister, Unsettled};
pub use media::{BootDevice, Disk, DiskFormat, UnknownDiskFormat};

/// A generation of vmd(8) and vmm(4), named after the OpenBSD release that brought it.
///
/// Releases between 6.8 and 7.7 look the same to a guest and are one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Generation {
    /// Up to OpenBSD 7.7: legacy virtio 0.9, hypervisor leaf `OpenBSDVMM58` only.
    #[serde(rename = "7.7")]
    V7_7,
    /// OpenBSD 7.8: virtio 1.x in I/O BARs, a KVM leaf at 0x40000100.
    #[serde(rename = "7.8")]
    V7_8,
    /// OpenBSD 7.9: as 7.8, with 576 KiB of low memory; the KVM leaf's clock bits need a known TSC
    /// rate.
    #[serde(rename = "7.9")]
    V7_9,
    /// OpenBSD 8.0: LAPIC, IOAPIC, ACPI, MSI-X.
    #[serde(rename = "8.0")]
    V8_0,
}

impl Generation {
    /// All generations, oldest first.
    pub const ALL: [Self; 4] = [Self::V7_7, Self::V7_8, Self::V7_9, Self::V8_0];

    /// The release's number, as `7.8`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V7_7 => "7.7",
            Self::V7_8 => "7.8",
            Self::V7_9 => "7.9",
            Self::V8_0 => "8.0",
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a release outside [`Generation::ALL`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown vmd release `{0}`: the known ones are 7.7 (and earlier), 7.8, 7.9 and 8.0")]
pub struct UnknownGeneration(String);

impl FromStr for Generation {
    type Err = UnknownGeneration;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|g| g.as_str() == s).ok_or_else(|| UnknownGeneration(s.to_owned()))
    }
}

/// Behaviour of the host's TSC, and so of its guests' TSCs, while the host sleeps: vmm gives them
/// no offset, and OpenBSD does not set the TSC when it wakes up (vmm_machdep.c, tsc.c of 7.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SleepingTsc {
    /// It continues from its value before the suspend: the firmware restores it.
    #[default]
    Stands,
    /// It counts on: suspend to idle (S0ix), and S3 on a few processors.
    Runs,
    /// It restarts from zero: S3 on most computers, and hibernation.
    Resets,
}

/// A word other than `stands`, `runs` and `resets`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "unknown TSC behaviour `{0}` while the host sleeps: the known ones are `stands`, `runs` and `resets`"
)]
pub struct UnknownSleepingTsc(String);

impl FromStr for SleepingTsc {
    type Err = UnknownSleepingTsc;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "stands" => Ok(Self::Stands),
            "runs" => Ok(Self::Runs),
            "resets" => Ok(Self::Resets),
            _ => Err(UnknownSleepingTsc(s.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for generation in Generation::ALL {
            assert_eq!(generation.to_string().parse(), Ok(generation));
        }
        assert!("6.7".parse::<Generation>().unwrap_err().to_string().contains("`6.7`"));
    }

    #[test]
    fn a_sleeping_tsc_does_one_of_three_things() {
        assert_eq!("resets".parse(), Ok(SleepingTsc::Resets));
        assert!("flies".parse::<SleepingTsc>().unwrap_err().to_string().contains("`flies`"));
    }
}
