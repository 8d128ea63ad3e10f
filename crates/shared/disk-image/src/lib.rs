//! Disk images as vmd(8) meets them: the format by content, what vmd refuses or dies of in a qcow2 image and its
//! backing chain, and whether the firmware, a BIOS, can boot the disk. Each finding says what to do.
//!
//! Facts on qcow2 are those of OpenBSD's vioqcow2.c as `crates/vmm/devices` models it, and of QEMU's
//! docs/interop/qcow2.txt.

mod boot;
mod command;
mod content;
mod file;
mod finding;
mod qcow2;
mod question;

use std::{fs::File, io, path::Path};

use vmd_release::DiskFormat;

pub use command::word;
pub use content::Content;
pub use finding::{Finding, Severity};
pub use question::Question;

use command::{convert, shown};
use file::{length, read_at};

/// The judgement of an image.
#[derive(Debug)]
pub struct Verdict {
    /// The format by content.
    pub content: Content,
    /// What to say about it, the worst first.
    pub findings: Vec<Finding>,
    /// Whether the image, a qcow2 one, names a base or a file for its data.
    pub names_other_files: bool,
}

impl Verdict {
    /// Whether vmd refuses the image, or the VM dies of it.
    pub fn is_refused(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// Opens the image on this machine and judges it.
pub fn judge(path: &Path, format: Option<DiskFormat>, boots: bool) -> io::Result<Verdict> {
    let open = |path: &Path| File::open(path);
    judge_file(&open(path)?, &Question { path, format, boots, open: &open })
}

/// Judges an image that is open for reading.
pub fn judge_file(file: &File, question: &Question<'_>) -> io::Result<Verdict> {
    let length = length(file)?;
    let content = content::detect(file)?;
    let name = shown(question.path);
    let mut findings = match (content, question.format) {
        (Content::Qcow2, Some(DiskFormat::Raw)) => vec![Finding::error(
            format!("{name} is a qcow2 image"),
            "said to be raw: the guest sees no partitions",
            "say that its format is qcow2",
        )],
        (Content::Qcow2, _) => qcow2::judge(file, length, question)?,
        (Content::Raw, Some(DiskFormat::Qcow2)) => vec![Finding::error(
            format!("{name} is not a qcow2 file"),
            "vmd ends with it",
            format!("say that its format is raw, or convert it: {}", convert(question.path, "raw")),
        )],
        (Content::Raw, _) => raw(file, length, question)?,
        (Content::Foreign { name: format, qemu }, _) => vec![Finding::error(
            format!("{name} is a {format} image"),
            "vmd knows raw and qcow2 alone",
            format!("convert it: {}", convert(question.path, qemu)),
        )],
        (Content::Packed { name: packing, unpack }, _) => vec![Finding::error(
            format!("{name} is {packing}"),
            "vmd takes it for a raw disk, on which the guest sees no partitions",
            format!("unpack it first: {unpack} {}", word(question.path)),
        )],
    };
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let names_other_files = content == Content::Qcow2 && qcow2::names_other_files(file, length)?;
    Ok(Verdict { content, findings, names_other_files })
}

fn raw(file: &File, length: u64, question: &Question<'_>) -> io::Result<Vec<Finding>> {
    let name = shown(question.path);
    if !length.is_multiple_of(512) {
        return Ok(vec![Finding::warning(
            format!("{name} is not whole sectors"),
            format!("{length} bytes"),
            "was it copied to its end?",
        )]);
    }
    let mut findings = Vec::new();
    if content::is_fixed_vhd(file, length)? {
        findings.push(Finding::warning(
            format!("{name} is a fixed VHD"),
            "the guest sees its footer as a last sector",
            format!("convert it: {}", convert(question.path, "vpc")),
        ));
    }
    if question.boots {
        let mut sectors = [0; 1024];
        read_at(file, &mut sectors, 0)?;
        findings.extend(boot::judge(&name, &sectors, content::is_iso(file)?));
    }
    Ok(findings)
}
