//! The files that a VM is made of, looked at on the host.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
};

use super::Judge;
use crate::{
    finding::{Severity, relative_path},
    model::DiskFormat,
    source::Spanned,
};

/// The first bytes of a qcow2 file.
const QCOW2: &[u8] = b"QFI\xfb";

impl Judge<'_> {
    /// Opens a file of the host, if files are to be looked at, and complains if vmd cannot use it.
    pub(super) fn open(&mut self, path: &Spanned<String>) -> Option<File> {
        let relative = relative_path(path);
        let refused = relative.as_ref().is_some_and(|finding| finding.severity == Severity::Error);
        self.findings.extend(relative);
        if refused {
            return None;
        }
        let (message, label) = match self.files?.open(path) {
            Ok(file) if file.metadata().is_ok_and(|metadata| metadata.is_file()) => return Some(file),
            Ok(_) => (format!("{} is not a regular file", path.value), "vmd does not start the VM"),
            Err(error) => (format!("cannot open {}: {error}", path.value), "vmd refuses the file"),
        };
        self.error(path.at, message, label, "");
        None
    }

    /// Judges a disk image; with `boots`, the VM boots from it.
    pub(super) fn disk(&mut self, path: &Spanned<String>, format: Option<&Spanned<DiskFormat>>, boots: bool) {
        let named = by_name(path);
        let Some(mut file) = self.open(path) else {
            if let (Some(format), Some(named)) = (format, named)
                && format.value != named
            {
                let message = format!("{} looks like {named} by its name", path.value);
                self.warning(
                    format.at,
                    message,
                    format!("said to be {format}", format = format.value),
                    "one is wrong",
                );
            }
            return;
        };
        let start = start(&mut file);
        let is_qcow2 = start.starts_with(QCOW2);
        match format.map(|format| format.value) {
            Some(DiskFormat::Qcow2) if !is_qcow2 => {
                let help = "take `format qcow2` away, or convert it: vmctl create -i raw:FROM qcow2:TO";
                self.error(path.at, format!("{} is not a qcow2 file", path.value), "vmd ends with it", help);
                return;
            }
            Some(DiskFormat::Raw) if is_qcow2 => self.error(
                path.at,
                format!("{} is a qcow2 file", path.value),
                "said to be raw: the guest sees no partitions",
                "say `format qcow2`, or nothing",
            ),
            _ => {}
        }
        if is_qcow2 {
            let version = start.get(4..8).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
            if !(2..=3).contains(&version) {
                self.error(path.at, format!("qcow2 version {version}"), "vmd knows 2 and 3", "");
            }
            return;
        }
        let length = file.seek(SeekFrom::End(0)).unwrap_or_default();
        if length % 512 != 0 {
            self.warning(
                path.at,
                "the file is not whole sectors",
                format!("{length} bytes"),
                "was it copied to its end?",
            );
        } else if boots && start.get(510..512) != Some(&[0x55, 0xaa]) {
            self.warning(
                path.at,
                "the disk has no boot sector",
                "the BIOS finds nothing to boot",
                "`vmmlinux image` makes disks that boot; an empty one wants a CD-ROM to install from",
            );
        }
    }
}

/// The first KiB of a file, or less.
pub(super) fn start(file: &mut File) -> Vec<u8> {
    let mut start = Vec::new();
    let read = file.take(1024).read_to_end(&mut start);
    if read.is_ok() { start } else { Vec::new() }
}

/// The format that a file's name promises.
fn by_name(path: &str) -> Option<DiskFormat> {
    match path.rsplit('/').next()?.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
        "qcow2" | "qcow" => Some(DiskFormat::Qcow2),
        "img" | "raw" => Some(DiskFormat::Raw),
        _ => None,
    }
}
