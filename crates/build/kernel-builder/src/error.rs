//! Everything that can go wrong between a series' name and its kernel, said for the person at the terminal.

use std::{fmt::Write as _, io, path::PathBuf};

use miette::Diagnostic;
use thiserror::Error;

use crate::{build::BoxedDiagnostic, toolchain::Miss};

/// Why a source could not be fetched, verified, prepared or built.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// The operation, as it follows "cannot": "read", "create", …
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// What to do, where the system's message does not say it.
        #[help]
        help: Option<String>,
    },
    /// A file of `kernel/` does not parse or says something impossible.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
        /// What would be right.
        #[help]
        help: Option<String>,
    },
    /// No `kernel/series.toml` was found.
    #[error("no kernel/series.toml in {start} or any directory above it")]
    #[diagnostic(help("run this inside a checkout of the repository or say --kernel-dir DIR"))]
    NoKernelDir {
        /// Where the search began.
        start: PathBuf,
    },
    /// The series is not tracked.
    #[error("series {series} is not in {path}")]
    #[diagnostic(help("tracked series: {known}"))]
    UnknownSeries {
        /// What was asked for.
        series: String,
        /// The file that names the series.
        path: PathBuf,
        /// What it names.
        known: String,
    },
    /// A program could not be started.
    #[error("cannot run {program}")]
    #[diagnostic(help("is it installed? `vmmlinux setup` installs what a build needs"))]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{program} failed ({status})\n{output}")]
    Program {
        /// The program and its arguments.
        program: String,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
        /// What to do about it.
        #[help]
        help: Option<String>,
    },
    /// Tools, libraries or space are missing.
    #[error("this machine cannot build it yet: {} missing", misses.len())]
    #[diagnostic(help("`vmmlinux setup` installs what can be installed"))]
    Missing {
        /// Each with its remedy.
        #[related]
        misses: Vec<Miss>,
    },
    /// The source cannot be had from where the series says.
    #[error("cannot get the source of series {series} from {origin}: {problem}")]
    Unavailable {
        /// The series.
        series: String,
        /// Debian or kernel.org.
        origin: String,
        /// Why.
        problem: String,
        /// What to do about it.
        #[help]
        help: Option<String>,
    },
    /// A package cannot be had from Debian's archive.
    #[error("cannot get Debian's package {package} of {suite}: {problem}")]
    #[diagnostic(help(
        "does the mirror in the system's apt configuration carry {suite}? `apt-cache policy` tells"
    ))]
    NoPackage {
        /// The package.
        package: String,
        /// The suite that should have it.
        suite: String,
        /// Why.
        problem: String,
    },
    /// `--offline` and the cache does not hold what is needed.
    #[error("offline, and {what} is not in the cache {cache}")]
    #[diagnostic(help("run once without --offline, on a machine that reaches the mirror"))]
    Offline {
        /// What is missing.
        what: String,
        /// The cache directory.
        cache: PathBuf,
    },
    /// A file is not the one that was meant.
    #[error("{path} is not what was asked for: sha256 {found}, expected {expected}")]
    #[diagnostic(help(
        "it was damaged or tampered with on the way and has been discarded; try again, or another mirror"
    ))]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// The hash it should have.
        expected: String,
        /// The hash it has.
        found: String,
    },
    /// An archive ends early or is corrupt.
    #[error("{path} is truncated or damaged")]
    #[diagnostic(help("nothing of it was kept; remove the file and try again"))]
    BadArchive {
        /// The archive.
        path: PathBuf,
        /// What the decoder said.
        source: io::Error,
    },
    /// An archive does not hold a kernel tree.
    #[error("{path}: {problem}")]
    #[diagnostic(help("a kernel source archive holds one directory with the kernel's top Makefile in it"))]
    NotAKernel {
        /// The archive or directory.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// A kernel package lacks a module.
    #[error("kernel {release} has no module {module}")]
    #[diagnostic(help("another kernel is needed: remove the package with {} so that it is fetched anew", dir.display()))]
    NoModule {
        /// The kernel's release.
        release: String,
        /// The module's name.
        module: String,
        /// The kernel's modules.
        dir: PathBuf,
    },
    /// A file that should be a kernel module is none.
    #[error("{path} is not a kernel module for x86-64: {problem}")]
    #[diagnostic(help("remove the package that it is from, so that it is fetched anew"))]
    NotAModule {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
    /// A PGP signature does not vouch for the file.
    #[error("{path}: {problem}")]
    #[diagnostic(help(
        "do not use this file: it is not what the kernel's release managers signed. Pinned keys: {pinned}"
    ))]
    BadSignature {
        /// The signed file.
        path: PathBuf,
        /// What failed: no signature by a pinned key, or a signature that does not verify.
        problem: String,
        /// Fingerprints that would have been accepted.
        pinned: String,
    },
    /// A hunk does not apply.
    #[error("patch {patch} does not apply: {file}, hunk {hunk}\n{output}")]
    #[diagnostic(help(
        "the tree was left unpatched. Rebase the patch on {version} (`git format-patch`), or drop it from kernel/patches if {version} has it already"
    ))]
    PatchFailed {
        /// The patch's file name.
        patch: PathBuf,
        /// The first file that refused it.
        file: String,
        /// Which of the file's hunks, with its `@@` line.
        hunk: String,
        /// All that git said.
        output: Box<str>,
        /// The kernel release it was tried on.
        version: String,
    },
    /// The configuration could not be made; the configuration's own error says why.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Configuration(BoxedDiagnostic),
    /// make failed.
    #[error("make failed on {target}\n{output}")]
    #[diagnostic(help(
        "{}the command was:\n  {command}\nthe whole log: {}",
        help.as_ref().map(|h| format!("{h}\n")).unwrap_or_default(), log.display()
    ))]
    Make {
        /// The first target that failed.
        target: String,
        /// The command that was to make it.
        command: String,
        /// The end of the log, without the commands.
        output: Box<str>,
        /// The whole log.
        log: PathBuf,
        /// What to do, where it is known.
        help: Option<String>,
    },
    /// The user, or the system, asked to stop.
    #[error("interrupted")]
    #[diagnostic(help("run the same command again: the build goes on where it stopped. Log: {}", log.display()))]
    Interrupted {
        /// The log so far.
        log: PathBuf,
    },
    /// The overlay would replace a file of the tree or has nowhere to hook in.
    #[error("overlay {file}: {problem}")]
    Overlay {
        /// The overlay's file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
        /// What would be right.
        #[help]
        help: Option<String>,
    },
}

/// What every function here returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`], with the remedy where the kind of error has one.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let help = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(
                "the disk is full: free some space (a kernel needs about 4 GB) or point XDG_CACHE_HOME \
                 or --out elsewhere; nothing half-written was kept"
                    .to_owned(),
            ),
            io::ErrorKind::FileTooLarge => {
                Some("a file size limit was hit (see `ulimit -f`); nothing half-written was kept".to_owned())
            }
            io::ErrorKind::PermissionDenied => {
                Some("check the owner and permissions of that path".to_owned())
            }
            _ => None,
        };
        Self::Io { what, path: path.into(), source, help }
    }
}

/// The last `lines` lines of a text, for error messages.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    let mut out = String::new();
    for line in &all[all.len().saturating_sub(lines)..] {
        let _ = writeln!(out, "  {line}");
    }
    out.trim_end().to_owned()
}
