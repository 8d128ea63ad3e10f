//! Running git and other programs in a kernel tree.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use support::run;

use crate::error::Result;

/// Who commits in throw-away trees. Nothing of it is ever exported.
const NEUTRAL: [(&str, &str); 2] = [("user.name", "vmmlinux series"), ("user.email", "series@localhost")];

/// The last lines of what a program wrote to its standard streams.
pub(crate) fn said(output: &Output, lines: usize) -> String {
    let text =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).join("");
    run::last(text.lines(), lines)
}

/// A git repository with a work tree, isolated from the user's configuration.
#[derive(Debug, Clone)]
pub(crate) struct Git {
    dir: PathBuf,
}

impl Git {
    /// The repository at a directory; nothing is looked at.
    pub(crate) fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A git command.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut git = run::command("git");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"GIT_"))
        {
            git.env_remove(name);
        }
        git.current_dir(&self.dir)
            .env("GIT_CEILING_DIRECTORIES", self.dir.parent().unwrap_or(&self.dir))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1");
        for (name, value) in NEUTRAL {
            git.arg("-c").arg(format!("{name}={value}"));
        }
        git.args(["-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", "-c", "advice.mergeConflict=false"]);
        git.args(args);
        git
    }

    /// Runs git, which must succeed; returns its standard output without the last line's end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        Ok(run::stdout(&mut self.command(args))?.trim_end_matches('\n').to_owned())
    }

    /// Runs git; a failing status is left to the caller.
    pub(crate) fn try_run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        Ok(run::output(&mut self.command(args))?)
    }

    /// The blob identifier of a file in a commit; `None` if the commit does not have it.
    pub(crate) fn blob(&self, commit: &str, file: &str) -> Result<Option<String>> {
        let output = self.try_run(["rev-parse", "--verify", "--quiet", &format!("{commit}:{file}")])?;
        let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok((output.status.success() && !id.is_empty()).then_some(id))
    }
}

/// `--name=value` as one argument.
pub(crate) fn option(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut option = OsString::from(name);
    option.push("=");
    option.push(value);
    option
}
