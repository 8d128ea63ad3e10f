//! Errors of controlling a running VM, each with its remedy.

use std::{io, path::PathBuf};

use miette::Diagnostic;
use thiserror::Error;

/// Why a VM could not be reached, or did not carry out a command.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// The name is not a valid VM name.
    #[error("`{name}` is not a valid VM name")]
    #[diagnostic(help(
        "as in vmctl(8), a name starts with a letter and consists of letters, digits, `.`, `-` and `_`; the maximum \
         length is {}",
        crate::runtime_dir::MAX_NAME
    ))]
    Name {
        /// The name.
        name: String,
    },
    /// A VM of that name is running.
    #[error("a VM named {name} is already running")]
    #[diagnostic(help("choose another name with --name, or stop the running VM: vmmlinux ctl {name} stop"))]
    Taken {
        /// The name.
        name: String,
    },
    /// No VM of that name is running.
    #[error("no VM named {name} is running")]
    #[diagnostic(help("{running}"))]
    NotRunning {
        /// The name.
        name: String,
        /// Which VMs are running, as text.
        running: String,
    },
    /// The VM of that name is starting or ending, and has no control socket.
    #[error("the VM {name} does not listen on its control socket: it is starting or ending")]
    #[diagnostic(help("try again in a moment"))]
    NotListening {
        /// The name.
        name: String,
    },
    /// The directory of the control sockets is accessible to other users.
    #[error("{} {problem}", path.display())]
    #[diagnostic(help(
        "any user who can write to this directory can control your VMs: remove it, or set XDG_RUNTIME_DIR to a \
         directory that only you can enter"
    ))]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Its problem, as it follows the path.
        problem: &'static str,
    },
    /// A socket or file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The operation, as it follows "cannot".
        what: &'static str,
        /// The socket, file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The VM refused the command.
    #[error("{name}: {reason}")]
    Refused {
        /// The VM's name.
        name: String,
        /// Its reason.
        reason: String,
    },
    /// The other side does not follow this protocol.
    #[error("unexpected answer on the control socket of {name}: {problem}")]
    #[diagnostic(help("the VM may have been started by another version of vmmlinux; this is version {}", env!("CARGO_PKG_VERSION")))]
    Protocol {
        /// The VM's name.
        name: String,
        /// What is wrong with its answer.
        problem: String,
    },
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { what, path: path.into(), source: source.into() }
    }
}
