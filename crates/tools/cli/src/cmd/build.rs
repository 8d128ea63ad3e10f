//! `vmmlinux build`: from a series to a kernel in `out/`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::ValueEnum;
use kconfig::{Backends, Fragments, Given, Host, Resolve, Selection, Workload};
use kernel_builder::{BoxedDiagnostic, Built, Configuration, Error, MakeError, Request};
use miette::{Context, IntoDiagnostic};

use crate::kernel_args::KernelArgs;

/// Arguments of `vmmlinux build`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    kernel: KernelArgs,
    /// Kernel series [default: the one in kernel/series.toml]
    #[arg(long)]
    series: Option<String>,
    /// Name of the directory in --out [default: the series, with workloads and hosts that differ from the default, or
    /// `packaged` for all workloads but debug]
    #[arg(long)]
    name: Option<String>,
    /// Workloads of the guest: core, systemd, containers, vpn, firewall, roots, filesystems, debug [default:
    /// core,systemd,containers; with --package all but debug]
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',')]
    workload: Vec<Workload>,
    /// OpenBSD releases whose vmd must run the kernel [default: all]
    #[arg(long, value_name = "RELEASE", value_delimiter = ',')]
    host: Vec<Host>,
    /// Use this configuration instead of the project's: files, of which later ones win, optionally after a target of the
    /// kernel (tinyconfig, allnoconfig, defconfig); the kernel's make completes it
    #[arg(long, value_name = "FILE", value_delimiter = ',', conflicts_with_all = ["workload", "host"])]
    config: Vec<PathBuf>,
    /// Build the source as released, without the project's patches and drivers
    #[arg(long)]
    no_patches: bool,
    /// Build this source tree instead of the series' release; it is not modified
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Number of concurrent commands [default: number of CPUs]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,
    /// Also make a package
    #[arg(long, value_enum)]
    package: Option<Package>,
    /// Write the cost of each step to a file: CPU seconds, tool, target
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Directory of the output directories
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
}

/// Package formats.
#[derive(Clone, Copy, ValueEnum)]
enum Package {
    /// Debian packages (.deb)
    Deb,
    /// A tar archive
    Tar,
}

impl Args {
    /// Builds the kernel and prints its output directory.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let out = std::path::absolute(&self.out).into_diagnostic().wrap_err("--out is not a valid path")?;
        let builder = self.kernel.builder()?;
        let series = builder.series().name_or_default(self.series.as_deref());
        let usual = Selection::new(&series);
        let selection = self.selection(&series);
        let given = (!self.config.is_empty()).then(|| Given::read(&self.config)).transpose()?;
        let name = self.name.clone().unwrap_or_else(|| match &given {
            Some(given) => format!("{}-{}", self.source_name(&series), given.name()),
            None => self.default_name(&selection, &usual),
        });
        let configuration: Box<dyn Configuration> = if let Some(given) = given {
            Box::new(Foreign(given))
        } else {
            let fragments = Fragments::load(&builder.kernel_dir().join("config"))?;
            Box::new(Curated { fragments, selection })
        };
        let request = Request {
            series: &series,
            name: &name,
            out: &out,
            tree: self.tree.as_deref(),
            configuration: &*configuration,
            jobs: self.jobs.map(usize::from),
            package: self.package.map(|package| match package {
                Package::Deb => kernel_builder::Package::Deb,
                Package::Tar => kernel_builder::Package::Tar,
            }),
            patched: !self.no_patches,
            profile: self.profile.is_some(),
        };
        let built = match builder.build(&request) {
            Err(stopped @ Error::Make(MakeError::Interrupted { .. })) => {
                support::note!("{:?}", miette::Report::from(stopped));
                // The exit status that a shell gives to a program killed by SIGINT.
                return Ok(ExitCode::from(130));
            }
            other => other?,
        };
        // Clears the progress display before the summary.
        drop(builder);
        if let Some(path) = &self.profile {
            let lines: Vec<String> = built.profile.iter().map(ToString::to_string).collect();
            support::file::write_atomically(path, (lines.join("\n") + "\n").as_bytes())?;
        }
        let dir = self.out.join(&name);
        report(&built, &dir);
        support::print(&format!("{}\n", dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }

    fn selection(&self, series: &str) -> Selection {
        let mut selection =
            if self.package.is_some() { Selection::packaged(series) } else { Selection::new(series) };
        if !self.workload.is_empty() {
            selection.workloads = self.workload.iter().copied().collect();
        }
        if !self.host.is_empty() {
            selection.hosts = self.host.iter().copied().collect();
        }
        selection
    }

    fn source_name(&self, series: &str) -> String {
        match &self.tree {
            Some(tree) => tree.file_name().unwrap_or("tree".as_ref()).to_string_lossy().into_owned(),
            None => series.to_owned(),
        }
    }

    fn default_name(&self, selection: &Selection, usual: &Selection) -> String {
        let mut name = self.source_name(&selection.series);
        let mut add = |words: Vec<String>| {
            for word in words {
                name.push('-');
                name.push_str(&word);
            }
        };
        if selection.workloads == Workload::packaged() {
            add(vec!["packaged".to_owned()]);
        } else if selection.workloads != usual.workloads {
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

/// Prints on standard error what was built.
fn report(built: &Built, dir: &Path) {
    if built.up_to_date {
        support::note!("{}: Linux {} is up to date", dir.display(), built.manifest.release);
    } else {
        let image = built.manifest.files.get("bzImage").map_or(0, |file| file.size);
        support::note!(
            "{}: Linux {}, bzImage {} KiB, compiled in {:.0} s",
            dir.display(),
            built.manifest.release,
            image.div_ceil(1024),
            built.manifest.times.compile_seconds
        );
    }
}

/// The curated configuration of `kernel/config/`.
struct Curated {
    fragments: Fragments,
    selection: Selection,
}

impl Configuration for Curated {
    /// The requested symbols: a change of their documented reasons alone does not cause a build.
    fn identity(&self) -> Result<String, BoxedDiagnostic> {
        Ok(self.fragments.requests(&self.selection).to_config())
    }

    fn configure(
        &self,
        tree: &Path,
        build_dir: &Path,
        make_vars: &[(String, String)],
    ) -> Result<(), BoxedDiagnostic> {
        let backends = Backends::load(tree);
        let job = Resolve {
            tree,
            build_dir,
            make_vars,
            fragments: &self.fragments,
            selection: &self.selection,
            backends: Some(&backends),
        };
        match kconfig::resolve(&job) {
            Ok(_) => Ok(()),
            Err(error) => Err(Box::new(error)),
        }
    }
}

/// A configuration from the user's files.
struct Foreign(Given);

impl Configuration for Foreign {
    fn identity(&self) -> Result<String, BoxedDiagnostic> {
        Ok(self.0.identity())
    }

    fn configure(
        &self,
        tree: &Path,
        build_dir: &Path,
        make_vars: &[(String, String)],
    ) -> Result<(), BoxedDiagnostic> {
        let completed = self.0.complete(tree, build_dir, make_vars)?;
        let differing = completed.differing;
        if !differing.is_empty() {
            let of = self.0.set();
            let names = differing.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(" ");
            let more = if differing.len() > 8 { " …" } else { "" };
            support::note!("{} of {of} requested symbols have another value: {names}{more}", differing.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(line: &str) -> String {
        let args: Args = super::super::parse(&format!("build {line}")).unwrap();
        args.default_name(&args.selection("7.3"), &Selection::new("7.3"))
    }

    #[test]
    fn a_build_is_named_after_what_is_unusual() {
        assert_eq!(name(""), "7.3");
        assert_eq!(name("--workload core"), "7.3-core");
        assert_eq!(name("--tree ../linux --workload core,vpn"), "linux-vpn");
        assert_eq!(name("--package deb"), "7.3-packaged");
        assert_eq!(name("--package deb --workload core,systemd,containers"), "7.3");
    }

    #[test]
    fn a_package_is_for_guests_that_exist() {
        let args: Args = super::super::parse("build --package tar").unwrap();
        let selection = args.selection("7.3");
        assert!(Workload::ALL.into_iter().all(|w| selection.wants(w) == (w != Workload::Debug)));
    }

    #[test]
    fn a_given_configuration_is_whole() {
        let args: Args = super::super::parse("build --config tinyconfig,a.config --no-patches").unwrap();
        assert_eq!(args.config, [PathBuf::from("tinyconfig"), PathBuf::from("a.config")]);
        for ours in ["--workload core", "--host 7.8"] {
            assert!(super::super::parse::<Args>(&format!("build --config a {ours}")).is_err(), "{ours}");
        }
    }
}
