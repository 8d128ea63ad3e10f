//! `vmmlinux config`: shows, explains and checks the curated kernel configuration, and audits other kernels'.

mod audit;
#[cfg(target_os = "linux")]
mod resolve;

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use clap::Subcommand;
use kconfig::{Difference, DotConfig, Fragments, Origin, Selection, Values, Workload};
use miette::{Context, IntoDiagnostic};

#[cfg(target_os = "openbsd")]
use support::sandbox::Access;

#[cfg(target_os = "linux")]
use resolve::{SelectionArgs, TreeArgs};

/// Arguments of `vmmlinux config`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the configuration of a selection
    #[cfg(target_os = "linux")]
    Show {
        #[command(flatten)]
        selection: SelectionArgs,
        /// Complete the configuration with the kernel's make and print every symbol that is set, not only those requested
        #[arg(long)]
        resolved: bool,
        #[command(flatten)]
        tree: TreeArgs,
    },
    /// Explain the values of symbols
    #[cfg(target_os = "linux")]
    Explain {
        /// Symbols, with or without CONFIG_
        #[arg(required = true)]
        symbols: Vec<String>,
        #[command(flatten)]
        selection: SelectionArgs,
        #[command(flatten)]
        tree: TreeArgs,
    },
    /// Compare two configurations: files, build or output directories, or selections such as 7.3:7.8,7.9:core,vpn
    Diff {
        /// First configuration
        a: String,
        /// Second configuration
        b: String,
    },
    /// List the entries of the configuration fragments
    List {
        /// Include the reasons
        #[arg(long)]
        why: bool,
        /// Print the book's configuration reference: Markdown with the reasons
        #[arg(long)]
        markdown: bool,
        /// Limit the list to this workload
        #[arg(long)]
        only: Option<Workload>,
    },
    /// Resolve every selection and verify that each request took effect and that what is built finds what it asks for
    #[cfg(target_os = "linux")]
    Check {
        /// Series to check [default: every tracked one; 7.3 with --tree]
        #[arg(long)]
        series: Option<String>,
        #[command(flatten)]
        tree: TreeArgs,
    },
    /// Audit a kernel's configuration for use in a vmd guest
    ///
    /// Reads a .config, a /boot/config-* or a /proc/config.gz. The exit status is 0 for notes only, 2 if something does
    /// not work or works badly, 3 if the guest does not boot or crashes, and 1 if the file could not be audited.
    Audit(audit::Args),
}

impl Args {
    /// The files that the subcommand reads.
    #[cfg(target_os = "openbsd")]
    pub(crate) fn access(&self) -> Access<'_> {
        match &self.command {
            Command::Audit(args) => Access::Read(vec![args.file()]),
            Command::Diff { a, b } => Access::Read(vec![Path::new(a), Path::new(b)]),
            Command::List { .. } => Access::Streams,
        }
    }

    /// Runs the subcommand and writes its output at its end.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let mut out = Vec::new();
        let code = match self.command {
            #[cfg(target_os = "linux")]
            Command::Show { selection, resolved, tree } => {
                resolve::show(&mut out, &selection.selection(), resolved, &tree)
            }
            #[cfg(target_os = "linux")]
            Command::Explain { symbols, selection, tree } => {
                resolve::explain(&mut out, &symbols, &selection.selection(), &tree)
            }
            Command::Diff { a, b } => diff(&mut out, &a, &b),
            Command::List { markdown: true, only, .. } => list_markdown(&mut out, only),
            Command::List { why, only, .. } => list(&mut out, why, only),
            #[cfg(target_os = "linux")]
            Command::Check { series, tree } => resolve::check(&mut out, series, &tree),
            Command::Audit(args) => args.run(&mut out),
        }?;
        support::write(&mut io::stdout(), &out)?;
        Ok(code)
    }
}

/// One side of a comparison: a configuration, a directory with one, or a selection.
fn values(operand: &str) -> miette::Result<Values> {
    let path = Path::new(operand);
    let in_dir = ["config", ".config"].into_iter().map(|name| path.join(name)).find(|file| file.is_file());
    if let Some(file) = in_dir.or_else(|| path.is_file().then(|| path.to_owned())) {
        return Ok(Values::from(&DotConfig::load(&file)?));
    }
    let selection: Selection = operand.parse().into_diagnostic().wrap_err_with(|| {
        format!("`{operand}` is neither a configuration, nor a directory with one, nor a selection such as 7.3:7.8,7.9:core,vpn")
    })?;
    Ok(Values::from(&Fragments::builtin()?.requests(&selection)))
}

fn diff(out: &mut Vec<u8>, a: &str, b: &str) -> miette::Result<ExitCode> {
    for Difference { symbol, from, to } in kconfig::diff(&values(a)?, &values(b)?) {
        writeln!(out, "{symbol}: {from} -> {to}").into_diagnostic()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The entries of one workload, or of all, sorted by workload.
fn entries(fragments: &Fragments, only: Option<Workload>) -> Vec<&Origin> {
    let mut entries: Vec<_> =
        fragments.entries().iter().filter(|origin| only.is_none_or(|w| origin.workload == w)).collect();
    entries.sort_by_key(|origin| origin.workload);
    entries
}

fn list(out: &mut Vec<u8>, why: bool, only: Option<Workload>) -> miette::Result<ExitCode> {
    let fragments = Fragments::builtin()?;
    for origin in entries(&fragments, only) {
        if why {
            writeln!(out, "{origin}")
        } else {
            writeln!(out, "{}={} ({})", origin.symbol, origin.value, origin.workload)
        }
        .into_diagnostic()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a Markdown page with one table per workload.
fn list_markdown(out: &mut Vec<u8>, only: Option<Workload>) -> miette::Result<ExitCode> {
    let fragments = Fragments::builtin()?;
    writeln!(
        out,
        "# Configuration reference\n\nEvery symbol that a vmmlinux kernel requests, with the reason. Kconfig derives \
         all others. Generated from `kernel/config` by `vmmlinux config list --markdown`."
    )
    .into_diagnostic()?;
    // Escapes cell separators and tags.
    let cell = |text: &str| text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ");
    let mut workload = None;
    for origin in entries(&fragments, only) {
        if workload != Some(origin.workload) {
            workload = Some(origin.workload);
            writeln!(
                out,
                "\n## {}\n\n| symbol | value | only for | why |\n|---|---|---|---|",
                origin.workload
            )
            .into_diagnostic()?;
        }
        let mut only_for: Vec<_> =
            origin.series.iter().flatten().map(|series| format!("Linux {series}")).collect();
        only_for.extend(origin.hosts.iter().flatten().map(|host| format!("OpenBSD {host}")));
        let (value, why) = (cell(&origin.value.to_string()), cell(&origin.why));
        writeln!(out, "| `{}` | `{value}` | {} | {why} |", origin.symbol, only_for.join(", "))
            .into_diagnostic()?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_has_a_row_for_each_entry() {
        let mut page = Vec::new();
        list_markdown(&mut page, None).unwrap();
        let page = String::from_utf8(page).unwrap();
        let rows = page.lines().filter(|line| line.starts_with("| `")).collect::<Vec<_>>();
        assert_eq!(rows.len(), Fragments::builtin().unwrap().entries().len());
        // Four cells, whatever is in them.
        assert!(rows.iter().all(|row| row.replace("\\|", "").matches('|').count() == 5));
        assert!(page.contains("\n## core\n"));
    }

    #[test]
    fn a_selection_is_compared_with_a_file_in_what_it_names() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "CONFIG_VIRTIO_BLK=m\nCONFIG_SOUND=y\n").unwrap();
        let mut out = Vec::new();
        diff(&mut out, file.path().to_str().unwrap(), "7.3:7.8:core").unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("VIRTIO_BLK: m -> y\n"), "{text}");
        assert!(!text.contains("SOUND"), "{text}");
        let mut out = Vec::new();
        diff(&mut out, "7.3:7.9:core", "7.3:8.0:core").unwrap();
        assert!(String::from_utf8(out).unwrap().contains("ACPI: n -> y\n"));
    }
}
