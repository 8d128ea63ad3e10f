//! Running other programs: English messages, captured output, and errors that quote it.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use crate::{file, progress::Progress};

/// A program that could not be run or failed.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum Error {
    /// A program could not be started.
    #[error("cannot run {program}")]
    #[diagnostic(help("is it installed? `vmmlinux setup` installs what a build needs"))]
    Spawn {
        /// The program.
        program: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A program ended with an error.
    #[error("{program} failed ({status})\n{output}")]
    Failed {
        /// The program and its arguments.
        program: String,
        /// Its exit status.
        status: String,
        /// The last lines of its output.
        output: String,
        /// The remedy.
        #[help]
        help: Option<String>,
    },
    /// A file that the program needs or makes.
    #[error(transparent)]
    #[diagnostic(transparent)]
    File(#[from] file::Error),
}

/// A result with an [`Error`](enum@Error) of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// A command that prints its messages in English (`LC_ALL=C.UTF-8`) and reads nothing from standard input.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE").stdin(Stdio::null());
    command
}

/// Runs a command to its end and returns its output, whatever its exit status is.
pub fn output(command: &mut Command) -> Result<Output> {
    tracing::debug!(?command, "run");
    command.output().map_err(|source| spawn_error(command, source))
}

/// Runs a command that must succeed and returns its standard output.
pub fn stdout(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        return Err(failed(command, &output, None));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command whose messages are for the user: its standard output goes to standard error.
pub fn visible(command: &mut Command, help: &str) -> Result<()> {
    tracing::debug!(?command, "run");
    let status = command
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .map_err(|source| spawn_error(command, source))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Failed {
        program: command_line(command),
        status: status.to_string(),
        output: "see its messages above".to_owned(),
        help: Some(help.to_owned()),
    })
}

/// Runs a downloader to its end and reports how many of `size` bytes have arrived in `dir` (`size` is 0 if unknown).
pub fn download(command: &mut Command, dir: &Path, size: u64, progress: &dyn Progress) -> Result<()> {
    tracing::debug!(?command, "download");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| spawn_error(command, source))?;
    while child.try_wait().map_err(|source| spawn_error(command, source))?.is_none() {
        progress.step(bytes_in(dir), size, "");
        std::thread::sleep(Duration::from_millis(100));
    }
    let output = child.wait_with_output().map_err(|source| spawn_error(command, source))?;
    if output.status.success() {
        return Ok(());
    }
    let help = "check the network and the free disk space; --offline builds from the cache";
    Err(failed(command, &output, Some(help.to_owned())))
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|e| e.ok()?.metadata().ok()).map(|m| m.len()).sum()
}

/// The error for a command that could not be started.
pub fn spawn_error(command: &Command, source: std::io::Error) -> Error {
    Error::Spawn { program: command.get_program().to_string_lossy().into_owned(), source }
}

/// The error for a command that ended with a bad status.
pub fn failed(command: &Command, output: &Output, help: Option<String>) -> Error {
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    Error::Failed {
        program: command_line(command),
        status: output.status.to_string(),
        output: tail(&String::from_utf8_lossy(said), 20),
        help,
    }
}

/// The program and its arguments, separated by blanks, without quoting.
pub fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// The last `most` of some lines, as one text.
pub fn last<'a>(lines: impl IntoIterator<Item = &'a str>, most: usize) -> String {
    let all: Vec<&str> = lines.into_iter().collect();
    all[all.len().saturating_sub(most)..].join("\n")
}

/// The last `lines` lines of a text, each indented by two blanks, for error messages.
pub fn tail(text: &str, lines: usize) -> String {
    let mut out = String::new();
    for line in last(text.trim_end().lines(), lines).lines() {
        let _ = writeln!(out, "  {line}");
    }
    out.trim_end().to_owned()
}
