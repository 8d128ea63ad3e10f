//! The helper VM's kernel: Debian's cloud kernel, unpacked into the user's cache, never installed.
//!
//! ```text
//! <cache>/vmmlinux/debian/…                                the kernel's packages (crate debian-archive)
//! <cache>/vmmlinux/l1/<release>/00-irqbypass.ko …          modules in loading order, not compressed
//! ```
//!
//! A directory is created under a temporary name and renamed: one with its final name is complete.

use std::{
    fs,
    path::{Path, PathBuf},
};

use debian_archive::{Debian, DebianKernel};
use support::{cache::Cache, progress::Progress};

use crate::{Error, Result};

/// Debian release of the kernel, independent of the host's: bookworm's 6.1 is compressed with LZ4 and starts init one
/// second earlier than the kernels of later releases.
const SUITE: &str = "bookworm";

/// The package that depends on the release's current cloud kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Drivers that the helper VM needs. Their dependencies are added; built-in drivers are skipped.
const MODULES: [&str; 4] = ["kvm_amd", "virtio_pci", "virtio_console", "virtio_blk"];

/// The helper VM's kernel, in the user's cache.
#[derive(Debug)]
pub struct Kernel {
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// KVM's and virtio's modules, not compressed, in the order in which they are loaded.
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    /// The helper VM's kernel, which is fetched if the cache has none; `progress` is called then.
    ///
    /// A cached kernel is used until its directory is removed: the helper VM has no network to be attacked from.
    pub fn get(progress: &(dyn Fn(&str) + Send + Sync)) -> Result<Self> {
        let cache = Cache::user()?;
        let kernel = Debian::new(&cache, SUITE, &Phases(progress)).kernel(META_PACKAGE)?;
        let modules = unpack_modules(&kernel, &cache.root().join("l1"))?;
        Ok(Self { vmlinuz: kernel.vmlinuz, modules })
    }
}

/// Passes on the phases and notes of progress reports.
struct Phases<'a>(&'a (dyn Fn(&str) + Send + Sync));

impl Progress for Phases<'_> {
    fn phase(&self, what: &str) {
        (self.0)(what);
    }

    fn step(&self, _: u64, _: u64, _: &str) {}

    fn note(&self, what: &str) {
        (self.0)(what);
    }
}

/// Decompresses the modules that the helper VM needs into `cache`, unless that is done.
fn unpack_modules(kernel: &DebianKernel, cache: &Path) -> Result<Vec<PathBuf>> {
    let to = cache.join(&kernel.release);
    if !to.is_dir() {
        fs::create_dir_all(cache).map_err(|e| Error::io("create", cache, e))?;
        let scratch = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(cache)
            .map_err(|e| Error::io("create a directory in", cache, e))?;
        for (index, (module, content)) in kernel.modules_for(&MODULES)?.iter().enumerate() {
            let path = scratch.path().join(format!("{index:02}-{module}.ko"));
            fs::write(&path, content).map_err(|e| Error::io("write", &path, e))?;
        }
        match fs::rename(scratch.path(), &to) {
            // Another process created it first, with the same contents.
            Err(_) if to.is_dir() => {}
            result => result.map_err(|e| Error::io("create", &to, e))?,
        }
    }
    list(&to)
}

/// Paths in a directory, sorted.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|e| Error::io("read", dir, e))?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_unpacked_once_and_whole() {
        let (tree, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let modules = tree.path().join("lib/modules/9.9");
        fs::create_dir_all(&modules).unwrap();
        // All but one are built in. That one is not an ELF file, so the first attempt fails and leaves no directory.
        let builtin = "kernel/kvm-amd.ko\nkernel/virtio_pci.ko\nkernel/virtio_console.ko\n";
        fs::write(modules.join("modules.builtin"), builtin).unwrap();
        fs::write(modules.join("virtio_blk.ko"), "rubbish").unwrap();
        let kernel = DebianKernel {
            release: "9.9".to_owned(),
            vmlinuz: tree.path().join("vmlinuz"),
            config: tree.path().join("config"),
            modules: modules.clone(),
        };
        unpack_modules(&kernel, cache.path()).unwrap_err();
        assert!(!cache.path().join("9.9").exists());
        fs::write(modules.join("modules.builtin"), format!("{builtin}kernel/virtio_blk.ko\n")).unwrap();
        let first = unpack_modules(&kernel, cache.path()).unwrap();
        fs::remove_dir_all(&modules).unwrap();
        assert_eq!(unpack_modules(&kernel, cache.path()).unwrap(), first);
    }
}
