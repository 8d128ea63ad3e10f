//! What can go wrong.

use std::{
    io,
    path::{Path, PathBuf},
};

use miette::Diagnostic;
use thiserror::Error;

/// A result with this crate's [`Error`](enum@Error).
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no release.
#[derive(Debug, Error, Diagnostic)]
pub enum Error {
    /// Reading or writing failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The output directory holds something else.
    #[error("{} is there and is no release", path.display())]
    #[diagnostic(help("name another directory with --out, or remove it"))]
    NotARelease {
        /// The directory.
        path: PathBuf,
    },
    /// A file is not what its build made.
    #[error("{} is not what was built: its hash differs from the manifest's", path.display())]
    #[diagnostic(help("build it again with `vmmlinux build`"))]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Two inputs have a file of the same name.
    #[error("the release has a file like {} already", path.display())]
    #[diagnostic(help("kernels of one release: give each build a --name and release, or pack one of them"))]
    Twice {
        /// The second file.
        path: PathBuf,
    },
    /// The program to pack is another version than the one that packs.
    #[error("{} is version {found}, this program is {own}", path.display())]
    #[diagnostic(help("build both from one checkout: `make release` does"))]
    OtherVersion {
        /// The program to pack.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What this program is.
        own: String,
    },
    /// The program to pack does not run.
    #[error("cannot run {}", path.display())]
    #[diagnostic(help("build it: `make release` does"))]
    Program {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// cargo could not tell the dependencies.
    #[error("cannot list the dependencies")]
    #[diagnostic(help("run it in a checkout, with cargo installed"))]
    Cargo(#[from] cargo_metadata::Error),
    /// A lock file or a bill of materials is not as it should be.
    #[error("{what}: {problem}")]
    Malformed {
        /// Of what.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// Packing failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Pack(#[from] kernel_builder::Error),
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
