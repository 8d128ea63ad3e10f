//! `vmmlinux package`: manual pages, packages, and releases.

#[cfg(target_os = "linux")]
mod packages;

use std::{path::PathBuf, process::ExitCode};

use clap::Command;
#[cfg(target_os = "openbsd")]
use support::sandbox::Access;

/// Arguments of `vmmlinux package`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Create packages of the daemon for stock kernels: a Debian package, and a tarball for other distributions
    #[cfg(target_os = "linux")]
    Vmmcid(packages::VmmcidArgs),
    /// Write the manual pages: vmmlinux.1, vmmlinux-vmconf.1 and so on
    Man {
        /// Directory for the manual pages
        dir: PathBuf,
    },
    /// Create a release: program, daemon, kernels, images, bills of materials, checksums
    ///
    /// Reproducible: the same inputs give the same bytes. All timestamps are SOURCE_DATE_EPOCH, by default the
    /// modification time of the program.
    /// `make release` builds its inputs first.
    #[cfg(target_os = "linux")]
    Release(packages::ReleaseArgs),
    /// Create the directory of a port for OpenBSD: packaging/openbsd of the checkout, with the crates of its Cargo.lock
    #[cfg(target_os = "linux")]
    OpenbsdPort(packages::PortArgs),
}

impl Args {
    /// The directory that the subcommand writes to.
    #[cfg(target_os = "openbsd")]
    pub(crate) fn access(&self) -> Access<'_> {
        let What::Man { dir } = &self.what;
        Access::Create(dir)
    }

    /// Creates what was asked for. `command` is the definition of the whole command line.
    pub(crate) fn run(self, command: Command) -> miette::Result<ExitCode> {
        match self.what {
            #[cfg(target_os = "linux")]
            What::Vmmcid(args) => args.run()?,
            What::Man { dir } => manuals::write(command, &dir)?,
            #[cfg(target_os = "linux")]
            What::Release(args) => args.run(command)?,
            #[cfg(target_os = "linux")]
            What::OpenbsdPort(args) => args.run()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
