//! Disk formats and boot devices of vmd(8).

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

/// Format of a disk image, as vm.conf(5) and vmctl(8) name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl DiskFormat {
    /// All formats.
    pub const ALL: [Self; 2] = [Self::Raw, Self::Qcow2];

    /// `raw` or `qcow2`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The usual extension of a file's name: `img` or `qcow2`.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Raw => "img",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A disk format that vmd does not support.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown disk format `{0}`: vmd supports raw and qcow2")]
pub struct UnknownDiskFormat(String);

impl FromStr for DiskFormat {
    type Err = UnknownDiskFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| UnknownDiskFormat(text.to_owned()))
    }
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Path of the image.
    pub path: PathBuf,
    /// Format; `None` to detect it from the image when the VM is created.
    #[serde(default)]
    pub format: Option<DiskFormat>,
}

/// Boot device of a VM: `boot device` in vm.conf(5), `-B` of vmctl(8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootDevice {
    /// The first disk.
    Disk,
    /// The CD-ROM.
    Cdrom,
    /// The network, from which vmd's firmware cannot boot: it halts.
    Net,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_formats_are_parsed_as_they_are_displayed() {
        for format in DiskFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("vdi".parse::<DiskFormat>().is_err());
    }
}
