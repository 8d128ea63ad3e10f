//! What can go wrong while kernels are compared.

use std::{io, path::PathBuf};

use miette::Diagnostic;
use thiserror::Error;

/// Why there is no result.
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
    /// The program that is the guests' init is not where it should be.
    #[error("there is no {path}")]
    #[diagnostic(help(
        "it is built with `cargo build -p bench` (or `make program`) and belongs beside vmmlinux"
    ))]
    NoGuest {
        /// Where it should be.
        path: PathBuf,
    },
    /// A kernel is not there.
    #[error("there is no kernel {path}")]
    #[diagnostic(help("`make kernel` builds out/7.3; --kernel NAME=PATH names another bzImage or build"))]
    NoKernel {
        /// Where it should be.
        path: PathBuf,
    },
    /// A program could not be run or failed.
    #[error("{program} failed: {said}")]
    #[diagnostic(help("{help}"))]
    Program {
        /// The program.
        program: String,
        /// What it said.
        said: String,
        /// What to do.
        help: String,
    },
    /// A guest did not get to its end.
    #[error("{guest} did not get to its end ({status}): {said}\nthe end of its console:\n{console}")]
    #[diagnostic(help("run it by hand to see more:\n  {command}"))]
    Died {
        /// Which.
        guest: String,
        /// The exit status of `vmmlinux run`.
        status: String,
        /// What that said.
        said: String,
        /// The last lines of the console.
        console: String,
        /// The command that ran it.
        command: String,
    },
    /// A guest's account is incomplete.
    #[error("{guest} did not tell {what}")]
    #[diagnostic(help("is vmmlinux-guest as old as vmmlinux? `make program` builds both"))]
    Silent {
        /// Which.
        guest: String,
        /// What is missing.
        what: String,
    },
    /// A plot could not be drawn.
    #[error("cannot draw the plot `{title}`: {problem}")]
    Plot {
        /// Its title.
        title: String,
        /// What the library said.
        problem: String,
    },
    /// The cache cannot be found.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Cache(#[from] support::file::Error),
    /// Debian's kernel cannot be fetched.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Archive(#[from] Box<debian_archive::Error>),
    /// The guest's program will not do.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Nested(#[from] Box<helper_vm::Error>),
    /// A machine does not obey.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Control(#[from] Box<vmm_control::Error>),
}

/// What every function here returns.
pub type Result<T> = std::result::Result<T, Error>;

impl From<debian_archive::Error> for Error {
    fn from(error: debian_archive::Error) -> Self {
        Self::Archive(Box::new(error))
    }
}

impl From<helper_vm::Error> for Error {
    fn from(error: helper_vm::Error) -> Self {
        Self::Nested(Box::new(error))
    }
}

impl From<vmm_control::Error> for Error {
    fn from(error: vmm_control::Error) -> Self {
        Self::Control(Box::new(error))
    }
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
