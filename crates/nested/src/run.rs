//! Other programs: run to their end, and said to be missing or failing in words that help.

use std::{
    io,
    process::{Command, Output, Stdio},
};

use crate::{Error, Result};

/// Runs a command to its end, whatever its status; `help` says how to get the program where it is missing.
pub(crate) fn output(command: &mut Command, help: &str) -> Result<Output> {
    tracing::debug!(?command, "run");
    command.env("LC_ALL", "C").env_remove("LANGUAGE").stdin(Stdio::null());
    command.output().map_err(|source| missing(command, help, source))
}

/// Runs a command that must succeed and gives what it printed.
pub(crate) fn stdout(command: &mut Command, help: &str) -> Result<String> {
    let output = output(command, help)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Failed {
        program: line(command),
        status: output.status.to_string(),
        output: tail(&String::from_utf8_lossy(&output.stderr), 15),
        help: None,
    })
}

/// The error for a program that could not be started.
pub(crate) fn missing(command: &Command, help: &str, source: io::Error) -> Error {
    Error::Missing { program: line(command), help: help.to_owned(), source }
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
