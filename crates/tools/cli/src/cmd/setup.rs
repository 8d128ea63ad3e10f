//! `vmmlinux setup`: installs the missing tools for kernels, images and guests.

use std::{fmt::Write as _, process::ExitCode};

use clap::ValueEnum;
use host_tools::{Plan, Purpose, Setup};
use kernel_builder::SeriesFile;
use support::cache::Cache;

use crate::{kernel_args::KernelArgs, progress_bar::ProgressBar};

/// Arguments of `vmmlinux setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    kernel: KernelArgs,
    /// Only the tools for this purpose (may be repeated) [default: build, image, machine; outside of a checkout the latter two]
    #[arg(long = "for", value_enum, value_name = "PURPOSE")]
    purposes: Vec<What>,
    /// Only list what is missing; the exit status is 1 if something is
    #[arg(long)]
    list: bool,
}

/// The purpose of tools.
#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Building kernels
    Build,
    /// Building kernel packages (`vmmlinux build --package deb`)
    Package,
    /// Creating disk images
    Image,
    /// Running guests
    Machine,
}

impl Args {
    /// Lists the missing tools and installs them.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let in_checkout = self.kernel.in_checkout();
        let mut purposes = Vec::new();
        for what in if self.purposes.is_empty() {
            if in_checkout {
                &[What::Build, What::Image, What::Machine][..]
            } else {
                &[What::Image, What::Machine]
            }
        } else {
            &self.purposes
        } {
            match what {
                What::Build => purposes.extend([Purpose::Build, Purpose::Rust]),
                What::Package => purposes.extend([Purpose::Build, Purpose::Rust, Purpose::Package]),
                What::Image => purposes.push(Purpose::Image),
                What::Machine => purposes.push(Purpose::Machine),
            }
        }
        let cache = Cache::user()?;
        let progress = ProgressBar::new();
        let setup = Setup::new(&cache, &progress);
        if !self.list {
            setup.fetch_lists_if_none(&purposes)?;
        }
        let plan = setup.plan(&purposes)?;
        if plan.is_empty() {
            support::print("nothing is missing\n")?;
            return Ok(ExitCode::SUCCESS);
        }
        support::print(&described(&plan))?;
        if self.list || !plan.debian {
            return Ok(ExitCode::FAILURE);
        }
        let suites = if in_checkout {
            SeriesFile::load(&self.kernel.kernel_dir()?)?.rust_src_suites
        } else {
            Vec::new()
        };
        setup.install(&plan, &suites)?;
        let left = setup.plan(&purposes)?;
        if left.is_empty() {
            support::print("everything is installed now\n")?;
            return Ok(ExitCode::SUCCESS);
        }
        support::print(&format!("\nstill {}", described(&left)))?;
        Ok(ExitCode::FAILURE)
    }
}

fn described(plan: &Plan) -> String {
    let mut text = "missing:\n".to_owned();
    for tool in &plan.missing {
        let min = tool.min.map(|min| format!(" {min} or newer")).unwrap_or_default();
        let _ = writeln!(text, "  {:<28} {}", format!("{}{min}", tool.name), tool.why);
    }
    let mut tell = |what: &str| text.extend([what, "\n"]);
    if !plan.debian {
        tell("\nInstall these with your distribution's tools: setup installs only Debian's packages.");
        return text;
    }
    let list = |names: &std::collections::BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(" ");
    if !plan.packages.is_empty() {
        tell(&format!("to install: {}", list(&plan.packages)));
    }
    if !plan.backports.is_empty() {
        tell(&format!("to install from backports: {}", list(&plan.backports)));
    }
    if plan.bindgen {
        tell("to build with cargo into the cache: bindgen-cli");
    }
    if plan.rust_src {
        tell(
            "to download into the cache for the installed rustc: rust-src (rustup's component, otherwise Debian's package)",
        );
    }
    text
}
