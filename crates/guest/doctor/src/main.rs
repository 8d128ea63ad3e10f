//! The `vmmlinux-doctor` program: `vmmlinux doctor` by itself, small enough to be copied into a guest.

use std::process::ExitCode;

use clap::Parser;

/// Examine this guest of OpenBSD's vmd(8): what is wrong with it, and what to do about that.
///
/// The exit status is 0 if nothing worse than a note was found, 2 after warnings, 3 if something is fatal, and 1 if this is
/// not a guest of vmd or could not be examined. Root sees more than other users.
#[derive(Parser)]
#[command(name = "vmmlinux-doctor", version)]
struct Cli {
    #[command(flatten)]
    doctor: doctor::Args,
}

fn main() -> ExitCode {
    Cli::parse().doctor.run().unwrap_or_else(|report| {
        support::note!("{report:?}");
        ExitCode::FAILURE
    })
}
