//! Patches of the stack applied to a tree.

use std::{
    fs,
    path::{Path, PathBuf},
};

use miette::Diagnostic;
use support::{
    file,
    run::{self, tail},
};
use thiserror::Error;

/// A patch that could not be applied.
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum PatchError {
    /// A file operation failed.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] file::Error),
    /// git could not be run.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Run(#[from] run::Error),
    /// A hunk does not apply.
    #[error("patch {patch} does not apply: {file}, hunk {hunk}\n{output}")]
    #[diagnostic(help(
        "the tree was left unpatched. `vmmlinux series rebase` carries the stack to {version}; a patch that {version} contains \
         is named in [without] of kernel/patches/stack.toml"
    ))]
    DoesNotApply {
        /// The patch's file name.
        patch: PathBuf,
        /// The first file that git could not change.
        file: String,
        /// The hunk in that file, with its `@@` line.
        hunk: String,
        /// git's messages.
        output: Box<str>,
        /// The kernel release of the tree.
        version: String,
    },
}

/// A result with a [`PatchError`].
pub(crate) type Result<T> = std::result::Result<T, PatchError>;

/// Whether a tree has a patch already: it would come off cleanly.
pub(crate) fn is_applied(tree: &Path, patch: &Path) -> Result<bool> {
    Ok(run::output(git_apply(tree).args(["--reverse", "--check"]).arg(patch))?.status.success())
}

/// Applies one patch, all of it or nothing.
///
/// git replaces the files it changes instead of writing into them, so hard links to a pristine tree stay pristine.
pub(crate) fn apply(tree: &Path, patch: &Path, version: &str) -> Result<()> {
    let output = run::output(git_apply(tree).arg(patch))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let text = fs::read_to_string(patch).map_err(|e| file::Error::new("read", patch, e))?;
    let (file, hunk) = culprit(&said, &text);
    Err(PatchError::DoesNotApply {
        patch: patch.to_owned(),
        file,
        hunk,
        output: tail(&said, 20).into(),
        version: version.to_owned(),
    })
}

fn git_apply(tree: &Path) -> std::process::Command {
    let mut git = run::command("git");
    // The tree may lie inside a user's repository (a cache under a versioned home directory), whose settings and
    // prefix must not take part.
    git.current_dir(tree)
        .env("GIT_CEILING_DIRECTORIES", tree.parent().unwrap_or(tree))
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .args(["apply", kernel_series::CONTEXT, "--whitespace=nowarn"]);
    git
}

/// The file and hunk that git's complaint is about: `error: patch failed: FILE:LINE` names the hunk by the line it
/// starts at, anything else names a file as a whole.
fn culprit(said: &str, patch: &str) -> (String, String) {
    for line in said.lines() {
        if let Some((file, start)) =
            line.strip_prefix("error: patch failed: ").and_then(|r| r.rsplit_once(':'))
        {
            let found = hunks_of(patch, file).enumerate().find(|(_, at)| hunk_start(at) == Some(start));
            let hunk =
                found.map_or_else(|| format!("at line {start}"), |(i, at)| format!("{} ({at})", i + 1));
            return (file.to_owned(), hunk);
        }
    }
    let whole = said.lines().find_map(|line| line.strip_prefix("error: "));
    match whole.and_then(|rest| rest.split_once(": ")) {
        Some((file, problem)) => (file.to_owned(), format!("all ({problem})")),
        None => (whole.unwrap_or("unknown file").to_owned(), "all".to_owned()),
    }
}

/// The `@@ … @@` lines of a file's section of a patch.
fn hunks_of<'a>(patch: &'a str, file: &str) -> impl Iterator<Item = &'a str> {
    let mut inside = false;
    let header = format!("--- a/{file}");
    patch.lines().filter_map(move |line| {
        if line.starts_with("diff --git ") {
            inside = false;
        } else if line == header {
            inside = true;
        } else if inside && line.starts_with("@@ -") {
            return line.find(" @@").map(|end| &line[..end + 3]);
        }
        None
    })
}

/// The line of the old file that a `@@ -12,7 +12,9 @@` hunk starts at.
fn hunk_start(at: &str) -> Option<&str> {
    at.strip_prefix("@@ -")?.split([',', ' ']).next()
}
