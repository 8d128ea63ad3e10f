//! Errors of fetching, verifying and unpacking sources.

use std::{io, path::PathBuf};

use miette::Diagnostic;
use thiserror::Error;

/// A source that could not be fetched, verified or unpacked.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum FetchError {
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
    /// A file of `kernel/` does not parse or contradicts itself.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
        /// The remedy.
        #[help]
        help: Option<String>,
    },
    /// No `kernel/series.toml` was found.
    #[error("no kernel/series.toml in {start} or any directory above it")]
    #[diagnostic(help("run this inside a checkout of the repository or give --kernel-dir DIR"))]
    NoKernelDir {
        /// The directory where the search began.
        start: PathBuf,
    },
    /// The series is not tracked.
    #[error("series {series} is not in {path}")]
    #[diagnostic(help("tracked series: {known}"))]
    UnknownSeries {
        /// The requested series.
        series: String,
        /// The file that lists the series.
        path: PathBuf,
        /// The series in it.
        known: String,
    },
    /// The origin does not have the source.
    #[error("cannot get the source of series {series} from {origin}: {problem}")]
    Unavailable {
        /// The series.
        series: String,
        /// Debian or kernel.org.
        origin: String,
        /// The reason.
        problem: String,
        /// The remedy.
        #[help]
        help: Option<String>,
    },
    /// `--offline`, and the cache does not have the source.
    #[error("offline, and {what} is not in the cache {cache}")]
    #[diagnostic(help("run the same command once without --offline, on a machine that reaches the mirror"))]
    Offline {
        /// The missing source.
        what: String,
        /// The cache directory.
        cache: PathBuf,
    },
    /// A downloaded file has the wrong hash.
    #[error("{path} is not what was asked for: sha256 {found}, expected {expected}")]
    #[diagnostic(help(
        "it was damaged or altered on the way and has been removed; try again, or use another mirror"
    ))]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// The hash it should have.
        expected: String,
        /// The hash it has.
        found: String,
    },
    /// A file is not signed by a pinned key.
    #[error("{path}: {problem}")]
    #[diagnostic(help(
        "do not use this file: the kernel's release managers did not sign it. Pinned keys: {pinned}"
    ))]
    BadSignature {
        /// The file.
        path: PathBuf,
        /// The reason: no signature by a pinned key, or one that does not verify.
        problem: String,
        /// Fingerprints of the pinned keys.
        pinned: String,
    },
    /// An archive ends early or is corrupt.
    #[error("{path} is truncated or damaged")]
    #[diagnostic(help("nothing of it was kept; remove the file and try again"))]
    BadArchive {
        /// The archive.
        path: PathBuf,
        /// The decoder's error.
        source: io::Error,
    },
    /// An archive does not hold a kernel tree.
    #[error("{path}: {problem}")]
    #[diagnostic(help("a kernel source archive holds one directory with the kernel's top Makefile in it"))]
    NotAKernel {
        /// The archive.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
}

/// A result with a [`FetchError`].
pub(crate) type Result<T> = std::result::Result<T, FetchError>;
