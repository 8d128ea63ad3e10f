//! Packages: a release with the program, its manual pages and completions, the guests' daemon, kernels, images, bills of
//! materials (CycloneDX) and checksums; the daemon's packages by themselves; the port for OpenBSD.
//!
//! All are reproducible: [`assemble`], [`package_daemon`] and [`openbsd_port()`] make the same bytes from the same inputs.

mod daemon;
mod error;
mod files;
mod inputs;
mod lock;
mod openbsd_port;
mod program;
mod sbom;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use kernel_builder::Manifest;
use support::hash::hash_file;

pub use daemon::{DaemonPackages, package_daemon};
pub use error::{Error, Result};
pub use inputs::Inputs;
pub use openbsd_port::openbsd_port;

use files::{Output, copy, names, write};

/// The file with the checksums.
pub const SUMS: &str = "SHA256SUMS";

/// Makes a release in the directory `to`, replacing an older one, and returns the names of its files.
pub fn assemble(inputs: &Inputs<'_>, to: &Path, step: &dyn Fn(&str)) -> Result<Vec<String>> {
    let output = Output::new(to, "a release", SUMS)?;
    let made = output.dir();

    step("vmmlinux");
    let version = program::pack(inputs, output.scratch(), made)?;
    step("vmmcid");
    daemon::package_daemon(inputs.daemon, inputs.epoch, made)?;
    step("bills of materials");
    for package in ["vmmlinux", "vmmcid"] {
        let bom = sbom::of_package(inputs.checkout, package)?;
        write(&made.join(format!("{package}-{version}.cdx.json")), &bom)?;
    }
    let mut kernels: BTreeMap<String, Manifest> = BTreeMap::new();
    for kernel in inputs.kernels {
        step(&format!("kernel {}", kernel.display()));
        let manifest = take_kernel(kernel, made)?;
        match kernels.get_mut(&manifest.release) {
            // The same kernel in another format: a build makes one format.
            Some(known) => known.files.extend(manifest.files),
            None => _ = kernels.insert(manifest.release.clone(), manifest),
        }
    }
    for (release, manifest) in &kernels {
        write(&made.join(format!("linux-{release}.cdx.json")), &sbom::of_kernel(manifest)?)?;
    }

    step("checksums");
    let names = names(made)?;
    let mut sums = String::new();
    for name in &names {
        let _ = writeln!(sums, "{}  {name}", hash_file(&made.join(name))?);
    }
    write(&made.join(SUMS), sums.as_bytes())?;
    output.publish()?;
    Ok(names.into_iter().chain([SUMS.to_owned()]).collect())
}

/// Copies a kernel's packages, images and configuration, and returns its manifest.
fn take_kernel(dir: &Path, to: &Path) -> Result<Manifest> {
    let manifest = Manifest::load(dir)?;
    let release = &manifest.release;
    for (name, record) in &manifest.files {
        let is_package = !name.contains('/') && [".deb", ".tar.xz"].iter().any(|end| name.ends_with(end));
        let target = match name.as_str() {
            "config" => format!("linux-{release}.config"),
            name if is_package => name.to_owned(),
            _ => continue,
        };
        let path = dir.join(name);
        if hash_file(&path)? != record.sha256 {
            return Err(Error::Changed { path });
        }
        copy(&path, &to.join(target))?;
    }
    for name in names(dir)? {
        if let Some(stem) = name.strip_suffix(".qcow2") {
            copy(&dir.join(&name), &to.join(format!("{stem}-{release}.qcow2")))?;
        }
    }
    Ok(manifest)
}
