//! Errors of the output directory.

use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;

use crate::make::error::MakeError;

/// An output directory that could not be made or read.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum OutputError {
    /// A file operation failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] support::file::Error),
    /// A program failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Run(#[from] support::run::Error),
    /// make could not install modules or make a package.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Make(#[from] MakeError),
    /// A manifest does not parse.
    #[error("{path}: {problem}")]
    #[diagnostic(help("build it again: `vmmlinux build` replaces the directory"))]
    BadManifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
    /// A name is not suitable for an output directory.
    #[error("`{name}` is not suitable as the name of an output directory")]
    #[diagnostic(help("use letters, digits and any of ._-+, and do not begin with a dot"))]
    BadName {
        /// The name.
        name: String,
    },
    /// The output directory exists and no build created it.
    #[error("refusing to replace {path}: it exists and was not created by a build")]
    #[diagnostic(help("move it away, or choose another --name or --out"))]
    NotABuild {
        /// The directory.
        path: PathBuf,
    },
}

/// A result with an [`OutputError`].
pub(crate) type Result<T> = std::result::Result<T, OutputError>;
