//! Why a configuration cannot be made.

use std::{io, path::PathBuf};

use miette::Diagnostic;
use thiserror::Error;

use crate::{DotConfigError, MissingBackend, TreeError, Value};

/// A request that did not come true.
#[derive(Clone, Debug, PartialEq, Eq, Error, Diagnostic)]
#[error("{symbol} was requested as {wanted} and is {got}: {cause}")]
pub struct Mismatch {
    /// The symbol.
    pub symbol: String,
    /// The value asked for.
    pub wanted: Value,
    /// The value that came out.
    pub got: Value,
    /// The dependency that stopped it, or what else did.
    pub cause: String,
}

/// A configuration that cannot be made.
#[derive(Debug, Error, Diagnostic)]
pub enum ResolveError {
    /// A file of the build directory.
    #[error("cannot write {}", .path.display())]
    #[diagnostic(help("the build directory must be writable and its disk not full"))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// make is not there.
    #[error("cannot run make")]
    #[diagnostic(help("install make, gcc, flex and bison"))]
    Spawn(#[source] io::Error),
    /// make failed.
    #[error("make {target} failed in {} ({status}):\n{output}", .tree.display())]
    #[diagnostic(help(
        "the kernel's configuration needs make, a C compiler, flex and bison, and a complete, clean source tree"
    ))]
    Make {
        /// The source tree.
        tree: PathBuf,
        /// The target.
        target: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it wrote to standard error.
        output: String,
    },
    /// Requests did not come true.
    #[error("{} of {requested} requested symbols did not come true", .mismatches.len())]
    #[diagnostic(help(
        "correct the fragment, add what the symbol depends on, or give the entry a `may_differ` with the reason"
    ))]
    Mismatch {
        /// Number of requests.
        requested: usize,
        /// Those that failed.
        #[related]
        mismatches: Vec<Mismatch>,
    },
    /// Built files ask for what is not built.
    #[error("{} that built files ask for at run time {} missing", .missing.len(), if .missing.len() == 1 { "is" } else { "are" })]
    #[diagnostic(help(
        "add a symbol that offers it to the same workload, or leave out the symbol that asks; what a file does without is \
         listed with the reason in crates/build/kconfig/src/backends.rs"
    ))]
    Backends {
        /// What is missing.
        #[related]
        missing: Vec<MissingBackend>,
    },
    /// What make wrote cannot be read.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] DotConfigError),
    /// The tree's Kconfig files cannot be read.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Tree(#[from] TreeError),
}
