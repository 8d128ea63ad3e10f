//! Errors of fetching and reading Debian's packages.

use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;

/// A package that could not be fetched, or that does not have what was expected.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] support::file::Error),
    /// apt or dpkg failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Run(#[from] support::run::Error),
    /// A suite does not have the package.
    #[error("cannot get Debian's package {package} of {suite}: {problem}")]
    #[diagnostic(help(
        "check that the mirror in the system's apt configuration carries {suite}: `apt-cache policy` lists it"
    ))]
    NoPackage {
        /// The package.
        package: String,
        /// The suite that should have it.
        suite: String,
        /// The reason.
        problem: String,
    },
    /// apt succeeded without leaving a package file.
    #[error("apt downloaded no package file of {package} {version}")]
    #[diagnostic(help("run the same command again; `apt-get download {package}` shows apt's messages"))]
    NotDownloaded {
        /// The package.
        package: String,
        /// Its version.
        version: String,
    },
    /// The packages of a kernel lack a part of it.
    #[error("{dir}: {package} did not bring a kernel, its configuration and its modules")]
    #[diagnostic(help("remove the directory and run the same command again"))]
    NotAKernel {
        /// The package that leads to the kernel.
        package: String,
        /// The directory with its unpacked files.
        dir: PathBuf,
    },
    /// A kernel lacks a module.
    #[error("kernel {release} has no module {module}")]
    #[diagnostic(help("remove {} so that the kernel's package is fetched again", dir.display()))]
    NoModule {
        /// The kernel's release.
        release: String,
        /// The module's name.
        module: String,
        /// The kernel's modules.
        dir: PathBuf,
    },
    /// A file is not a kernel module.
    #[error("{path} is not a kernel module for x86-64: {problem}")]
    #[diagnostic(help("remove the package's directory so that it is fetched again"))]
    NotAModule {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
}

/// A result with this crate's [`Error`](enum@Error).
pub type Result<T> = std::result::Result<T, Error>;
