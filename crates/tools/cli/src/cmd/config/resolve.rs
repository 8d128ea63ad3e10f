//! The parts of `vmmlinux config` that need a kernel's source and its make.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use kconfig::{Backends, Fragments, Host, Resolve, Resolved, Selection, Tree, Workload};
use kernel_builder::PreparedTree;
use miette::{Context, IntoDiagnostic};
use tempfile::TempDir;

use crate::kernel_args::KernelArgs;

/// The series, hosts and workloads that a kernel is configured for.
#[derive(clap::Args)]
pub(super) struct SelectionArgs {
    /// Kernel series
    #[arg(long, default_value = "7.3")]
    series: String,
    /// OpenBSD releases of the host, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "HOST")]
    host: Vec<Host>,
    /// Workloads, separated by commas; core is always included [default: core,systemd,containers]
    #[arg(long, value_delimiter = ',', value_name = "WORKLOAD")]
    workload: Vec<Workload>,
}

impl SelectionArgs {
    /// The selection, with defaults filled in.
    pub(super) fn selection(&self) -> Selection {
        let mut selection = Selection::new(&self.series);
        if !self.host.is_empty() {
            selection.hosts = self.host.iter().copied().collect();
        }
        if !self.workload.is_empty() {
            selection.workloads = self.workload.iter().copied().collect();
        }
        selection
    }
}

/// Where the kernel source is.
#[derive(clap::Args)]
pub(super) struct TreeArgs {
    /// Kernel source tree, which is not modified [default: the prepared source of the series]
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Variable for the kernel's make, such as CC=gcc-14
    #[arg(long = "make-var", value_name = "NAME=VALUE", value_parser = make_var)]
    make_vars: Vec<(String, String)>,
    #[command(flatten)]
    kernel: KernelArgs,
}

fn make_var(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A source tree, kept locked as long as it is used unless it is the user's.
enum Source {
    User(PathBuf),
    Prepared(Box<PreparedTree>),
}

impl Source {
    fn path(&self) -> &Path {
        match self {
            Self::User(path) => path,
            Self::Prepared(tree) => &tree.path,
        }
    }
}

impl TreeArgs {
    fn source(&self, series: &str) -> miette::Result<Source> {
        match &self.tree {
            Some(dir) => Ok(Source::User(
                std::path::absolute(dir).into_diagnostic().wrap_err("--tree is not a valid path")?,
            )),
            None => Ok(Source::Prepared(Box::new(self.kernel.builder()?.prepare(series)?))),
        }
    }

    /// A resolver for selections of one series, with a temporary build directory of its own.
    fn resolver<'a>(
        &self,
        source: &'a Source,
        series: &str,
        fragments: &'a Fragments,
    ) -> miette::Result<Resolver<'a>> {
        let build_dir = tempfile::Builder::new()
            .prefix("vmmlinux-config-")
            .tempdir()
            .into_diagnostic()
            .wrap_err("cannot create a temporary build directory")?;
        // The toolchain determines symbols such as CONFIG_RUST. A tree of the user's may be configured without ours.
        let mut make_vars = match (self.kernel.builder()?.toolchain(series, false), &self.tree) {
            (Ok(toolchain), _) => toolchain.make_vars,
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(_)) => {
                tracing::warn!("{error}");
                Vec::new()
            }
        };
        make_vars.extend(self.make_vars.iter().cloned());
        Ok(Resolver { source, build_dir, make_vars, fragments })
    }

    /// The fragments beside the series file where there is one, else those built in.
    fn fragments(&self) -> miette::Result<Fragments> {
        match self.kernel.kernel_dir() {
            Ok(dir) if dir.join("config").is_dir() => Ok(Fragments::load(&dir.join("config"))?),
            _ => Ok(Fragments::builtin()?),
        }
    }
}

/// Resolves selections of one series.
struct Resolver<'a> {
    source: &'a Source,
    build_dir: TempDir,
    make_vars: Vec<(String, String)>,
    fragments: &'a Fragments,
}

impl Resolver<'_> {
    /// Resolves a selection; with the tree's sources, checks what is asked for at run time, too.
    fn resolve(&self, selection: &Selection, backends: Option<&Backends>) -> miette::Result<Resolved> {
        let job = Resolve {
            tree: self.source.path(),
            build_dir: self.build_dir.path(),
            make_vars: &self.make_vars,
            fragments: self.fragments,
            selection,
            backends,
        };
        let resolved = kconfig::resolve(&job).wrap_err_with(|| format!("cannot configure {selection}"))?;
        for mismatch in &resolved.tolerated {
            tracing::warn!("{mismatch}");
        }
        Ok(resolved)
    }
}

/// Prints the configuration of a selection.
pub(super) fn show(
    out: &mut Vec<u8>,
    selection: &Selection,
    resolved: bool,
    tree: &TreeArgs,
) -> miette::Result<ExitCode> {
    let fragments = tree.fragments()?;
    if resolved {
        let source = tree.source(&selection.series)?;
        let resolved = tree.resolver(&source, &selection.series, &fragments)?.resolve(selection, None)?;
        for (symbol, value) in resolved.config.set() {
            writeln!(out, "{}", value.line(symbol)).into_diagnostic()?;
        }
    } else {
        out.extend(fragments.requests(selection).to_config().into_bytes());
    }
    Ok(ExitCode::SUCCESS)
}

/// Explains the values of symbols.
pub(super) fn explain(
    out: &mut Vec<u8>,
    symbols: &[String],
    selection: &Selection,
    tree: &TreeArgs,
) -> miette::Result<ExitCode> {
    let fragments = tree.fragments()?;
    let source = tree.source(&selection.series)?;
    let config = tree.resolver(&source, &selection.series, &fragments)?.resolve(selection, None)?.config;
    let kconfig = Tree::load(source.path())?;
    writeln!(out, "{selection}").into_diagnostic()?;
    for symbol in symbols {
        let explanation = kconfig::explain(symbol, &config, &kconfig, &fragments, selection);
        write!(out, "{explanation}").into_diagnostic()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Resolves every selection of one series, or of all.
pub(super) fn check(out: &mut Vec<u8>, series: Option<String>, tree: &TreeArgs) -> miette::Result<ExitCode> {
    let fragments = tree.fragments()?;
    let mut failed = 0_usize;
    let all: Vec<String> = match (series, &tree.tree) {
        (Some(series), _) => vec![series],
        (None, Some(_)) => vec!["7.3".to_owned()],
        (None, None) => tree.kernel.builder()?.series().series.keys().cloned().collect(),
    };
    for series in all {
        let source = tree.source(&series)?;
        let resolver = tree.resolver(&source, &series, &fragments)?;
        let kconfig = Tree::load(source.path())?;
        let backends = Backends::load(source.path());
        for selection in fragments.selections(&series) {
            let requests = fragments.requests(&selection);
            let unknown = kconfig::unknown(&requests, &kconfig);
            if !unknown.is_empty() {
                miette::bail!(
                    help = "correct the name, or limit the entry to the series that have the symbol",
                    "{selection}: Linux {series} has no symbol {}",
                    unknown.join(", ")
                );
            }
            match resolver.resolve(&selection, Some(&backends)) {
                Ok(made) => {
                    let (requested, set) = (made.requests.len(), made.config.set().count());
                    writeln!(out, "{selection}: {requested} requested, {set} set").into_diagnostic()?;
                }
                Err(error) => {
                    support::note!("{error:?}");
                    failed += 1;
                }
            }
        }
    }
    if failed > 0 {
        miette::bail!(
            help = "correct the entries of kernel/config as told above",
            "{failed} selections cannot be configured"
        );
    }
    Ok(ExitCode::SUCCESS)
}
