//! Errors of preparing trees.

use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;

use crate::patch::PatchError;

/// A tree that could not be prepared.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum TreeError {
    /// A file operation failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] support::file::Error),
    /// A program failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Run(#[from] support::run::Error),
    /// A patch could not be applied.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Patch(#[from] PatchError),
    /// A directory is not a kernel tree.
    #[error("{path}: {problem}")]
    #[diagnostic(help("give the top directory of a kernel source tree"))]
    NotAKernel {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// A file of the overlay is in the tree already, or its directory cannot be hooked in.
    #[error("overlay {file}: {problem}")]
    Overlay {
        /// The overlay's file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
        /// The remedy.
        #[help]
        help: Option<String>,
    },
}

/// A result with a [`TreeError`].
pub(crate) type Result<T> = std::result::Result<T, TreeError>;
