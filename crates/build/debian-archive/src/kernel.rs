//! A kernel's files in a directory of unpacked packages.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// A kernel of Debian's packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianKernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// The directory with its modules and `modules.dep`'s ingredients (`lib/modules/<release>`).
    pub modules: PathBuf,
}

impl DebianKernel {
    /// The kernel whose packages were unpacked in a directory; `None` if its image, configuration or modules are missing.
    pub(crate) fn in_dir(dir: &Path) -> Option<Self> {
        let (mut vmlinuz, mut config, mut modules) = (None, None, None);
        for entry in WalkDir::new(dir).max_depth(6).into_iter().filter_map(std::result::Result::ok) {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy());
            if name.starts_with("vmlinuz") {
                vmlinuz = Some(path.to_owned());
            } else if name.starts_with("config") && entry.file_type().is_file() {
                config = Some(path.to_owned());
            } else if path.parent().is_some_and(|parent| parent.ends_with("lib/modules")) {
                modules = Some((name.into_owned(), path.to_owned()));
            }
        }
        let (release, modules) = modules?;
        Some(Self { release, vmlinuz: vmlinuz?, config: config?, modules })
    }
}
