//! The files that a VM is made of, looked at on the host.

use std::{fs::File, io::Read, path::Path};

use disk_image::Question;

use super::Judge;
use crate::{
    finding::{Finding, Severity, relative_path},
    model::DiskFormat,
    source::Spanned,
};

impl Judge<'_> {
    /// Opens a file of the host, if files are to be looked at, and complains if vmd cannot use it.
    pub(super) fn open(&mut self, path: &Spanned<String>) -> Option<File> {
        let relative = relative_path(path);
        let refused = relative.as_ref().is_some_and(|finding| finding.severity == Severity::Error);
        self.findings.extend(relative);
        if refused {
            return None;
        }
        let (message, label) = match self.files?.open(path.as_str()) {
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
        let Some(file) = self.open(path) else {
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
        let Some(files) = self.files else { return };
        let question = Question {
            path: Path::new(path.as_str()),
            format: format.map(|format| format.value),
            boots,
            open: &|base: &Path| files.open(base),
        };
        match disk_image::judge_file(&file, &question) {
            Err(error) => {
                self.error(path.at, format!("cannot read {}: {error}", path.value), "vmd cannot either", "");
            }
            Ok(verdict) => {
                for finding in verdict.findings {
                    let severity = match finding.severity {
                        disk_image::Severity::Error => Severity::Error,
                        disk_image::Severity::Warning => Severity::Warning,
                    };
                    let found = Finding::new(severity, path.at, finding.message, finding.effect);
                    self.found(found, &finding.help);
                }
            }
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
