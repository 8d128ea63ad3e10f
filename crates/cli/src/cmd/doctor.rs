//! `vmmlinux doctor`: examine the guest that this runs in. `vmmlinux-doctor` is the same, small enough to be copied there.

use std::process::ExitCode;

/// Arguments of `vmmlinux doctor`.
#[derive(clap::Args)]
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
