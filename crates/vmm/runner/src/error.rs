//! Errors of starting and supervising a VM, each with its remedy.

use std::{io, path::PathBuf, process::ExitStatus};

use miette::Diagnostic;
use thiserror::Error;

/// Why a VM could not be started or supervised.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// The VM cannot be created from its configuration.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Vm(#[from] vmm::Error),
    /// The host's KVM cannot run guests, and nothing else was allowed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Kvm(#[from] vmm::probe::Unusable),
    /// The control socket or the VM's name cannot be used.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Control(#[from] vmm_control::Error),
    /// The helper VM cannot be started.
    #[error(transparent)]
    #[diagnostic(transparent)]
    HelperVm(#[from] helper_vm::Error),
    /// A system call on a resource of this process failed.
    #[error("cannot {what}")]
    Host {
        /// The operation, as it follows "cannot".
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A path of the configuration cannot be made absolute.
    #[error("cannot find {}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Nothing listens on the socket of `-i=socket:PATH`.
    #[error("cannot connect to the network socket {}", path.display())]
    #[diagnostic(help("start the program that serves it first, such as passt --socket PATH"))]
    NetworkSocket {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// passt(1), which `-i=user` needs, cannot be run.
    #[error("cannot run passt, which connects `-i=user` to the host's network")]
    #[diagnostic(help("install the package passt, or use -i=local or --accel nested"))]
    NoPasst {
        /// The system's error.
        source: io::Error,
    },
    /// passt(1) refused to start.
    #[error("passt failed ({status}): {message}")]
    #[diagnostic(help("use -i=local, or --accel nested, whose network needs no passt"))]
    Passt {
        /// Its exit status.
        status: ExitStatus,
        /// Its standard error.
        message: String,
    },
    /// The background process of `--detach` was killed by a signal before the VM ran.
    #[error("the VM's process ended: {status}")]
    Detached {
        /// Its exit status.
        status: ExitStatus,
    },
    /// The VM ended without statistics.
    #[error("the VM ended without statistics")]
    #[diagnostic(help("the VM failed before the guest started: its error is above"))]
    NoStatistics {
        /// The decoder's error.
        source: serde_json::Error,
    },
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Wraps an I/O error of this process with the operation that failed.
    pub(crate) fn host(what: &'static str) -> impl Fn(io::Error) -> Self + Copy {
        move |source| Self::Host { what, source }
    }
}
