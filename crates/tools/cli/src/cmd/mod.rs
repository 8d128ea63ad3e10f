//! Subcommands. Each is a file with an `Args` struct (what clap parses) whose `run` does the work.

use std::process::ExitCode;

use clap::Subcommand;

mod adopt;
mod bench;
mod build;
mod completions;
mod config;
mod ctl;
mod doctor;
mod image;
mod package;
mod run;
mod series;
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

/// The subcommands of `vmmlinux`.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Build a kernel from a tracked series
    Build(build::Args),
    /// Make a bootable disk image for vmd(8) from a kernel
    Image(Box<image::Args>),
    /// Make a disk for vmd(8), with a seed for cloud-init, from a distribution's cloud image
    Adopt(adopt::Args),
    /// Run a guest on emulated vmd hardware
    Run(Box<run::Args>),
    /// Measure kernels side by side on emulated vmd hardware
    Bench(Box<bench::Args>),
    /// Control running VMs: stop, reboot, pause, status, console
    Ctl(ctl::Args),
    /// Write a vm.conf stanza for an image, or check an existing vm.conf
    Vmconf(Box<vmconf::Args>),
    /// Show, explain and check kernel configurations, and audit those of other kernels
    Config(config::Args),
    /// Examine the vmd guest in which this runs: problems, and what to do about them
    ///
    /// The exit status is 0 for notes only, 2 for warnings, 3 for a fatal finding, and 1 if this system is not a vmd
    /// guest or could not be examined. Some checks need root. `vmmlinux-doctor` is the same as a small standalone
    /// program.
    Doctor(doctor::Args),
    /// Create packages of vmmcid (the daemon for stock kernels), manual pages, or a whole release
    Package(package::Args),
    /// Print a shell completion script
    Completions(completions::Args),
    /// Install the tools that building and running needs and this machine lacks
    Setup(setup::Args),
    /// Check the kernel patches, carry them to another kernel, or export them for its maintainers
    Series(Box<series::Args>),
    /// Prepare the patched source tree of a series and print its path
    Source(source::Args),
}

impl Command {
    /// Runs the subcommand; the exit code is the process's. `definition` makes that of the whole command line; `log_filter`
    /// is in `RUST_LOG` syntax.
    pub(crate) fn run(self, definition: fn() -> clap::Command, log_filter: &str) -> miette::Result<ExitCode> {
        match self {
            Self::Build(args) => args.run(),
            Self::Image(args) => args.run(),
            Self::Adopt(args) => args.run(),
            Self::Run(args) => args.run(log_filter.to_owned()),
            Self::Bench(args) => args.run(),
            Self::Ctl(args) => args.run(),
            Self::Vmconf(args) => args.run(),
            Self::Config(args) => args.run(),
            Self::Doctor(args) => args.run(),
            Self::Package(args) => args.run(definition()),
            Self::Completions(args) => args.run(&mut definition()),
            Self::Setup(args) => args.run(),
            Self::Series(args) => args.run(),
            Self::Source(args) => args.run(),
        }
    }
}
