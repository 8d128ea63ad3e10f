//! The kernels that are compared: ours, others by name, and Debian's as what to beat.

use std::{
    fs,
    path::{Path, PathBuf},
};

use debian_archive::{Debian, DebianKernel};
use support::{cache::Cache, progress::Progress};

use crate::{Error, Result};

/// A kernel under test.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What it is called in reports.
    pub name: String,
    /// The bzImage.
    pub image: PathBuf,
    /// What it needs on its command line to live at all on vmd.
    pub append: String,
    /// Where its modules are, if its virtio drivers are modules.
    pub debian: Option<DebianKernel>,
}

/// Debian's stock cloud kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// Debian 12's.
    V6_1,
    /// Debian 13's.
    V6_12,
    /// Debian 13's backport of 7.3.
    V7_3,
}

impl Baseline {
    /// All, oldest first.
    pub const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::V7_3];

    /// The version, as `6.12`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_3 => "7.3",
        }
    }

    /// Debian's suite that has it.
    pub const fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::V7_3 => "trixie-backports",
        }
    }

    /// What it needs on its command line: 7.3 dies on the real vmd without this, too, for it reads what AMD's chipset
    /// keeps at 0xfed80300.
    pub const fn crutch(self) -> &'static str {
        match self {
            Self::V6_1 | Self::V6_12 => "",
            Self::V7_3 => "initcall_blacklist=print_s5_reset_status_mmio",
        }
    }

    /// The kernel, out of the cache or Debian's archive.
    pub fn kernel(self, cache: &Cache, progress: &dyn Progress) -> Result<Kernel> {
        let debian = Debian::new(cache, self.suite(), progress).kernel("linux-image-cloud-amd64")?;
        Ok(Kernel {
            name: format!("debian-{}", self.as_str()),
            image: debian.vmlinuz.clone(),
            append: self.crutch().to_owned(),
            debian: Some(debian),
        })
    }
}

impl Kernel {
    /// A kernel with its virtio and ext4 drivers built in: a bzImage, or the directory of a build of ours.
    pub fn built_in(name: &str, path: &Path) -> Result<Self> {
        let image = if path.is_dir() { path.join("bzImage") } else { path.to_owned() };
        if !image.is_file() {
            return Err(Error::NoKernel { path: image });
        }
        Ok(Self { name: name.to_owned(), image, append: String::new(), debian: None })
    }

    /// Bytes of the bzImage.
    pub fn size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.image).map_err(Error::io("read", &self.image))?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_or_an_image_may_be_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Kernel::built_in("x", dir.path()), Err(Error::NoKernel { .. })));
        let image = dir.path().join("bzImage");
        fs::write(&image, [0; 10]).unwrap();
        for path in [dir.path(), &image] {
            assert_eq!(Kernel::built_in("x", path).unwrap().size().unwrap(), 10);
        }
    }
}
