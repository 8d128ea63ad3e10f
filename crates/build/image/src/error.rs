//! What can go wrong while an image is made, and what the user can do about it.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use miette::Diagnostic;
use thiserror::Error;

use crate::size::Size;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed image. Nothing is left at the output path in any of these cases.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot be used.
    #[error("`{value}` is not a usable {what}: {why}")]
    Setting {
        /// The kind of setting.
        what: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },

    /// Something that only a Debian can hold.
    #[error("this root file system cannot hold {what}")]
    #[diagnostic(help("choose another with --rootfs debian:SUITE, such as debian:trixie"))]
    NeedsDebian {
        /// What it cannot hold.
        what: &'static str,
    },

    /// An archive that is no guest's root file system, or none that boots by itself.
    #[error("{} is not a root file system that can be used: {why}", path.display())]
    #[diagnostic(help("{help}"))]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do.
        help: &'static str,
    },

    /// A disk image that cannot be adopted.
    #[error("{} cannot be adopted: {why}", path.display())]
    #[diagnostic(help("{help}"))]
    Disk {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do.
        help: String,
    },

    /// A signal asked the process to stop.
    #[error("interrupted: nothing was written")]
    Interrupted,

    /// The output path is taken.
    #[error("{} exists already", path.display())]
    #[diagnostic(help("choose another path with --output, or replace the file with --force"))]
    OutputExists {
        /// The path.
        path: PathBuf,
    },

    /// A directory that no build has left.
    #[error("{} is not the directory of a build: there is no bzImage in it", path.display())]
    #[diagnostic(help(
        "run `vmmlinux build`, which makes out/7.3, and name that; a kernel from elsewhere is given with --kernel"
    ))]
    NotABuild {
        /// The directory.
        path: PathBuf,
    },

    /// A file or directory cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: "read", "write", …
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },

    /// The file system that takes the output is full.
    #[error("no space left for {}", path.display())]
    #[diagnostic(help(
        "the image is sparse but its contents need room: free some, or choose another file system with --output"
    ))]
    NoSpace {
        /// The file that could not be written.
        path: PathBuf,
    },

    /// Programs that are needed are not installed.
    #[error("not installed: {}", tools.iter().map(|(tool, _)| *tool).collect::<Vec<_>>().join(", "))]
    #[diagnostic(help("{}", remedy(tools)))]
    MissingTools {
        /// Each program with the Debian package that has it.
        tools: Vec<(&'static str, &'static str)>,
    },

    /// A data file of a package is not installed.
    #[error("{file} was not found in {}", searched.join(", "))]
    #[diagnostic(help("apt-get install {package}"))]
    MissingFile {
        /// The file's name.
        file: &'static str,
        /// Where it was looked for.
        searched: Vec<&'static str>,
        /// The Debian package that has it.
        package: &'static str,
    },

    /// A program that was needed failed.
    #[error("{tool} failed while {doing} ({status})")]
    #[diagnostic(help("it said:\n{said}"))]
    ToolFailed {
        /// The program.
        tool: &'static str,
        /// For which step.
        doing: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        said: String,
    },

    /// The kernel is not one that the boot loader can load.
    #[error("{} is not a bootable x86 kernel: {why}", path.display())]
    #[diagnostic(help(
        "give the bzImage of a build (out/<name>/bzImage) or a distribution's /boot/vmlinuz-<release>"
    ))]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        why: String,
    },

    /// There is no module tree where one was announced.
    #[error("{} has no modules of kernel {release}", path.display())]
    #[diagnostic(
        help("give the directory that holds lib/modules/{release}; it holds: {}", if found.is_empty() { "none".to_owned() } else { found.join(", ") })
    )]
    NoModules {
        /// The directory that was searched.
        path: PathBuf,
        /// The kernel's release.
        release: String,
        /// The releases that are there.
        found: Vec<String>,
    },

    /// The module tree has no index, so the guest could not load anything from it.
    #[error("{} has no modules.dep", path.display())]
    #[diagnostic(help("run depmod -b <the directory above lib/modules> {release}"))]
    NoModulesDep {
        /// The module directory.
        path: PathBuf,
        /// The kernel's release.
        release: String,
    },

    /// The contents do not fit.
    #[error("a disk of {size} is too small: the contents need at least {needed}")]
    #[diagnostic(help("use --size {needed} or more"))]
    TooSmall {
        /// What was asked for.
        size: Size,
        /// What would do.
        needed: Size,
    },

    /// The root file system chosen cannot do what was asked.
    #[error("the minimal root file system has no SSH server, so an SSH key is of no use to it")]
    #[diagnostic(help("use --rootfs debian:<suite>, or leave --ssh-key out and log in on the console"))]
    NoSshServer,

    /// No static busybox could be found.
    #[error("{} is not a statically linked x86-64 program", path.display())]
    #[diagnostic(help("give a static busybox with --busybox (Debian's is in the package busybox-static)"))]
    NotStatic {
        /// The program.
        path: PathBuf,
    },

    /// The system's apt knows no Debian archive.
    #[error("no Debian mirror in the system's apt configuration")]
    #[diagnostic(help("name one with --mirror"))]
    NoMirror,
}

fn remedy(tools: &[(&str, &str)]) -> String {
    let mut packages: Vec<_> = tools.iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    format!("on Debian: apt-get install {}", packages.join(" "))
}

impl From<support::file::Error> for Error {
    fn from(error: support::file::Error) -> Self {
        Self::io(error.what, &error.path)(error.source)
    }
}

impl Error {
    /// For `map_err`: an I/O error on `path`; a full file system is told apart.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.to_owned() }
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// A setting that cannot be used. Control characters of its value are escaped.
    pub(crate) fn setting(what: &'static str, value: &str, why: impl Into<String>) -> Self {
        let value = value.chars().flat_map(|c| {
            let escaped: Box<dyn Iterator<Item = char>> =
                if c.is_control() { Box::new(c.escape_default()) } else { Box::new(std::iter::once(c)) };
            escaped
        });
        Self::Setting { what, value: value.collect(), why: why.into() }
    }
}
