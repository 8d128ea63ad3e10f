//! Errors of starting and running the helper VM, each with its remedy.

use std::{io, path::PathBuf};

use miette::Diagnostic;
use thiserror::Error;

/// Why the helper VM could not be started, or ended before its job.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// The operation, as it follows "cannot".
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// QEMU cannot be run, and may not be installed.
    #[error("cannot run {program}")]
    #[diagnostic(help(
        "on Debian: `apt-get install qemu-system-x86` (version 10 or newer; on Debian 12 from bookworm-backports); set \
         VMMLINUX_QEMU to use another program"
    ))]
    NoQemu {
        /// The program.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// QEMU is too old to run a VM on its emulated processor.
    #[error("{program} is version {found}; the helper VM needs {needed} or newer")]
    #[diagnostic(help(
        "older versions corrupt RFLAGS of a nested guest. On Debian 12 (bookworm) install it from \
         bookworm-backports: `apt-get install -t bookworm-backports qemu-system-x86`"
    ))]
    OldQemu {
        /// The program that was run.
        program: PathBuf,
        /// Its version.
        found: String,
        /// The oldest version that works.
        needed: &'static str,
    },
    /// The output of `qemu --version` has an unknown form.
    #[error("cannot tell the version of {program} from `{output}`")]
    #[diagnostic(help("set VMMLINUX_QEMU to the path of QEMU"))]
    UnknownQemu {
        /// The program that was run.
        program: PathBuf,
        /// The first line of its output.
        output: String,
    },
    /// The running program needs a dynamic linker, which the helper VM does not have.
    #[error("{path} is linked dynamically and cannot run in the helper VM")]
    #[diagnostic(help(
        "build it statically, as the repository's .cargo/config.toml does: \
         RUSTFLAGS='-C target-feature=+crt-static' cargo build --target x86_64-unknown-linux-gnu (RUSTFLAGS in \
         the environment replaces the flags of .cargo/config.toml)"
    ))]
    Dynamic {
        /// The program.
        path: PathBuf,
    },
    /// The running program is not a valid x86-64 ELF file.
    #[error("{path} is not a usable ELF file: {problem}")]
    #[diagnostic(help("the helper VM runs x86-64 ELF files only"))]
    NotElf {
        /// The file.
        path: PathBuf,
        /// Its defect.
        problem: String,
    },
    /// The cache cannot be found.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Cache(#[from] support::file::Error),
    /// The helper VM's kernel, which is Debian's, cannot be fetched.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Kernel(#[from] Box<debian_archive::Error>),
    /// A file is too large for the helper VM's initramfs.
    #[error("{path} is too large for the helper VM's initramfs: {size} bytes")]
    #[diagnostic(help("the limit is 2 GiB for kernels, initrds and firmware; pass larger files as disks"))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The helper VM ended before its job.
    #[error("the helper VM ended before its job ({status})\n{log}")]
    #[diagnostic(help("the lines above are the last output of QEMU, the helper VM's kernel and its init"))]
    Died {
        /// QEMU's exit status.
        status: String,
        /// The end of the helper VM's log.
        log: String,
    },
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl From<debian_archive::Error> for Error {
    fn from(error: debian_archive::Error) -> Self {
        Self::Kernel(Box::new(error))
    }
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { what, path: path.into(), source: source.into() }
    }
}
