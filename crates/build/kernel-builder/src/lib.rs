//! From source to kernel: fetches a series' source, verifies and unpacks it, applies our patches and drivers, checks the
//! toolchain, builds, and lays out what was built.
//!
//! [`Forge::prepare`] yields a tree to configure or read, [`Forge::build`] a kernel.

mod apt;
mod build;
mod cache;
mod daemon;
mod debian;
mod error;
mod fetch;
mod kernel_org;
mod lock;
mod make;
mod modules;
mod output;
mod overlay;
pub mod pack;
mod patch;
mod prelude;
mod profile;
mod progress;
mod run;
mod series;
mod setup;
mod signature;
mod toolchain;
mod tools;
mod tree;
mod unpack;
mod user_tree;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use crate::{
    build::{BoxedDiagnostic, Built, Configuration, Package, Request},
    cache::{Cache, hash_file, write_atomically},
    daemon::{DaemonPackages, package_daemon},
    debian::{Debian, DebianKernel},
    error::{Error, Result},
    lock::Locked,
    output::{FileRecord, Manifest},
    profile::Step,
    progress::{Progress, Quiet},
    series::{Key, Series, SeriesFile, find_kernel_dir},
    setup::Plan,
    signature::Keyring,
    toolchain::{Miss, Toolchain},
    tools::{Purpose, TOOLS, Tool},
    tree::{Piece, PreparedTree, Source},
};
use crate::{lock::LockFile, tree::Additions};

/// Where a released source comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A Debian `linux-source` package, by apt.
    #[serde(rename = "debian")]
    Debian,
    /// A signed tarball of kernel.org.
    #[serde(rename = "kernel.org")]
    KernelOrg,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::KernelOrg => "kernel.org",
        })
    }
}

/// How a [`Forge`] works.
#[derive(Debug, Clone)]
pub struct Options {
    /// The repository's `kernel/` directory: `series.toml`, `patches/`, `drivers/`, `keys/`. See [`find_kernel_dir`].
    pub kernel_dir: PathBuf,
    /// Use only what the cache holds.
    pub offline: bool,
    /// Look for a newer release than the one that was built last.
    pub update: bool,
    /// Take sources from here only; by default from Debian where the system's apt knows it, else from kernel.org.
    pub origin: Option<Origin>,
    /// Where to find programs, in the form of PATH; by default the environment's.
    pub path: Option<OsString>,
}

impl Options {
    /// The usual way of working, with a kernel directory.
    pub fn new(kernel_dir: impl Into<PathBuf>) -> Self {
        Self { kernel_dir: kernel_dir.into(), offline: false, update: false, origin: None, path: None }
    }
}

/// Makes kernels out of sources.
pub struct Forge {
    pub(crate) options: Options,
    pub(crate) series: SeriesFile,
    pub(crate) cache: Cache,
    pub(crate) progress: Box<dyn Progress>,
}

impl Forge {
    /// A forge for a kernel directory, working in a cache and reporting to a listener.
    pub fn new(options: Options, cache: Cache, progress: Box<dyn Progress>) -> Result<Self> {
        let series = SeriesFile::load(&options.kernel_dir)?;
        Ok(Self { options, series, cache, progress })
    }

    /// A forge without a kernel directory: it knows no series, but looks for tools and installs them.
    pub fn for_tools(cache: Cache, progress: Box<dyn Progress>) -> Self {
        Self { options: Options::new(PathBuf::new()), series: SeriesFile::default(), cache, progress }
    }

    /// The tracked series.
    pub fn series(&self) -> &SeriesFile {
        &self.series
    }

    /// The patched tree of a series' locked or newest release: fetched, verified, unpacked and patched as needed.
    pub fn prepare(&self, series: &str) -> Result<PreparedTree> {
        self.prepare_with(series, true)
    }

    /// The tree of a series with our patches and drivers, or as it was released.
    pub(crate) fn prepare_with(&self, series: &str, patched: bool) -> Result<PreparedTree> {
        self.series.get(series)?;
        let locked = fetch::fetch(self, series)?;
        let archive = fetch::archive(self, &locked);
        let pristine = {
            let name = format!("pristine-{}", locked.sha256);
            let _unpacking = self.cache.lock(&name, cache::Lock::Exclusive, &*self.progress)?;
            unpack::pristine(&self.cache, &archive, &locked.sha256, &*self.progress)?
        };
        let source = Source {
            origin: locked.origin.to_string(),
            version: locked.version.clone(),
            sha256: locked.sha256.clone(),
        };
        let mut slot = format!("{series}-{}", &locked.sha256[..16]);
        let additions = if patched {
            Additions::of_series(&self.options.kernel_dir, series)?
        } else {
            // Beside the patched one, which others may be building from.
            slot.push_str("-released");
            Additions::default()
        };
        let tree = tree::prepare(self, series, source, &slot, &pristine, additions, false)?;
        self.lock_file()?.set(series, &locked)?;
        self.cache_records()?.set(series, &locked)?;
        Ok(tree)
    }

    /// `kernel/series.lock`.
    pub(crate) fn lock_file(&self) -> Result<LockFile> {
        LockFile::load(&self.options.kernel_dir.join("series.lock"))
    }

    /// What was fetched last on this machine, whatever checkout asked for it.
    pub(crate) fn cache_records(&self) -> Result<LockFile> {
        self.cache.dir("downloads")?;
        LockFile::load(&self.cache.root().join("downloads/series.lock"))
    }

    /// The kernel directory.
    pub fn kernel_dir(&self) -> &Path {
        &self.options.kernel_dir
    }
}
