//! `vmmlinux source`: prepares the patched source tree of a series.

use std::process::ExitCode;

use crate::kernel_args::KernelArgs;

/// Arguments of `vmmlinux source`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    kernel: KernelArgs,
    /// Kernel series [default: the one in kernel/series.toml]
    #[arg(long)]
    series: Option<String>,
}

impl Args {
    /// Prepares the tree and prints its path.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let builder = self.kernel.builder()?;
        let series = builder.series().name_or_default(self.series.as_deref());
        let tree = builder.prepare(&series)?;
        support::print(&format!("{}\n", tree.path.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
