//! `vmmlinux package`: the guests' daemon, manual pages, and releases.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    time::UNIX_EPOCH,
};

use clap::Command;
use miette::{IntoDiagnostic, WrapErr, miette};

/// Where `make vmmcid-deb` has cargo put it.
const DAEMON: &str = "target/x86_64-unknown-linux-gnu/dist/vmmcid";
/// Where `make release` has cargo put the program.
const PROGRAM: &str = "target/x86_64-unknown-linux-gnu/dist-cli/vmmlinux";
/// The bench's init, which `vmmlinux bench` looks for beside it, and the doctor, to be copied into guests.
const COMPANIONS: [&str; 2] = ["vmmlinux-guest", "vmmlinux-doctor"];

/// Arguments of `vmmlinux package`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// The daemon for stock kernels: a Debian package, and a tarball for other distributions
    Vmmcid {
        /// The program, linked statically
        #[arg(long, value_name = "FILE", default_value = DAEMON)]
        binary: PathBuf,
        /// Where the packages go
        #[arg(long, value_name = "DIR", default_value = "out")]
        out: PathBuf,
    },
    /// The manual pages: vmmlinux.1, vmmlinux-run.1 and so on
    Man {
        /// Where they go
        dir: PathBuf,
    },
    /// A release: the program, the daemon, kernels and images, bills of materials, checksums
    ///
    /// The same bytes of the same inputs; all times in it are SOURCE_DATE_EPOCH, else that of the program's file.
    /// `make release` builds its inputs first.
    Release {
        /// The program, linked statically; what it needs is beside it
        #[arg(long, value_name = "FILE", default_value = PROGRAM)]
        program: PathBuf,
        /// The guests' daemon, linked statically
        #[arg(long, value_name = "FILE", default_value = DAEMON)]
        daemon: PathBuf,
        /// A kernel's output directory; its packages and qcow2 images are taken (may be repeated)
        #[arg(long, value_name = "BUILD")]
        kernel: Vec<PathBuf>,
        /// The checkout that all of it was built in
        #[arg(long, value_name = "DIR", default_value = ".")]
        checkout: PathBuf,
        /// The directory to make
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
    Err(miette!(help = format!("build it: {how}"), "there is no {}", binary.display()))
}

/// The time that packages bear, in seconds since 1970.
fn epoch(binary: &Path) -> miette::Result<u64> {
    if let Ok(text) = env::var("SOURCE_DATE_EPOCH") {
        return text.parse().into_diagnostic().wrap_err("SOURCE_DATE_EPOCH is no number of seconds");
    }
    let modified = binary.metadata().and_then(|metadata| metadata.modified()).into_diagnostic()?;
    Ok(modified.duration_since(UNIX_EPOCH).into_diagnostic()?.as_secs())
}
