//! The error of a kernel builder: that of one of its parts.

use miette::Diagnostic;
use thiserror::Error;

use crate::{
    configuration::BoxedDiagnostic, fetch::error::FetchError, make::error::MakeError,
    output::error::OutputError, tree::error::TreeError,
};

/// A kernel that could not be built.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] support::file::Error),
    /// The source could not be fetched, verified or unpacked.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Fetch(#[from] FetchError),
    /// The patch stack could not be read.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Stack(#[from] kernel_series::Error),
    /// The tree could not be prepared.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Tree(#[from] TreeError),
    /// The tree could not be configured.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Configuration(BoxedDiagnostic),
    /// The tree could not be compiled.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Make(#[from] MakeError),
    /// The outputs could not be collected.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Output(#[from] OutputError),
}

/// A result with this crate's [`Error`](enum@Error).
pub type Result<T> = std::result::Result<T, Error>;
