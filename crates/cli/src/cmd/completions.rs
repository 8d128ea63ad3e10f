//! `vmmlinux completions`: completion scripts, from the same definitions that parse the command line.

use std::{io::Write, process::ExitCode};

use clap::Command;
use clap_complete::Shell;
use miette::{Context, IntoDiagnostic};

/// Arguments of `vmmlinux completions`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The shell to write completions for
    shell: Shell,
}

impl Args {
    /// Writes the script to standard output.
    pub(crate) fn run(self, command: &mut Command) -> miette::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "vmmlinux", &mut script);
        std::io::stdout()
            .write_all(&script)
            .into_diagnostic()
            .wrap_err("cannot write the completion script to standard output")?;
        Ok(ExitCode::SUCCESS)
    }
}
