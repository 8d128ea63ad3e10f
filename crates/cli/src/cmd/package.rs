//! `vmmlinux package`: packages of what is installed in guests.

use std::{env, path::PathBuf, process::ExitCode, time::UNIX_EPOCH};

use miette::{IntoDiagnostic, WrapErr, miette};

/// Where `make vmmcid-deb` has cargo put it.
const BINARY: &str = "target/x86_64-unknown-linux-gnu/dist/vmmcid";

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
        #[arg(long, value_name = "FILE", default_value = BINARY)]
        binary: PathBuf,
        /// Where the packages go
        #[arg(long, value_name = "DIR", default_value = "out")]
        out: PathBuf,
    },
}

impl Args {
    /// Makes the packages and says where they are.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let What::Vmmcid { binary, out } = self.what;
        if !binary.is_file() {
            return Err(miette!(
                help = "build it: cargo build --profile dist -p vmmcid; `make vmmcid-deb` does both",
                "there is no {}",
                binary.display()
            ));
        }
        let epoch = if let Ok(text) = env::var("SOURCE_DATE_EPOCH") {
            text.parse().into_diagnostic().wrap_err("SOURCE_DATE_EPOCH is no number of seconds")?
        } else {
            let modified = binary.metadata().and_then(|metadata| metadata.modified()).into_diagnostic()?;
            modified.duration_since(UNIX_EPOCH).into_diagnostic()?.as_secs()
        };
        let packages = forge::package_daemon(&binary, epoch, &out)?;
        println!("{}\n{}", packages.deb.display(), packages.tarball.display());
        Ok(ExitCode::SUCCESS)
    }
}
