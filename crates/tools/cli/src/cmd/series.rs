//! `vmmlinux series`: the kernel patches checked, rebased, written back, and exported.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;
use kconfig::{Fragments, Selection};
use kernel_builder::KernelBuilder;
use kernel_series::{
    BoxedError, Check, Compile, Export, Identity, Overlay, Rebase, Refresh, Release, Stack, Toolchain,
};
use miette::{Context, IntoDiagnostic, miette};
use serde::Serialize;

use crate::kernel_args::KernelArgs;

/// Arguments of `vmmlinux series`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Apply the patches one by one and check each
    ///
    /// Each patch must apply by `git am`, name the blobs of the tree, pass the tree's scripts/checkpatch.pl --strict, and
    /// compile with and without our options; objects of a defconfig must not change unless its notes say why. The exit
    /// status is 1 if a patch fails. Results are kept in the cache and used until something they depend on changes.
    Check(CheckArgs),
    /// Carry the patches to another kernel in a git tree, and report which hunks need a person
    Rebase(RebaseArgs),
    /// Write the commits of a rebased tree back to kernel/patches
    Refresh(RefreshArgs),
    /// Write patches as `git send-email` and b4 take them
    Export(ExportArgs),
}

#[derive(clap::Args)]
struct CheckArgs {
    #[command(flatten)]
    kernel: KernelArgs,
    /// Kernel series [default: all of kernel/series.toml]
    #[arg(long, value_delimiter = ',')]
    series: Vec<String>,
    /// Report only patches whose group/file contains this
    #[arg(long, value_name = "NAME")]
    patch: Option<String>,
    /// Compile nothing
    #[arg(long)]
    no_compile: bool,
    /// Commands to run at a time [default: one for each CPU]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct RebaseArgs {
    #[command(flatten)]
    kernel: KernelArgs,
    /// Kernel series whose patches are carried [default: the one in kernel/series.toml]
    #[arg(long)]
    series: Option<String>,
    /// The kernel to carry them to: a series of kernel/series.toml, a source tree, a source tarball, or a linux-source package
    #[arg(long, value_name = "SERIES|TREE|TARBALL")]
    onto: String,
    /// The git tree to make [default: out/rebase-VERSION]
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct RefreshArgs {
    #[command(flatten)]
    kernel: KernelArgs,
    /// Kernel series that the tree is of [default: the one in kernel/series.toml]
    #[arg(long)]
    series: Option<String>,
    /// The git tree of `vmmlinux series rebase`
    #[arg(long, value_name = "DIR")]
    tree: PathBuf,
}

#[derive(clap::Args)]
struct ExportArgs {
    #[command(flatten)]
    kernel: KernelArgs,
    /// Group of kernel/patches/stack.toml, or `overlay`: the drivers of kernel/overlay
    group: String,
    /// Kernel series that they are exported for [default: the one in kernel/series.toml]
    #[arg(long)]
    series: Option<String>,
    /// The commit of the maintainers' repository that the release is
    #[arg(long, value_name = "COMMIT")]
    base_commit: Option<String>,
    /// The directory to make [default: out/mail-GROUP]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl Args {
    /// Runs the subcommand.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        match self.command {
            Command::Check(args) => args.run(),
            Command::Rebase(args) => args.run(),
            Command::Refresh(args) => args.run(),
            Command::Export(args) => args.run(),
        }
    }
}

fn json(value: &impl Serialize) -> miette::Result<()> {
    let text = serde_json::to_string_pretty(value).into_diagnostic()?;
    Ok(support::print(&(text + "\n"))?)
}

impl CheckArgs {
    fn run(self) -> miette::Result<ExitCode> {
        let builder = self.kernel.builder()?;
        let stack = builder.stack()?;
        let series = if self.series.is_empty() {
            builder.series().series.keys().cloned().collect()
        } else {
            self.series.clone()
        };
        let mut reports = Vec::new();
        for series in &series {
            reports.push(self.check(&builder, &stack, series)?);
        }
        drop(builder);
        if self.json {
            json(&reports)?;
        } else {
            support::print(&reports.iter().map(kernel_series::Report::text).collect::<String>())?;
        }
        let clean = reports.iter().all(kernel_series::Report::is_clean);
        Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn check(
        &self,
        builder: &KernelBuilder,
        stack: &Stack,
        series: &str,
    ) -> miette::Result<kernel_series::Report> {
        let release = builder.released(series)?;
        let rust = builder.series().get(series)?.rust;
        let overlay = overlay(builder)?;
        let compile = if self.no_compile {
            None
        } else {
            let toolchain = builder.toolchain(series, false)?;
            let fragments = Fragments::load(&builder.kernel_dir().join("config"))?;
            let identity: Vec<String> =
                toolchain.versions.iter().map(|(tool, version)| format!("{tool} {version}")).collect();
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            Some(Compile {
                toolchain: Toolchain {
                    path: toolchain.path,
                    make_vars: toolchain.make_vars,
                    identity: identity.join("\n"),
                    jobs: self.jobs.map_or(cpus, usize::from),
                },
                ours: fragments.requests(&Selection::new(series)).to_config(),
                rust,
                overlay: (rust && !overlay.files.is_empty()).then_some(&overlay),
            })
        };
        Ok(kernel_series::check(&Check {
            stack,
            series,
            is_default: *series == builder.series().default,
            release: &release,
            cache: builder.cache(),
            compile,
            only: self.patch.as_deref(),
            progress: builder.progress(),
        })?)
    }
}

impl RebaseArgs {
    fn run(self) -> miette::Result<ExitCode> {
        let builder = self.kernel.builder()?;
        let series = builder.series().name_or_default(self.series.as_deref());
        let onto = release(&builder, &self.onto)?;
        let tree = self.tree.clone().unwrap_or_else(|| PathBuf::from(format!("out/rebase-{}", onto.version)));
        let tree = std::path::absolute(&tree).into_diagnostic().wrap_err("--tree is no path")?;
        let survey = kernel_series::rebase(&Rebase {
            stack: &builder.stack()?,
            series: &series,
            from: &builder.released(&series)?,
            onto: &onto,
            cache: builder.cache(),
            tree: &tree,
            progress: builder.progress(),
        })?;
        drop(builder);
        if self.json {
            json(&survey)?;
        } else {
            support::print(&survey.text())?;
        }
        Ok(if survey.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The overlay of the kernel directory.
fn overlay(builder: &KernelBuilder) -> miette::Result<Overlay<'_>> {
    let lay = |tree: &Path| builder.lay_overlay(tree).map_err(|e| Box::new(e) as BoxedError);
    Ok(Overlay { files: builder.overlay_files()?, lay: Box::new(lay) })
}

/// The kernel that a series, a tree or a tarball is.
fn release(builder: &KernelBuilder, onto: &str) -> miette::Result<Release> {
    if builder.series().series.contains_key(onto) {
        return Ok(builder.released(onto)?);
    }
    let path = Path::new(onto);
    if path.exists() {
        return Ok(builder.release_at(path)?);
    }
    Err(miette!(
        help =
            "name a series of kernel/series.toml, a directory with a kernel source tree, or a tarball of one",
        "{onto} is neither a series nor a file or directory"
    ))
}

impl RefreshArgs {
    fn run(self) -> miette::Result<ExitCode> {
        let builder = self.kernel.builder()?;
        let series = builder.series().name_or_default(self.series.as_deref());
        let tree = std::path::absolute(&self.tree).into_diagnostic().wrap_err("--tree is no path")?;
        let refreshed = kernel_series::refresh(&Refresh {
            stack: &builder.stack()?,
            is_default: series == builder.series().default,
            series: &series,
            tree: &tree,
        })?;
        drop(builder);
        for (what, files) in [("written", &refreshed.written), ("removed", &refreshed.removed)] {
            for file in files {
                support::note!("{what}: kernel/patches/{file}");
            }
        }
        for patch in &refreshed.dropped {
            support::note!(
                "{patch} is not in the tree: remove it, or name it in [without.\"{series}\"] of stack.toml"
            );
        }
        support::note!("{} files written, {} removed", refreshed.written.len(), refreshed.removed.len());
        Ok(ExitCode::SUCCESS)
    }
}

impl ExportArgs {
    fn run(self) -> miette::Result<ExitCode> {
        let here = std::env::current_dir().into_diagnostic().wrap_err("the current directory is gone")?;
        let identity = Identity::of(&here)?;
        let builder = self.kernel.builder()?;
        let series = builder.series().name_or_default(self.series.as_deref());
        let output = self.output.clone().unwrap_or_else(|| PathBuf::from(format!("out/mail-{}", self.group)));
        let overlay = overlay(&builder)?;
        let exported = kernel_series::export(&Export {
            stack: &builder.stack()?,
            series: &series,
            release: &builder.released(&series)?,
            group: &self.group,
            overlay: Some(&overlay),
            identity: &identity,
            base_commit: self.base_commit.as_deref(),
            cache: builder.cache(),
            output: &output,
            progress: builder.progress(),
        })?;
        drop(overlay);
        drop(builder);
        for file in &exported.files {
            support::print(&format!("{}\n", exported.dir.join(file).display()))?;
        }
        if !exported.base_is_public {
            support::note!(
                "base-commit is a commit of this machine's: name the maintainers' one by --base-commit before mailing"
            );
        }
        support::note!(
            "{} files for {} maintainers and {} others; look at them, then `git send-email {}/*.patch`",
            exported.files.len(),
            exported.to.len(),
            exported.cc.len(),
            exported.dir.display()
        );
        Ok(ExitCode::SUCCESS)
    }
}
