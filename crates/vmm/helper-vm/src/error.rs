//! What can go wrong between a host without KVM and a helper VM that has it.

use std::{io, path::PathBuf};

use miette::Diagnostic;
use thiserror::Error;

/// Why the helper VM could not be started or did not live to its end.
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
        /// What the system said.
        source: io::Error,
    },
    /// QEMU cannot be run, and may not be there.
    #[error("cannot run {program}")]
    #[diagnostic(help(
        "on Debian: `apt-get install qemu-system-x86` (version 10 or newer; on Debian 12 from bookworm-backports). VMMLINUX_QEMU \
         names another program"
    ))]
    NoQemu {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU is too old to run a VM inside its emulated CPU.
    #[error("{program} is version {found}; the nested machine needs {needed} or newer")]
    #[diagnostic(help(
        "older versions corrupt the flags register of a nested guest. On Debian 12 (bookworm) install it from \
         bookworm-backports: `apt-get install -t bookworm-backports qemu-system-x86`"
    ))]
    OldQemu {
        /// The program that was asked.
        program: PathBuf,
        /// Its version.
        found: String,
        /// The oldest version that works.
        needed: &'static str,
    },
    /// What `qemu --version` printed is not understood.
    #[error("cannot tell the version of {program} from `{output}`")]
    #[diagnostic(help("is it QEMU? VMMLINUX_QEMU names the program that is run"))]
    UnknownQemu {
        /// The program that was asked.
        program: PathBuf,
        /// The first line of its answer.
        output: String,
    },
    /// The running program needs an interpreter that the helper VM does not have.
    #[error("{path} is linked dynamically: it cannot run inside the helper VM")]
    #[diagnostic(help(
        "build it statically, as the repository's .cargo/config.toml does: \
         RUSTFLAGS='-C target-feature=+crt-static' cargo build --target x86_64-unknown-linux-gnu (mind that \
         RUSTFLAGS in the environment replaces the flags of .cargo/config.toml)"
    ))]
    Dynamic {
        /// The program.
        path: PathBuf,
    },
    /// A file that should be an ELF of this machine is something else.
    #[error("{path} is not a usable ELF file: {problem}")]
    #[diagnostic(help("the helper VM is x86-64 and runs 64-bit little-endian ELF files only"))]
    NotElf {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
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
    /// A file is too large for the job's archive.
    #[error("{path} is too large for the helper VM's initramfs: {size} bytes")]
    #[diagnostic(help("kernels, initrds and firmware may have up to 2 GiB; give larger things as disks"))]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// The helper VM went away before its job was done.
    #[error("the helper VM ended before its job did ({status})\n{log}")]
    #[diagnostic(help(
        "the lines above are the end of what QEMU, the helper VM's kernel and its init printed"
    ))]
    Died {
        /// How QEMU ended.
        status: String,
        /// The end of the helper VM's log.
        log: String,
    },
}

/// What every function here returns.
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
