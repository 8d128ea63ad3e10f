//! Building a kernel.
//!
//! There is one build directory per source, toolchain and name, in which make rebuilds what a changed patch or
//! configuration affects. A hash over all inputs decides beforehand whether make is run at all.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use host_tools::{Finder, Missing};
use jiff::Timestamp;
use support::{cache::Lock, file, hash::hash_file};

use crate::{
    builder::KernelBuilder,
    configuration::Configuration,
    counter::{Counter, estimate},
    error::{Error, Result},
    inputs::{build_key, identity_hash, inputs, pinned_vars},
    make::{
        log::log_path,
        profile::{self, Step},
        runner::Make,
        toolchain::Toolchain,
    },
    output::{
        directory::OutputDir,
        manifest::{Config, Manifest, Times},
        package::Package,
        staging::Staging,
    },
    state::BuildState,
    tree::prepare::PreparedTree,
};

/// Free disk space that a build needs if its source is not unpacked yet, and if it is. Bytes.
const SPACE_NEW: u64 = 5 << 30;
const SPACE_AGAIN: u64 = 2 << 30;

/// A request for a kernel.
pub struct Request<'a> {
    /// The series, which decides the patches and whether Rust is needed.
    pub series: &'a str,
    /// The name of the output directory below `out`.
    pub name: &'a str,
    /// The directory of the output directories.
    pub out: &'a Path,
    /// A user's tree instead of the series' release.
    pub tree: Option<&'a Path>,
    /// Its configuration.
    pub configuration: &'a dyn Configuration,
    /// Number of concurrent commands; by default the number of CPUs.
    pub jobs: Option<usize>,
    /// The package to make.
    pub package: Option<Package>,
    /// Apply the project's patches and drivers.
    pub patched: bool,
    /// Log the CPU time of each step.
    pub profile: bool,
}

/// A built kernel.
#[derive(Debug)]
pub struct Built {
    /// The output directory.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether it existed and no input had changed.
    pub up_to_date: bool,
    /// The CPU time of each step, if requested and anything was built.
    pub profile: Vec<Step>,
}

/// The duration of the phases of a build.
struct Durations {
    prepared: Duration,
    configured: Duration,
    compiled: Duration,
}

impl KernelBuilder {
    /// Builds a kernel, or returns the existing one if no input has changed.
    pub fn build(&self, request: &Request<'_>) -> Result<Built> {
        let started = Timestamp::now();
        let clock = Instant::now();
        // Before anything is downloaded.
        let toolchain = self.toolchain(request.series, request.package == Some(Package::Deb))?;
        let tree = match request.tree {
            Some(dir) => self.prepare_dir_with(request.series, dir, request.patched)?,
            None => self.prepare_with(request.series, request.patched)?,
        };
        let identity = request.configuration.identity().map_err(Error::Configuration)?;
        let inputs = inputs(&tree, &toolchain, &identity, request.package);
        let out = OutputDir::new(request.out, request.name)?;
        if let Some(manifest) = out.up_to_date(&inputs) {
            return Ok(Built { dir: out.dir, manifest, up_to_date: true, profile: Vec::new() });
        }
        let prepared = clock.elapsed();

        let key = build_key(&tree, &toolchain, request.name);
        let _building = self.cache.lock(&format!("build-{key}"), Lock::Exclusive, &*self.progress)?;
        let build = self.cache.dir(&format!("builds/{key}"))?;
        let mut state = BuildState::open(&build, &tree.instance)?;
        let objects = build.join("obj");
        let log = log_path(&build);
        fs::create_dir_all(&objects).map_err(|e| file::Error::new("create", &objects, e))?;
        fs::write(&log, "").map_err(|e| file::Error::new("create the log", &log, e))?;

        let clock = Instant::now();
        self.progress.phase(&format!("configuring Linux {}", tree.version));
        request
            .configuration
            .configure(&tree.path, &objects, &toolchain.make_vars)
            .map_err(Error::Configuration)?;
        let configured = clock.elapsed();

        let mut vars = pinned_vars(&tree, &objects, &toolchain);
        if request.profile {
            vars.push(("SHELL".to_owned(), profile::install(&build)?));
        }
        let make = Make {
            tree: &tree.path,
            objects: &objects,
            toolchain: &toolchain,
            vars: &vars,
            epoch: tree.epoch,
            jobs: request.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
            log: &log,
        };
        let clock = Instant::now();
        self.progress.phase(&format!("compiling Linux {}", tree.version));
        self.compile(&make, &mut state)?;
        let profile = if request.profile { profile::collect(&build)? } else { Vec::new() };
        let durations = Durations { prepared, configured, compiled: clock.elapsed() };

        let manifest =
            self.publish(request, &make, &tree, &out, (started, durations), (&identity, &inputs))?;
        state.complete(inputs)?;
        Ok(Built { dir: out.dir, manifest, up_to_date: false, profile })
    }

    fn compile(&self, make: &Make<'_>, state: &mut BuildState) -> Result<()> {
        let (before, total) = if state.value.complete.is_some() {
            // The number of steps of an incremental build is unknown.
            (0, 0)
        } else {
            (state.value.steps, estimate(make.objects))
        };
        let counter = Counter::new(&*self.progress);
        let result = make.run(&["all"], &[], (before, total), &counter);
        state.value.steps = before + counter.steps();
        state.save()?;
        result?;
        Ok(())
    }

    /// Collects the files of a build and moves them to the output directory.
    fn publish(
        &self,
        request: &Request<'_>,
        make: &Make<'_>,
        tree: &PreparedTree,
        out: &OutputDir,
        (started, durations): (Timestamp, Durations),
        (identity, inputs): (&str, &str),
    ) -> Result<Manifest> {
        self.progress.phase("collecting the outputs");
        let staging = Staging::new(out)?;
        let package = request.package.map(|package| (package, tree.epoch.max(0).unsigned_abs()));
        let files = staging.collect(make, package, &*self.progress)?;
        let manifest = Manifest {
            name: request.name.to_owned(),
            series: request.series.to_owned(),
            release: files.release,
            inputs: inputs.to_owned(),
            source: tree.source.clone(),
            patches: tree.patches.clone(),
            overlay: tree.overlay.clone(),
            config: Config {
                identity: identity_hash(identity),
                sha256: hash_file(&make.objects.join(".config"))?,
            },
            toolchain: make.toolchain.versions.clone(),
            times: Times {
                started: started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                prepare_seconds: durations.prepared.as_secs_f64(),
                configure_seconds: durations.configured.as_secs_f64(),
                compile_seconds: durations.compiled.as_secs_f64(),
            },
            files: files.sizes,
        };
        staging.publish(&manifest)?;
        Ok(manifest)
    }

    /// The toolchain for a series. Missing tools and disk space are reported together, each with its remedy.
    pub fn toolchain(&self, series: &str, package: bool) -> Result<Toolchain> {
        let rust = self.series.get(series)?.rust;
        let finder = Finder::new(self.options.path.as_deref(), &self.cache);
        Ok(Toolchain::check(&finder, rust, package, self.missing_space(series)?)?)
    }

    fn missing_space(&self, series: &str) -> Result<Option<Missing>> {
        let root = self.cache.root();
        let existing = root.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
        let stat = rustix::fs::statvfs(existing)
            .map_err(|e| file::Error::new("read the free space of the disk of", root, e))?;
        let free = stat.f_bavail * stat.f_frsize;
        let locked = self.sources().lock_file()?;
        let unpacked =
            locked.get(series).is_some_and(|locked| root.join("pristine").join(&locked.sha256).is_dir());
        let needed = if unpacked { SPACE_AGAIN } else { SPACE_NEW };
        Ok((free < needed).then(|| Missing {
            what: format!("disk space: {} has {} MB free", existing.display(), free >> 20),
            why: format!("a build needs about {} MB", needed >> 20),
            remedy: "free some space, or point XDG_CACHE_HOME to a larger disk".to_owned(),
        }))
    }
}
