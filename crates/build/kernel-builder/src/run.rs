//! Running programs and saying what they did when they fail.

use std::{
    ffi::OsStr,
    process::{Command, Output},
};

use crate::error::{Error, Result, tail};

/// A command whose messages are in plain English whatever the user's locale, so that they can be parsed.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE").stdin(std::process::Stdio::null());
    command
}

/// Runs a command to its end; a failing status is left to the caller.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    tracing::debug!(?command, "run");
    command.output().map_err(|source| Error::Spawn { program: program_name(command), source })
}

/// Runs a command that must succeed and returns what it printed.
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        return Err(failed(command, &output, None));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The error for a command that ended badly.
pub(crate) fn failed(command: &Command, output: &Output, help: Option<String>) -> Error {
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    Error::Program {
        program: command_line(command),
        status: output.status.to_string(),
        output: tail(&String::from_utf8_lossy(said), 20),
        help,
    }
}

fn program_name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// The command as one would type it, without quoting.
pub(crate) fn command_line(command: &Command) -> String {
    let mut line = program_name(command);
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
