//! `vmmlinux package vmmcid`, `release` and `openbsd-port`: what is published.

use std::{
    env,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use clap::Command;
use miette::{IntoDiagnostic, WrapErr, miette};

/// The daemon as built by `make vmmcid-deb`.
const DAEMON: &str = "target/x86_64-unknown-linux-gnu/dist/vmmcid";
/// The program as built by `make release`.
const PROGRAM: &str = "target/x86_64-unknown-linux-gnu/dist-cli/vmmlinux";
/// Programs beside it in a release: init for `vmmlinux bench`, and the doctor for guests.
const COMPANIONS: [&str; 2] = ["vmmlinux-guest", "vmmlinux-doctor"];

/// Arguments of `vmmlinux package vmmcid`.
#[derive(clap::Args)]
pub(super) struct VmmcidArgs {
    /// Statically linked vmmcid
    #[arg(long, value_name = "FILE", default_value = DAEMON)]
    binary: PathBuf,
    /// Directory for the packages
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
}

/// Arguments of `vmmlinux package release`.
#[derive(clap::Args)]
pub(super) struct ReleaseArgs {
    /// Statically linked vmmlinux, with vmmlinux-guest and vmmlinux-doctor beside it
    #[arg(long, value_name = "FILE", default_value = PROGRAM)]
    program: PathBuf,
    /// Statically linked vmmcid
    #[arg(long, value_name = "FILE", default_value = DAEMON)]
    daemon: PathBuf,
    /// Output directory of a kernel, whose packages and qcow2 images are included (may be repeated)
    #[arg(long, value_name = "BUILD")]
    kernel: Vec<PathBuf>,
    /// Checkout that the inputs were built from
    #[arg(long, value_name = "DIR", default_value = ".")]
    checkout: PathBuf,
    /// Directory to create
    #[arg(long, value_name = "DIR", default_value = "out/release")]
    out: PathBuf,
}

/// Arguments of `vmmlinux package openbsd-port`.
#[derive(clap::Args)]
pub(super) struct PortArgs {
    /// Checkout to port
    #[arg(long, value_name = "DIR", default_value = ".")]
    checkout: PathBuf,
    /// Directory to create
    #[arg(long, value_name = "DIR", default_value = "out/openbsd-port")]
    out: PathBuf,
}

impl VmmcidArgs {
    /// Creates the packages and prints their paths.
    pub(super) fn run(self) -> miette::Result<()> {
        needs(&self.binary, "cargo build --profile dist -p vmmcid; `make vmmcid-deb` does both")?;
        let packages = packaging::package_daemon(&self.binary, epoch(&self.binary)?, &self.out)?;
        support::print(&format!("{}\n{}\n", packages.deb.display(), packages.tarball.display()))?;
        Ok(())
    }
}

impl ReleaseArgs {
    /// Creates the release and prints the paths of its files. `command` is the definition of the whole command line.
    pub(super) fn run(self, command: Command) -> miette::Result<()> {
        let Self { program, daemon, kernel, checkout, out } = self;
        needs(
            &program,
            "cargo build --profile dist-cli -p vmmlinux -p bench -p doctor; `make release` does all of it",
        )?;
        needs(&daemon, "cargo build --profile dist -p vmmcid; `make release` does all of it")?;
        let companions = COMPANIONS.map(|name| program.with_file_name(name));
        let inputs = packaging::Inputs {
            program: &program,
            companions: &companions,
            command,
            daemon: &daemon,
            kernels: &kernel,
            checkout: &checkout,
            epoch: epoch(&program)?,
        };
        for name in packaging::assemble(&inputs, &out, &|step| support::note!("{step}"))? {
            support::print(&format!("{}\n", out.join(name).display()))?;
        }
        Ok(())
    }
}

impl PortArgs {
    /// Creates the port's directory and prints the paths of its files.
    pub(super) fn run(self) -> miette::Result<()> {
        for name in packaging::openbsd_port(&self.checkout, &self.out)? {
            support::print(&format!("{}\n", self.out.join(name).display()))?;
        }
        Ok(())
    }
}

fn needs(binary: &Path, how: &str) -> miette::Result<()> {
    if binary.is_file() {
        return Ok(());
    }
    Err(miette!(help = format!("build it: {how}"), "{} does not exist", binary.display()))
}

/// The timestamp of packages, in seconds since 1970.
fn epoch(binary: &Path) -> miette::Result<u64> {
    if let Ok(text) = env::var("SOURCE_DATE_EPOCH") {
        return text.parse().into_diagnostic().wrap_err("SOURCE_DATE_EPOCH is not a number of seconds");
    }
    let modified = binary.metadata().and_then(|metadata| metadata.modified()).into_diagnostic()?;
    Ok(modified.duration_since(UNIX_EPOCH).into_diagnostic()?.as_secs())
}
