//! Packages of one suite, unpacked in the cache and never installed: kernels to compare with and programs for guests.
//!
//! ```text
//! <cache>/debian/<suite>/<package>_<version>/   the package's files; for a kernel, those of all its packages
//! ```
//!
//! A package in the cache is used without asking the archive; remove its directory to fetch it again.

use std::{
    fs,
    path::{Path, PathBuf},
};

use support::{
    cache::{Cache, Lock},
    file::{self, temp_dir},
    progress::Progress,
    run,
};

use crate::{
    apt::{Apt, Offer},
    error::{Error, Result},
    kernel::DebianKernel,
};

/// Packages of one suite of Debian's archive.
pub struct Debian<'a> {
    cache: &'a Cache,
    suite: String,
    progress: &'a dyn Progress,
}

impl<'a> Debian<'a> {
    /// Packages of `suite`, such as `bookworm` or `trixie-backports`; the mirror is the one in the system's apt
    /// configuration.
    pub fn new(cache: &'a Cache, suite: impl Into<String>, progress: &'a dyn Progress) -> Self {
        Self { cache, suite: suite.into(), progress }
    }

    /// The files of a package in a directory of the cache.
    pub fn package(&self, name: &str) -> Result<PathBuf> {
        self.cached_or(name, |apt| Ok((self.newest(apt, name)?, Vec::new())))
    }

    /// The kernel that a meta package such as `linux-image-amd64` or `linux-image-cloud-amd64` depends on.
    pub fn kernel(&self, meta_package: &str) -> Result<DebianKernel> {
        let dir = self.cached_or(meta_package, |apt| {
            let meta = self.newest(apt, meta_package)?;
            // An image package of 7.x depends on packages with its parts.
            let (mut parts, mut next) = (Vec::new(), meta.depends.clone());
            while let Some(name) = next.pop() {
                if is_part_of_kernel(&name) && !parts.iter().any(|part: &Offer| part.package == name) {
                    let part = self.newest(apt, &name)?;
                    next.extend(part.depends.iter().cloned());
                    parts.push(part);
                }
            }
            Ok((meta, parts))
        })?;
        DebianKernel::in_dir(&dir).ok_or_else(|| Error::NotAKernel { package: meta_package.to_owned(), dir })
    }

    fn cached_or(
        &self,
        name: &str,
        find: impl FnOnce(&Apt) -> Result<(Offer, Vec<Offer>)>,
    ) -> Result<PathBuf> {
        let parent = self.cache.dir(&format!("debian/{}", self.suite))?;
        let _fetching =
            self.cache.lock(&format!("debian-{}-{name}", self.suite), Lock::Exclusive, self.progress)?;
        if let Some(dir) = newest_dir(&parent, &format!("{name}_"))? {
            return Ok(dir);
        }
        let apt = Apt::new(self.cache, std::slice::from_ref(&self.suite), self.progress)?
            .ok_or_else(|| self.unavailable(name, "the system's apt has no mirror of Debian"))?;
        self.progress.phase(&format!("looking for {name} in {}", self.suite));
        apt.update()?;
        let (offer, parts) = find(&apt)?;
        let temp = temp_dir(&parent, &format!(".unpacking-{name}-"))?;
        for part in parts.iter().chain([&offer]) {
            let deb = apt.download(self.cache, part, &part.package, self.progress)?;
            run::stdout(run::command("dpkg-deb").arg("--extract").arg(&deb).arg(temp.path()))?;
        }
        let dir = parent.join(format!("{name}_{}", offer.version));
        // It is locked until it has its final name: another run would remove it.
        fs::rename(temp.path(), &dir).map_err(|e| file::Error::new("create", &dir, e))?;
        Ok(dir)
    }

    fn newest(&self, apt: &Apt, name: &str) -> Result<Offer> {
        apt.offers(name)?.pop().ok_or_else(|| self.unavailable(name, "the suite has no such package"))
    }

    fn unavailable(&self, package: &str, problem: &str) -> Error {
        Error::NoPackage {
            package: package.to_owned(),
            suite: self.suite.clone(),
            problem: problem.to_owned(),
        }
    }
}

/// The parts of a kernel; `linux-base` by itself is a package of scripts.
fn is_part_of_kernel(package: &str) -> bool {
    ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"]
        .iter()
        .any(|part| package.starts_with(part))
}

/// The directory that begins with `prefix` and was made last.
fn newest_dir(parent: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(parent).map_err(|e| file::Error::new("read", parent, e))?;
    Ok(entries
        .filter_map(std::result::Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .max_by_key(|entry| entry.metadata().and_then(|metadata| metadata.modified()).ok())
        .map(|entry| entry.path()))
}

#[cfg(test)]
mod tests {
    use support::progress::Quiet;

    use super::*;

    #[test]
    fn what_the_cache_has_is_taken_without_asking() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let kept = dir.path().join("debian/nowhere/busybox-static_1.0");
        fs::create_dir_all(&kept).unwrap();
        fs::create_dir_all(dir.path().join("debian/nowhere/busybox_2.0")).unwrap();
        assert_eq!(Debian::new(&cache, "nowhere", &Quiet).package("busybox-static").unwrap(), kept);
    }

    #[test]
    fn a_kernels_files_are_found_in_both_layouts() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        for (suite, vmlinuz, config) in [
            ("old", "boot/vmlinuz-6.1.0-cloud", "boot/config-6.1.0-cloud"),
            ("new", "usr/lib/modules/7.3.4/vmlinuz", "usr/lib/modules/7.3.4/config"),
        ] {
            let root = dir.path().join("debian").join(suite).join("linux-image-cloud-amd64_1");
            let modules =
                root.join(if suite == "old" { "lib/modules/6.1.0-cloud" } else { "usr/lib/modules/7.3.4" });
            fs::create_dir_all(modules.join("kernel")).unwrap();
            fs::create_dir_all(root.join("boot")).unwrap();
            for file in [vmlinuz, config] {
                fs::write(root.join(file), "").unwrap();
            }
            let kernel = Debian::new(&cache, suite, &Quiet).kernel("linux-image-cloud-amd64").unwrap();
            assert_eq!((kernel.vmlinuz, kernel.config), (root.join(vmlinuz), root.join(config)));
            assert_eq!(kernel.modules, modules);
            assert_eq!(kernel.release, modules.file_name().unwrap().to_string_lossy());
        }
    }

    #[test]
    fn the_kernels_parts_are_told_from_its_neighbours() {
        let parts = [
            "linux-image-7.3.4+deb13-amd64",
            "linux-binary-7.3.4",
            "linux-modules-7.3.4",
            "linux-base-7.3.4",
        ];
        assert!(parts.iter().all(|package| is_part_of_kernel(package)));
        assert!(["linux-base", "kmod", "initramfs-tools"].iter().all(|package| !is_part_of_kernel(package)));
    }
}
