//! Errors of the patch stack, each with its remedy.

use std::{io, path::PathBuf};

use miette::Diagnostic;
use support::{file, run};
use thiserror::Error;

/// An error of the caller's.
pub type BoxedError = Box<dyn Diagnostic + Send + Sync>;

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the stack cannot be read or used.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] file::Error),
    /// A program could not be run, or failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Run(#[from] run::Error),
    /// The series has no such patch.
    #[error("series {series} has no patch {name}")]
    #[diagnostic(help("a patch is named by a part of group/NNNN-subject.patch"))]
    NoSuchPatch {
        /// What was asked for.
        name: String,
        /// The series.
        series: String,
    },
    /// The stack has no such group.
    #[error("the stack has no group {name}")]
    #[diagnostic(help("groups: {known}"))]
    NoSuchGroup {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A patch does not apply to the kernel that it is written for.
    #[error("{patch} does not apply to Linux {version}\n{output}")]
    #[diagnostic(help(
        "`vmmlinux series rebase` carries the stack to another release; `vmmlinux series check` names every such patch"
    ))]
    DoesNotApply {
        /// The patch.
        patch: String,
        /// The kernel.
        version: String,
        /// git's words.
        output: String,
    },
    /// A directory is not a tree of a rebase.
    #[error("{tree} is no git tree that `vmmlinux series rebase` made of Linux {version}")]
    #[diagnostic(help("name another directory by --tree, or remove this one"))]
    NotOurTree {
        /// The directory.
        tree: PathBuf,
        /// The kernel.
        version: String,
    },
    /// A tree has changes that are not committed, or `git am` is not at its end.
    #[error("{tree} has changes that are not committed")]
    #[diagnostic(help("finish with `git add` and `git am --continue`, or give up with `git am --abort`"))]
    Busy {
        /// The tree.
        tree: PathBuf,
    },
    /// A commit does not say which patch it is.
    #[error("commit {commit} ({subject}) does not name its patch")]
    #[diagnostic(help("end its message with the line `Message-ID: <group/NNNN-subject.patch>`"))]
    NoName {
        /// The commit.
        commit: String,
        /// Its subject.
        subject: String,
    },
    /// git does not know who exports.
    #[error("git has no {missing}: an exported patch needs an author and a Signed-off-by")]
    #[diagnostic(help(
        "a sign-off is a person's statement of origin (Documentation/process/submitting-patches.rst) and is not invented: \
         git config user.name \"…\"; git config user.email …"
    ))]
    NoIdentity {
        /// The missing setting.
        missing: &'static str,
    },
    /// A cover letter or message is missing.
    #[error("cannot read the message {path}")]
    #[diagnostic(help(
        "write a subject, an empty line and the text: the problem, the measurement, the test"
    ))]
    NoMessage {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The output is there already.
    #[error("{path} exists")]
    #[diagnostic(help("remove it or name another directory"))]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// The overlay cannot be laid over the tree; its own error says why.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Overlay(BoxedError),
    /// The stack breaks rules of its form.
    #[error("the patch stack {dir} has {} {}", problems.len(), if problems.len() == 1 { "problem" } else { "problems" })]
    #[diagnostic(help("the form of stack.toml and of a patch is described in kernel/README.md"))]
    Malformed {
        /// The directory with `stack.toml`.
        dir: PathBuf,
        /// Each broken rule.
        #[related]
        problems: Vec<Problem>,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::File(file::Error::new(what, path, source))
    }
}

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq, Error, Diagnostic)]
#[error("{file}: {what}")]
pub struct Problem {
    /// The file or entry, relative to the stack's directory.
    pub file: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    #[help]
    pub remedy: Option<String>,
}

impl Problem {
    pub(crate) fn new(file: impl Into<String>, what: impl Into<String>, remedy: &str) -> Self {
        let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
        Self { file: file.into(), what: what.into(), remedy }
    }
}
