//! The `vmmcid` program.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    vmmcid::cli::Cli::parse().run()
}
