//! What the subcommands that need a kernel source have in common.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use kernel_builder::{Cache, Forge, Options, Progress};
use miette::{Context, IntoDiagnostic};

/// Where sources come from.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Origin {
    /// Debian's linux-source package, by the system's apt
    Debian,
    /// A signed tarball
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
pub(crate) struct ForgeArgs {
    /// The directory with series.toml, config/ and patches/ [default: kernel/ of the checkout around the current directory]
    #[arg(long, value_name = "DIR", env = "VMMLINUX_KERNEL_DIR")]
    kernel_dir: Option<PathBuf>,
    /// Use only what the cache holds
    #[arg(long, conflicts_with = "update")]
    offline: bool,
    /// Take the newest release of the series, even if another was built before
    #[arg(long)]
    update: bool,
    /// Take the source from here [default: debian where apt knows it, else kernel.org]
    #[arg(long, value_enum)]
    origin: Option<Origin>,
}

impl ForgeArgs {
    /// The directory that holds the kernel's part of the repository.
    pub(crate) fn kernel_dir(&self) -> miette::Result<PathBuf> {
        if let Some(dir) = &self.kernel_dir {
            return std::path::absolute(dir).into_diagnostic().wrap_err("--kernel-dir is no path");
        }
        let here = std::env::current_dir().into_diagnostic().wrap_err("the current directory is gone")?;
        Ok(kernel_builder::find_kernel_dir(&here)?)
    }

    /// Whether there is a checkout around the current directory, or one is named.
    pub(crate) fn in_checkout(&self) -> bool {
        self.kernel_dir.is_some() || self.kernel_dir().is_ok()
    }

    /// A forge that draws its progress on the terminal.
    pub(crate) fn forge(&self) -> miette::Result<Forge> {
        let options = Options {
            offline: self.offline,
            update: self.update,
            origin: self.origin.map(Into::into),
            ..Options::new(self.kernel_dir()?)
        };
        Ok(Forge::new(options, Cache::user()?, Box::new(Bar::new()))?)
    }
}

/// Progress on standard error: a bar on a terminal, a line for each phase elsewhere.
pub(crate) struct Bar {
    bar: ProgressBar,
    /// Tenths that were reported where there is no terminal to draw on.
    tenths: AtomicU64,
}

impl Bar {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(spinner());
        Self { bar, tenths: AtomicU64::new(0) }
    }
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix} {wide_msg}").expect("a valid template")
}

fn counted() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} [{bar:30}] {percent}% ({pos}/{len}, {eta} left) {wide_msg}")
        .expect("a valid template")
        .progress_chars("=> ")
}

impl Progress for Bar {
    fn phase(&self, what: &str) {
        if self.bar.is_hidden() {
            support::note!("{what}");
        }
        self.tenths.store(0, Ordering::Relaxed);
        self.bar.set_style(spinner());
        self.bar.reset();
        self.bar.set_prefix(what.to_owned());
        self.bar.set_message("");
        self.bar.enable_steady_tick(Duration::from_millis(120));
    }

    fn step(&self, done: u64, total: u64, current: &str) {
        if total > 0 && self.bar.is_hidden() {
            let tenths = done * 10 / total;
            if self.tenths.fetch_max(tenths, Ordering::Relaxed) < tenths {
                support::note!("  {}%", tenths * 10);
            }
        } else if total > 0 {
            if self.bar.length() != Some(total) {
                self.bar.set_style(counted());
                self.bar.set_length(total);
            }
            self.bar.set_position(done);
        }
        self.bar.set_message(current.to_owned());
    }

    fn note(&self, what: &str) {
        if self.bar.is_hidden() {
            support::note!("{what}");
        } else {
            self.bar.println(what);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
