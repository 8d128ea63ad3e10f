//! Errors of compiling.

use std::path::PathBuf;

use host_tools::Missing;
use miette::Diagnostic;
use thiserror::Error;

/// A kernel that could not be compiled.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum MakeError {
    /// A file operation failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] support::file::Error),
    /// make could not be run.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Run(#[from] support::run::Error),
    /// Tools, libraries or disk space are missing.
    #[error("this machine cannot build a kernel: {} missing", missing.len())]
    #[diagnostic(help("`vmmlinux setup` installs what can be installed"))]
    Missing {
        /// Each with its remedy.
        #[related]
        missing: Vec<Missing>,
    },
    /// make failed.
    #[error("make failed on {target}\n{output}")]
    #[diagnostic(help(
        "{}the command was:\n  {command}\nthe whole log: {}",
        help.as_ref().map(|h| format!("{h}\n")).unwrap_or_default(), log.display()
    ))]
    Failed {
        /// The first target that failed.
        target: String,
        /// The command of that target.
        command: String,
        /// The end of the log, without commands.
        output: Box<str>,
        /// The whole log.
        log: PathBuf,
        /// The remedy, if it is known.
        help: Option<String>,
    },
    /// A signal interrupted make.
    #[error("interrupted")]
    #[diagnostic(help("run the same command again to continue the build. Log: {}", log.display()))]
    Interrupted {
        /// The log so far.
        log: PathBuf,
    },
}

/// A result with a [`MakeError`].
pub(crate) type Result<T> = std::result::Result<T, MakeError>;
