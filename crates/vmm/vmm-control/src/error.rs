//! What can go wrong on the way to a running machine.

use std::{io, path::PathBuf};

use miette::Diagnostic;
use thiserror::Error;

/// Why a machine could not be reached, or would not obey.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A name that no machine can have.
    #[error("`{name}` cannot be the name of a machine")]
    #[diagnostic(help(
        "as in vmctl(8), a name starts with a letter and has letters, digits, `.`, `-` and `_` only; here it has at \
         most {} of them",
        crate::place::LONGEST_NAME
    ))]
    Name {
        /// The name.
        name: String,
    },
    /// A machine with the name is running.
    #[error("a machine named {name} is running already")]
    #[diagnostic(help("give this one another name (--name), or stop that one: vmmlinux ctl {name} stop"))]
    Taken {
        /// The name.
        name: String,
    },
    /// No machine of that name is running.
    #[error("no machine named {name} is running")]
    #[diagnostic(help("{running}"))]
    NotRunning {
        /// The name.
        name: String,
        /// What is running.
        running: String,
    },
    /// A machine of that name does not listen yet, or no longer.
    #[error("the machine {name} does not listen: it is being started, or ends")]
    #[diagnostic(help("try again in a moment"))]
    Deaf {
        /// The name.
        name: String,
    },
    /// The directory of the control sockets is not safe.
    #[error("{} {problem}", path.display())]
    #[diagnostic(help(
        "whoever can write to this directory controls the machines: remove it, or set XDG_RUNTIME_DIR to a directory \
         that only you can enter"
    ))]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A socket or file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The operation, as it follows "cannot".
        what: &'static str,
        /// The socket, file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The machine said no.
    #[error("{name}: {reason}")]
    Refused {
        /// The machine's name.
        name: String,
        /// Its reason.
        reason: String,
    },
    /// The other side does not speak this protocol.
    #[error("{name} does not answer as a machine does: {problem}")]
    #[diagnostic(help("was it started by another version of vmmlinux? this one is {}", env!("CARGO_PKG_VERSION")))]
    Protocol {
        /// The machine's name.
        name: String,
        /// What it said instead.
        problem: String,
    },
}

/// What every function here returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Io { what, path: path.into(), source: source.into() }
    }
}
