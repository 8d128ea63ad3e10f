//! `vmmlinux build`: from a series to a kernel in `out/`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::ValueEnum;
use forge::{BoxedDiagnostic, Configuration, Error, Request};
use kconfig::{Fragments, Host, Resolve, Selection, Workload};
use miette::{Context, IntoDiagnostic};

use crate::forging::ForgeArgs;

/// Arguments of `vmmlinux build`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    forging: ForgeArgs,
    /// Kernel series [default: the one kernel/series.toml says]
    #[arg(long)]
    series: Option<String>,
    /// Name of the directory in --out [default: the series, and the workloads and hosts if they are chosen]
    #[arg(long)]
    name: Option<String>,
    /// What the guest is for: core, systemd, containers, vpn, filesystems, debug
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',', default_values_t = [Workload::Core, Workload::Systemd, Workload::Containers])]
    workload: Vec<Workload>,
    /// OpenBSD releases whose vmd it must run on [default: all]
    #[arg(long, value_name = "RELEASE", value_delimiter = ',')]
    host: Vec<Host>,
    /// Build this tree instead of the series' release; it is not modified
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Commands to run at a time [default: one for each CPU]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Make a package of it, too
    #[arg(long, value_enum)]
    package: Option<Package>,
    /// Compile each file by itself, as the kernel's make does alone; common headers are otherwise parsed once
    #[arg(long)]
    no_prelude: bool,
    /// Where output directories are
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
}

/// Package formats.
#[derive(Clone, Copy, ValueEnum)]
enum Package {
    /// Debian packages
    Deb,
    /// A tar archive
    Tar,
}

impl Args {
    /// Builds and says what came out.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let out = std::path::absolute(&self.out).into_diagnostic().wrap_err("--out is no path")?;
        let forge = self.forging.forge()?;
        let series = self.series.clone().unwrap_or_else(|| forge.series().default.clone());
        let mut selection = Selection::new(&series);
        let usual = selection.clone();
        selection.workloads = self.workload.iter().copied().collect();
        if !self.host.is_empty() {
            selection.hosts = self.host.iter().copied().collect();
        }
        let name = self.name.clone().unwrap_or_else(|| self.default_name(&selection, &usual));
        let fragments = Fragments::load(&forge.kernel_dir().join("config"))?;
        let request = Request {
            series: &series,
            name: &name,
            out: &out,
            tree: self.tree.as_deref(),
            configuration: &Curated { fragments, selection },
            jobs: self.jobs.map(usize::from),
            package: self.package.map(|package| match package {
                Package::Deb => forge::Package::Deb,
                Package::Tar => forge::Package::Tar,
            }),
            prelude: !self.no_prelude,
        };
        let built = match forge.build(&request) {
            Err(stopped @ Error::Interrupted { .. }) => {
                stdio::note!("{:?}", miette::Report::from(stopped));
                // As a shell reports a program that SIGINT ended.
                return Ok(ExitCode::from(130));
            }
            other => other?,
        };
        // The progress display goes before the summary.
        drop(forge);
        let dir = self.out.join(&name);
        if built.up_to_date {
            stdio::note!("{}: Linux {} is up to date", dir.display(), built.manifest.release);
        } else {
            let image = built.manifest.files.get("bzImage").map_or(0, |file| file.size);
            stdio::note!(
                "{}: Linux {}, bzImage {} KiB, compiled in {:.0} s",
                dir.display(),
                built.manifest.release,
                image.div_ceil(1024),
                built.manifest.times.compile_seconds
            );
        }
        stdio::print(&format!("{}\n", dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }

    fn default_name(&self, selection: &Selection, usual: &Selection) -> String {
        let mut name = match &self.tree {
            Some(tree) => tree.file_name().unwrap_or("tree".as_ref()).to_string_lossy().into_owned(),
            None => selection.series.clone(),
        };
        let mut add = |words: Vec<String>| {
            for word in words {
                name.push('-');
                name.push_str(&word);
            }
        };
        if selection.workloads != usual.workloads {
            let beyond_core: BTreeSet<_> =
                selection.workloads.iter().filter(|w| **w != Workload::Core).collect();
            if beyond_core.is_empty() {
                add(vec![Workload::Core.to_string()]);
            } else {
                add(beyond_core.into_iter().map(ToString::to_string).collect());
            }
        }
        if selection.hosts != usual.hosts {
            add(selection.hosts.iter().map(ToString::to_string).collect());
        }
        name
    }
}

/// The curated configuration of `kernel/config/`.
struct Curated {
    fragments: Fragments,
    selection: Selection,
}

impl Configuration for Curated {
    /// What is requested; the reasons may change without a build.
    fn identity(&self) -> Result<String, BoxedDiagnostic> {
        Ok(self.fragments.requests(&self.selection).to_config())
    }

    fn configure(
        &self,
        tree: &Path,
        build_dir: &Path,
        make_vars: &[(String, String)],
    ) -> Result<(), BoxedDiagnostic> {
        let job =
            Resolve { tree, build_dir, make_vars, fragments: &self.fragments, selection: &self.selection };
        match kconfig::resolve(&job) {
            Ok(_) => Ok(()),
            Err(error) => Err(Box::new(error)),
        }
    }
}
