//! Options of a kernel builder.

use std::{ffi::OsString, path::PathBuf};

use crate::fetch::lock::Origin;

/// Options of a kernel builder.
#[derive(Debug, Clone)]
pub struct Options {
    /// The repository's `kernel/` directory: `series.toml`, `patches/`, `drivers/`, `keys/`. See [`crate::find_kernel_dir`].
    pub kernel_dir: PathBuf,
    /// Use only sources in the cache.
    pub offline: bool,
    /// Take the newest release instead of the one that was built last.
    pub update: bool,
    /// The only origin of sources; by default Debian if the system's apt has a mirror of it, else kernel.org.
    pub origin: Option<Origin>,
    /// Where to find programs, in the form of PATH; by default the environment's PATH.
    pub path: Option<OsString>,
}

impl Options {
    /// The default options with a kernel directory.
    pub fn new(kernel_dir: impl Into<PathBuf>) -> Self {
        Self { kernel_dir: kernel_dir.into(), offline: false, update: false, origin: None, path: None }
    }
}
