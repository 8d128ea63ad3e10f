//! qcow2 images and their backing chains.

mod header;
mod layer;

use std::{fs::File, io, path::Path};

use crate::{
    boot,
    command::{convert, shown, word},
    content::{self, Content},
    file::length,
    finding::Finding,
    question::Question,
};
use header::Header;
use layer::{Layer, MAX_TABLES};

/// Largest number of images in a backing chain (`VM_MAX_BASE_PER_DISK`).
const MAX_DEPTH: usize = 4;

/// Judges the image and its bases, and whether the disk boots.
pub(crate) fn judge(file: &File, length: u64, question: &Question<'_>) -> io::Result<Vec<Finding>> {
    let mut chain = Chain { question, findings: Vec::new(), layers: Vec::new() };
    chain.follow(file.try_clone()?, length)?;
    if question.boots && chain.findings.is_empty() {
        chain.boot()?;
    }
    Ok(chain.findings)
}

/// Whether the image names a base or a file for its data. An image whose header cannot be used names none.
pub(crate) fn names_other_files(file: &File, length: u64) -> io::Result<bool> {
    Ok(Header::read(file, length)?.is_ok_and(|header| header.names_base() || header.has_data_file()))
}

struct Chain<'a> {
    question: &'a Question<'a>,
    findings: Vec<Finding>,
    /// From the image itself to its last base.
    layers: Vec<Layer>,
}

impl Chain<'_> {
    /// Judges the image and each base of it, up to the first that cannot be opened.
    fn follow(&mut self, file: File, length: u64) -> io::Result<()> {
        let (mut path, mut file, mut length) = (self.question.path.to_owned(), file, length);
        loop {
            let Some(header) = self.layer(&path, file, length)? else { return Ok(()) };
            let layer = self.layers.last().expect("it was put there");
            let Some(base) = header.base(&layer.file, &path)? else { return Ok(()) };
            if self.layers.len() == MAX_DEPTH {
                self.refuse(
                    format!(
                        "{} has more than {MAX_DEPTH} images in its backing chain",
                        shown(self.question.path)
                    ),
                    "vmd does not open the others",
                );
                return Ok(());
            }
            let Some(opened) = self.base(&path, &base) else { return Ok(()) };
            (path, file, length) = (base, opened.0, opened.1);
        }
    }

    /// Judges one image of the chain. `None` if the chain cannot be followed.
    fn layer(&mut self, path: &Path, file: File, length: u64) -> io::Result<Option<Header>> {
        let name = shown(path);
        let header = match Header::read(&file, length)? {
            Ok(header) => header,
            Err(problem) => {
                self.findings.push(Finding::error(
                    format!("the qcow2 header of {name} cannot be used: {problem}"),
                    "vmd does not start the VM",
                    "copy the image again",
                ));
                return Ok(None);
            }
        };
        for (problem, effect) in header.refusals() {
            self.refuse(format!("{name} {problem}"), effect);
        }
        if let Some(upper) = self.layers.last()
            && upper.header.cluster_bits != header.cluster_bits
        {
            self.refuse(
                format!(
                    "{name} has clusters of {}, and the image that is based on it of {}",
                    size(header.cluster_bits),
                    size(upper.header.cluster_bits)
                ),
                "vmd wants them alike",
            );
        }
        let layer = Layer { header, file };
        let survey = layer.survey(length, MAX_TABLES)?;
        if survey.compressed > 0 {
            self.refuse(
                format!("{name} has {} compressed clusters", survey.compressed),
                "vmd ends at the first read of one, perhaps long after the guest has booted",
            );
        }
        if survey.beyond > 0 {
            self.findings.push(Finding::error(
                format!("{name} is cut off: {} of its clusters lie behind its end", survey.beyond),
                "the guest reads errors or nothing",
                "copy it again, and whole",
            ));
        }
        if survey.is_cut_short {
            self.findings.push(Finding::error(
                format!("{name} has more than 1 GiB of tables"),
                "no program makes such an image",
                "if it is a raw disk whose guest wrote this, say that its format is raw",
            ));
        }
        self.layers.push(layer);
        Ok(Some(header))
    }

    /// Opens a base image and checks that it is qcow2.
    fn base(&mut self, path: &Path, base: &Path) -> Option<(File, u64)> {
        let (name, upper) = (shown(base), shown(path));
        let opened = (self.question.open)(base).and_then(|file| {
            let (length, content) = (length(&file)?, content::detect(&file)?);
            Ok((file, length, content))
        });
        match opened {
            Ok((file, length, Content::Qcow2)) => Some((file, length)),
            Ok(_) => {
                self.refuse(
                    format!("{name}, the base of {upper}, is not a qcow2 image"),
                    "vmd takes qcow2 bases only, whatever format is said",
                );
                None
            }
            Err(error) => {
                self.findings.push(Finding::error(
                    format!("the base of {upper} cannot be opened: {name}: {error}"),
                    "vmd does not start the VM",
                    format!(
                        "put the base there, or name the place where it is: qemu-img rebase -u -F qcow2 -b BASE {}",
                        word(path)
                    ),
                ));
                None
            }
        }
    }

    /// Judges the disk's first sectors.
    fn boot(&mut self) -> io::Result<()> {
        let mut sectors = [0; 1024];
        for (number, sector) in sectors.chunks_exact_mut(512).enumerate() {
            let Some(data) = layer::sector(&self.layers, number as u64)? else { return Ok(()) };
            sector.copy_from_slice(&data);
        }
        self.findings.extend(boot::judge(&shown(self.question.path), &sectors, false));
        Ok(())
    }

    /// An error that a converted copy does not have.
    fn refuse(&mut self, message: String, effect: &str) {
        let help = format!("make a copy that vmd takes: {}", convert(self.question.path, "qcow2"));
        self.findings.push(Finding::error(message, effect, help));
    }
}

/// The size of clusters, as people write it.
fn size(cluster_bits: u32) -> String {
    match cluster_bits {
        0..=9 => format!("{} bytes", 1_u64 << cluster_bits),
        10..=19 => format!("{} KiB", 1_u64 << (cluster_bits - 10)),
        _ => format!("{} MiB", 1_u64 << (cluster_bits - 20)),
    }
}
