//! `vmmlinux package`: the guests' daemon, manual pages, and releases.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
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

/// Arguments of `vmmlinux package`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Create packages of the daemon for stock kernels: a Debian package, and a tarball for other distributions
    Vmmcid {
        /// Statically linked vmmcid
        #[arg(long, value_name = "FILE", default_value = DAEMON)]
        binary: PathBuf,
        /// Directory for the packages
        #[arg(long, value_name = "DIR", default_value = "out")]
        out: PathBuf,
    },
    /// Write the manual pages: vmmlinux.1, vmmlinux-run.1 and so on
    Man {
        /// Directory for the manual pages
        dir: PathBuf,
    },
    /// Create a release: program, daemon, kernels, images, bills of materials, checksums
    ///
    /// Reproducible: the same inputs give the same bytes. All timestamps are SOURCE_DATE_EPOCH, by default the
    /// modification time of the program.
    /// `make release` builds its inputs first.
    Release {
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
    },
}

impl Args {
    /// Makes the packages and prints their paths. `command` is the definition of the whole command line.
    pub(crate) fn run(self, command: Command) -> miette::Result<ExitCode> {
        match self.what {
            What::Vmmcid { binary, out } => {
                needs(&binary, "cargo build --profile dist -p vmmcid; `make vmmcid-deb` does both")?;
                let packages = packaging::package_daemon(&binary, epoch(&binary)?, &out)?;
                support::print(&format!("{}\n{}\n", packages.deb.display(), packages.tarball.display()))?;
            }
            What::Man { dir } => packaging::manuals(command, &dir)?,
            What::Release { program, daemon, kernel, checkout, out } => {
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
            }
        }
        Ok(ExitCode::SUCCESS)
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
