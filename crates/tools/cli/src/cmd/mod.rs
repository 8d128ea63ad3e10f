//! Subcommands. Each is a file with an `Args` struct (what clap parses) whose `run` does the work.

use std::process::ExitCode;

use clap::Subcommand;
#[cfg(target_os = "openbsd")]
use support::sandbox::Access;

#[cfg(target_os = "linux")]
mod adopt;
#[cfg(target_os = "linux")]
mod bench;
#[cfg(target_os = "linux")]
mod build;
mod completions;
mod config;
#[cfg(target_os = "linux")]
mod ctl;
#[cfg(target_os = "linux")]
mod doctor;
#[cfg(target_os = "linux")]
mod image;
mod package;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod series;
#[cfg(target_os = "linux")]
mod setup;
#[cfg(target_os = "linux")]
mod source;
mod vmconf;

/// Parses a subcommand's line, of which the first word is its name.
#[cfg(all(test, target_os = "linux"))]
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
    #[cfg(target_os = "linux")]
    Build(build::Args),
    /// Make a bootable disk image for vmd(8) from a kernel
    #[cfg(target_os = "linux")]
    Image(Box<image::Args>),
    /// Make a disk for vmd(8), with a seed for cloud-init, from a distribution's cloud image
    #[cfg(target_os = "linux")]
    Adopt(adopt::Args),
    /// Run a guest on emulated vmd hardware
    #[cfg(target_os = "linux")]
    Run(Box<run::Args>),
    /// Measure kernels side by side on emulated vmd hardware
    #[cfg(target_os = "linux")]
    Bench(Box<bench::Args>),
    /// Control running VMs: stop, reboot, pause, status, console
    #[cfg(target_os = "linux")]
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
    #[cfg(target_os = "linux")]
    Doctor(doctor::Args),
    /// Create manual pages, packages, or a whole release
    Package(package::Args),
    /// Print a shell completion script
    Completions(completions::Args),
    /// Install the tools that building and running needs and this machine lacks
    #[cfg(target_os = "linux")]
    Setup(setup::Args),
    /// Check the kernel patches, carry them to another kernel, or export them for its maintainers
    #[cfg(target_os = "linux")]
    Series(Box<series::Args>),
    /// Prepare the patched source tree of a series and print its path
    #[cfg(target_os = "linux")]
    Source(source::Args),
}

impl Command {
    /// What the subcommand needs of the file system.
    #[cfg(target_os = "openbsd")]
    pub(crate) fn access(&self) -> Access<'_> {
        match self {
            Self::Vmconf(args) => args.access(),
            Self::Config(args) => args.access(),
            Self::Package(args) => args.access(),
            Self::Completions(_) => Access::Streams,
        }
    }

    /// Runs the subcommand; the exit code is the process's. `definition` makes that of the whole command line; `log_filter`
    /// is in `RUST_LOG` syntax.
    #[cfg_attr(target_os = "openbsd", expect(unused_variables, reason = "guests are not run there"))]
    pub(crate) fn run(self, definition: fn() -> clap::Command, log_filter: &str) -> miette::Result<ExitCode> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Build(args) => args.run(),
            #[cfg(target_os = "linux")]
            Self::Image(args) => args.run(),
            #[cfg(target_os = "linux")]
            Self::Adopt(args) => args.run(),
            #[cfg(target_os = "linux")]
            Self::Run(args) => args.run(log_filter.to_owned()),
            #[cfg(target_os = "linux")]
            Self::Bench(args) => args.run(),
            #[cfg(target_os = "linux")]
            Self::Ctl(args) => args.run(),
            Self::Vmconf(args) => args.run(),
            Self::Config(args) => args.run(),
            #[cfg(target_os = "linux")]
            Self::Doctor(args) => args.run(),
            Self::Package(args) => args.run(definition()),
            Self::Completions(args) => args.run(&mut definition()),
            #[cfg(target_os = "linux")]
            Self::Setup(args) => args.run(),
            #[cfg(target_os = "linux")]
            Self::Series(args) => args.run(),
            #[cfg(target_os = "linux")]
            Self::Source(args) => args.run(),
        }
    }
}
