//! `vmmlinux completions`: prints completion scripts, generated from the command line definition.

use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

/// Arguments of `vmmlinux completions`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Shell that the script is for
    shell: Shell,
}

impl Args {
    /// Writes the script to standard output.
    pub(crate) fn run(self, command: &mut Command) -> miette::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "vmmlinux", &mut script);
        support::write(&mut std::io::stdout(), &script)?;
        Ok(ExitCode::SUCCESS)
    }
}
