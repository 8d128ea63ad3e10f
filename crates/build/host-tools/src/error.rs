//! Errors of the installation.

use miette::Diagnostic;
use thiserror::Error;

/// A tool that could not be installed.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] support::file::Error),
    /// A program failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Run(#[from] support::run::Error),
    /// A package could not be fetched.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Archive(#[from] debian_archive::Error),
    /// apt has no mirror with the suite.
    #[error("cannot install {packages} from {suite}: the system's apt has no Debian mirror")]
    #[diagnostic(help("add a mirror of Debian to /etc/apt/sources.list, or install the packages yourself"))]
    NoMirror {
        /// The packages.
        packages: String,
        /// The suite.
        suite: String,
    },
    /// Rust's standard library could not be fetched.
    #[error("cannot get rust-src from rustup or Debian: {problem}")]
    #[diagnostic(help("get the source of your rustc and set RUST_LIB_SRC to its library/ directory"))]
    NoRustSource {
        /// The reason.
        problem: String,
    },
}

/// A result with this crate's [`Error`](enum@Error).
pub type Result<T> = std::result::Result<T, Error>;
