//! `vmmlinux doctor`: examines the vmd guest in which this runs, as the standalone `vmmlinux-doctor` does.

use std::process::ExitCode;

/// Arguments of `vmmlinux doctor`.
#[derive(clap::Args)]
// clap names a group after each struct, and both are called Args.
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    doctor: doctor::Args,
}

impl Args {
    /// Examines this system.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        self.doctor.run()
    }
}
