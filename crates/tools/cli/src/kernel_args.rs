//! The options of subcommands that need a kernel source.

use std::path::PathBuf;

use clap::ValueEnum;
use kernel_builder::{KernelBuilder, Options};
use miette::{Context, IntoDiagnostic};
use support::cache::Cache;

use crate::progress_bar::ProgressBar;

/// The origin of sources.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Origin {
    /// Debian's linux-source package, through the system's apt
    Debian,
    /// Signed tarball from kernel.org
    #[value(name = "kernel.org")]
    KernelOrg,
}

impl From<Origin> for kernel_builder::Origin {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Debian => Self::Debian,
            Origin::KernelOrg => Self::KernelOrg,
        }
    }
}

/// Options of every subcommand that prepares a source.
#[derive(clap::Args)]
pub(crate) struct KernelArgs {
    /// Directory with series.toml, config/ and patches/ [default: kernel/ of the checkout around the current directory]
    #[arg(long, value_name = "DIR", env = "VMMLINUX_KERNEL_DIR")]
    kernel_dir: Option<PathBuf>,
    /// Use only cached downloads
    #[arg(long, conflicts_with = "update")]
    offline: bool,
    /// Use the newest release of the series, even if an older one is cached
    #[arg(long)]
    update: bool,
    /// Origin of the source [default: debian if apt has the series, otherwise kernel.org]
    #[arg(long, value_enum)]
    origin: Option<Origin>,
}

impl KernelArgs {
    /// The directory with `series.toml`: the given one, or `kernel/` of the checkout.
    pub(crate) fn kernel_dir(&self) -> miette::Result<PathBuf> {
        if let Some(dir) = &self.kernel_dir {
            return std::path::absolute(dir).into_diagnostic().wrap_err("--kernel-dir is not a valid path");
        }
        let here = std::env::current_dir().into_diagnostic().wrap_err("cannot find the current directory")?;
        Ok(kernel_builder::find_kernel_dir(&here)?)
    }

    /// Whether a kernel directory is given or there is one in a checkout around the current directory.
    pub(crate) fn in_checkout(&self) -> bool {
        self.kernel_dir.is_some() || self.kernel_dir().is_ok()
    }

    /// A kernel builder that draws its progress on the terminal.
    pub(crate) fn builder(&self) -> miette::Result<KernelBuilder> {
        let options = Options {
            offline: self.offline,
            update: self.update,
            origin: self.origin.map(Into::into),
            ..Options::new(self.kernel_dir()?)
        };
        Ok(KernelBuilder::new(options, Cache::user()?, Box::new(ProgressBar::new()))?)
    }
}
