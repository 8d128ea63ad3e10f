//! Subcommands. Each is a file with an `Args` struct (what clap parses) whose `run` does the work.

use std::process::ExitCode;

use clap::{CommandFactory, Subcommand};

mod bench;
mod build;
mod completions;
mod config;
mod ctl;
mod doctor;
mod image;
mod package;
mod run;
mod setup;
mod source;
mod vmconf;

/// Parses a subcommand's line, of which the first word is its name.
#[cfg(test)]
fn parse<A: clap::Args>(line: &str) -> Result<A, clap::Error> {
    #[derive(clap::Parser)]
    struct Line<A: clap::Args> {
        #[command(flatten)]
        args: A,
    }
    clap::Parser::try_parse_from(line.split_whitespace()).map(|Line { args }| args)
}

/// What `vmmlinux` can do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Build a kernel
    Build(build::Args),
    /// Make a bootable disk image for vmd(8) from a kernel
    Image(Box<image::Args>),
    /// Run a guest on vmd's hardware
    Run(Box<run::Args>),
    /// Compare kernels in the vmd machine
    Bench(Box<bench::Args>),
    /// Control running machines
    Ctl(ctl::Args),
    /// Write what an OpenBSD host needs to run an image, or check its vm.conf
    Vmconf(Box<vmconf::Args>),
    /// The curated kernel configuration, and audits of other kernels'
    Config(config::Args),
    /// Examine the guest of vmd(8) in which this runs: what is wrong, and what to do about it
    ///
    /// The exit status is 0 if nothing worse than a note was found, 2 after warnings, 3 if something is fatal, and 1 if this is
    /// no guest of vmd's or could not be examined. Root sees more than others. `vmmlinux-doctor` is the same as a small
    /// program by itself.
    Doctor(doctor::Args),
    /// Pack vmmcid, the daemon for guests with a stock kernel, or a whole release
    Package(package::Args),
    /// Print shell completions
    Completions(completions::Args),
    /// Install what this machine lacks for building kernels and images
    Setup(setup::Args),
    /// Print the path of a series' patched source tree
    Source(source::Args),
}

impl Command {
    /// Runs the subcommand; the exit code is the process's. `log` is what the log shall tell.
    pub(crate) fn run(self, log: &str) -> miette::Result<ExitCode> {
        match self {
            Self::Build(args) => args.run(),
            Self::Image(args) => args.run(),
            Self::Run(args) => args.run(log.to_owned()),
            Self::Bench(args) => args.run(),
            Self::Ctl(args) => args.run(),
            Self::Vmconf(args) => args.run(),
            Self::Config(args) => args.run(),
            Self::Doctor(args) => args.run(),
            Self::Package(args) => args.run(crate::Cli::command()),
            Self::Completions(args) => args.run(&mut crate::Cli::command()),
            Self::Setup(args) => args.run(),
            Self::Source(args) => args.run(),
        }
    }
}
