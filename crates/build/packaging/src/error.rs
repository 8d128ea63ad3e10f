//! Errors of making packages.

use std::{
    io,
    path::{Path, PathBuf},
};

use miette::Diagnostic;
use thiserror::Error;

/// A result with this crate's [`Error`](enum@Error).
pub type Result<T> = std::result::Result<T, Error>;

/// A release or package that could not be made.
#[derive(Debug, Error, Diagnostic)]
pub enum Error {
    /// Reading or writing failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, as it follows "cannot".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The output directory exists and was not made by the same command.
    #[error("refusing to replace {}: it exists and is not {what}", path.display())]
    #[diagnostic(help("name another directory with --out, or remove it"))]
    Taken {
        /// The directory.
        path: PathBuf,
        /// What is made: "a release", …
        what: &'static str,
    },
    /// A file was changed after its build.
    #[error("{} was changed after its build: its hash differs from the manifest's", path.display())]
    #[diagnostic(help("build it again with `vmmlinux build`"))]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Two inputs have a file of the same name.
    #[error("the release already has another file with the name of {}", path.display())]
    #[diagnostic(help("give each build its own release (CONFIG_LOCALVERSION), or package one of them"))]
    Twice {
        /// The second file.
        path: PathBuf,
    },
    /// The program to package has another version than this program.
    #[error("{} is version {found}, this program is {own}", path.display())]
    #[diagnostic(help("build both from one checkout: `make release` does"))]
    OtherVersion {
        /// The program to package.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The version of this program.
        own: String,
    },
    /// The program to package does not run.
    #[error("cannot run {}", path.display())]
    #[diagnostic(help("build it: `make release` does"))]
    Program {
        /// The program.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// cargo could not list the dependencies.
    #[error("cannot list the dependencies")]
    #[diagnostic(help("run this in a checkout of the repository, with cargo installed"))]
    Cargo(#[from] cargo_metadata::Error),
    /// A lock file or a bill of materials is malformed.
    #[error("{what}: {problem}")]
    Malformed {
        /// The document.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// The program given as the daemon is another one.
    #[error("{} is not vmmcid: its version is `{version}`", path.display())]
    #[diagnostic(help("give the program that `cargo build --profile dist -p vmmcid` makes"))]
    NotTheDaemon {
        /// The program.
        path: PathBuf,
        /// The last word of the output of its `--version`.
        version: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] support::file::Error),
    /// A program that packs failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Run(#[from] support::run::Error),
    /// The output directory of a kernel cannot be read.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Kernel(#[from] kernel_builder::OutputError),
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
