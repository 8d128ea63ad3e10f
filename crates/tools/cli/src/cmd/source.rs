//! `vmmlinux source`: a series' patched tree, to read or to develop against.

use std::process::ExitCode;

use crate::forging::ForgeArgs;

/// Arguments of `vmmlinux source`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    forging: ForgeArgs,
    /// Kernel series [default: the one kernel/series.toml says]
    #[arg(long)]
    series: Option<String>,
}

impl Args {
    /// Prepares the tree and prints its path.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let forge = self.forging.forge()?;
        let series = self.series.unwrap_or_else(|| forge.series().default.clone());
        let tree = forge.prepare(&series)?;
        support::print(&format!("{}\n", tree.path.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}
