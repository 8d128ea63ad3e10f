//! Compiling a prepared tree.
//!
//! One build directory serves a (source, toolchain, name): make itself does what a changed patch or configuration asks
//! for, and nothing else. Whether anything changed at all is decided before make is started, by a hash over everything
//! that goes in.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use jiff::{Timestamp, tz::TimeZone};
use miette::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::{
    Forge, PreparedTree,
    cache::{Hash, Lock, hash_file, write_atomically},
    error::{Error, Result},
    make::{Make, log_path},
    output::{self, Manifest, Staging},
    prelude,
    profile::{self, Step},
    toolchain::Toolchain,
};

/// How a tree is configured. The forge does not know what is in a configuration, only when it is the same.
pub trait Configuration {
    /// A text that changes when the configuration may.
    fn identity(&self) -> std::result::Result<String, BoxedDiagnostic>;

    /// Writes `.config` into a build directory, by the tree's own make with these variables on its command line.
    fn configure(
        &self,
        tree: &Path,
        build_dir: &Path,
        make_vars: &[(String, String)],
    ) -> std::result::Result<(), BoxedDiagnostic>;
}

/// An error of somebody else's, carried through.
pub type BoxedDiagnostic = Box<dyn Diagnostic + Send + Sync + 'static>;

/// A package format that the kernel's own make knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Package {
    /// Debian packages: image and headers.
    Deb,
    /// A tar archive of /boot and /lib/modules, with a script that installs them.
    Tar,
}

/// What to build.
pub struct Request<'a> {
    /// The series: its patches, and whether it needs Rust.
    pub series: &'a str,
    /// The name of the output directory below `out`.
    pub name: &'a str,
    /// Where output directories are.
    pub out: &'a Path,
    /// A tree of the user's instead of the series' release.
    pub tree: Option<&'a Path>,
    /// How to configure it.
    pub configuration: &'a dyn Configuration,
    /// Commands to run at a time; by default one for each CPU.
    pub jobs: Option<usize>,
    /// Make a package, too.
    pub package: Option<Package>,
    /// Have the headers that most files include parsed once (gcc only), instead of compiling each file by itself.
    pub prelude: bool,
    /// Lay our patches and drivers over the source.
    pub patched: bool,
    /// Note what each step costs.
    pub profile: bool,
}

/// A kernel that was built.
#[derive(Debug)]
pub struct Built {
    /// The output directory.
    pub dir: PathBuf,
    /// What is in it.
    pub manifest: Manifest,
    /// Whether it was there already.
    pub up_to_date: bool,
    /// What each step cost, if that was asked for and there was anything to do.
    pub profile: Vec<Step>,
}

/// Steps that a build takes for each symbol that is set: 1370 for the 632 of a core build of 7.3.4. Only a first guess for
/// the progress bar.
const STEPS_PER_SYMBOL: f64 = 2.2;

/// What a build directory knows of itself.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    /// The tree's instance that its objects were made from.
    instance: String,
    /// Steps taken since it was empty or last complete.
    steps: u64,
    /// The hash over everything that went into the last complete build.
    complete: Option<String>,
}

impl Forge {
    /// Builds a kernel, or finds that nothing changed since it was built.
    pub fn build(&self, request: &Request<'_>) -> Result<Built> {
        let started = Timestamp::now();
        let clock = Instant::now();
        // Before anything is downloaded.
        let mut toolchain = self.toolchain(request.series, request.package == Some(Package::Deb))?;
        let with_prelude = request.prelude && !toolchain.llvm;
        let tree = match request.tree {
            Some(dir) => self.prepare_dir_with(request.series, dir, request.patched)?,
            None => self.prepare_with(request.series, request.patched)?,
        };
        let identity = request.configuration.identity().map_err(Error::Configuration)?;
        let inputs = inputs(&tree, &toolchain, &identity, request.package, with_prelude);
        let out = output::Place::new(request.out, request.name)?;
        if let Some(manifest) = out.up_to_date(&inputs) {
            return Ok(Built { dir: out.dir, manifest, up_to_date: true, profile: Vec::new() });
        }
        let prepared = clock.elapsed();

        let key = build_key(&tree, &toolchain, request.name);
        let _building = self.cache.lock(&format!("build-{key}"), Lock::Exclusive, &*self.progress)?;
        let build = self.cache.dir(&format!("builds/{key}"))?;
        let mut state = BuildState::open(&build, &tree.instance)?;
        let objects = build.join("obj");
        fs::create_dir_all(&objects).map_err(|e| Error::io("create", &objects, e))?;
        let log = log_path(&build);
        fs::write(&log, "").map_err(|e| Error::io("create the log", &log, e))?;
        if with_prelude {
            let compiler = prelude::install(&build, &toolchain.compiler)?;
            toolchain.set("CC", compiler);
        }

        self.progress.phase(&format!("configuring Linux {}", tree.version));
        let clock = Instant::now();
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
        self.compile(&make, &mut state, &objects)?;
        let compiled = clock.elapsed();
        let profile = if request.profile { profile::collect(&build)? } else { Vec::new() };

        self.progress.phase("collecting the outputs");
        let staging = Staging::new(&out)?;
        let files = staging.collect(
            &make,
            request.package.map(|package| (package, tree.epoch.max(0).unsigned_abs())),
            self,
        )?;
        let manifest = Manifest {
            name: request.name.to_owned(),
            series: request.series.to_owned(),
            release: files.release,
            inputs: inputs.clone(),
            source: tree.source.clone(),
            patches: tree.patches.clone(),
            overlay: tree.overlay.clone(),
            config: output::Config {
                identity: identity_hash(&identity),
                sha256: hash_file(&objects.join(".config"))?,
            },
            toolchain: toolchain.versions.clone(),
            times: output::Times {
                started: started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                prepare_seconds: prepared.as_secs_f64(),
                configure_seconds: configured.as_secs_f64(),
                compile_seconds: compiled.as_secs_f64(),
            },
            files: files.sizes,
        };
        staging.publish(&manifest)?;
        state.complete(inputs)?;
        Ok(Built { dir: out.dir, manifest, up_to_date: false, profile })
    }

    fn compile(&self, make: &Make<'_>, state: &mut BuildState, objects: &Path) -> Result<()> {
        let (before, total) = if state.value.complete.is_some() {
            // An incremental build: how much of it a change touches, only make knows.
            (0, 0)
        } else {
            (state.value.steps, estimate(objects))
        };
        let counter = Counter::new(&*self.progress);
        let result = make.run(&["all"], &[], (before, total), &counter);
        state.value.steps = before + counter.steps();
        state.save()?;
        result.map(|_| ())
    }
}

/// Counts the steps on their way to the display, so that an interrupted run knows how far it got.
struct Counter<'a> {
    progress: &'a dyn crate::Progress,
    steps: std::sync::atomic::AtomicU64,
}

impl<'a> Counter<'a> {
    fn new(progress: &'a dyn crate::Progress) -> Self {
        Self { progress, steps: 0.into() }
    }

    fn steps(&self) -> u64 {
        self.steps.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl crate::Progress for Counter<'_> {
    fn phase(&self, what: &str) {
        self.progress.phase(what);
    }
    fn step(&self, done: u64, total: u64, current: &str) {
        self.steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.progress.step(done, total, current);
    }
    fn note(&self, what: &str) {
        self.progress.note(what);
    }
}

/// A build directory's [`State`] and where it is kept.
struct BuildState {
    path: PathBuf,
    value: State,
}

impl BuildState {
    /// Opens a build directory; objects of another tree that stood at the same path are thrown away, because their
    /// times say nothing about this one's files.
    fn open(build: &Path, instance: &str) -> Result<Self> {
        let path = build.join("state.json");
        let value: State =
            fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let objects = build.join("obj");
        if value.instance == instance {
            return Ok(Self { path, value });
        }
        if objects.is_dir() {
            fs::remove_dir_all(&objects).map_err(|e| Error::io("remove the outdated", &objects, e))?;
        }
        let state = Self { path, value: State { instance: instance.to_owned(), ..State::default() } };
        state.save()?;
        Ok(state)
    }

    fn save(&self) -> Result<()> {
        write_atomically(&self.path, &serde_json::to_vec(&self.value).expect("a state serialises"))
    }

    fn complete(&mut self, inputs: String) -> Result<()> {
        self.value.steps = 0;
        self.value.complete = Some(inputs);
        self.save()
    }
}

/// How many steps a whole build of the configuration in `objects` will take, more or less.
fn estimate(objects: &Path) -> u64 {
    let config = fs::read_to_string(objects.join(".config")).unwrap_or_default();
    let set = config.lines().filter(|line| line.ends_with("=y") || line.ends_with("=m")).count();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a count of thousands, and an estimate"
    )]
    let steps = (set as f64 * STEPS_PER_SYMBOL) as u64;
    steps.max(1)
}

/// A hash over everything that decides what comes out.
fn inputs(
    tree: &PreparedTree,
    toolchain: &Toolchain,
    identity: &str,
    package: Option<Package>,
    with_prelude: bool,
) -> String {
    let mut hash = Hash::new();
    hash.field(env!("CARGO_PKG_VERSION")).field(&tree.hash).field(identity).field(format!("{package:?}"));
    if package == Some(Package::Tar) {
        hash.field(output::INSTALL);
    }
    for (tool, version) in &toolchain.versions {
        hash.field(tool).field(version);
    }
    for (name, value) in &toolchain.make_vars {
        hash.field(name).field(value);
    }
    for part in prelude::IDENTITY.iter().filter(|_| with_prelude) {
        hash.field(part);
    }
    hash.hex()
}

fn identity_hash(identity: &str) -> String {
    let mut hash = Hash::new();
    hash.field(identity);
    hash.hex()
}

/// The build directory's name: the tree's place, the toolchain and the output's name decide it.
fn build_key(tree: &PreparedTree, toolchain: &Toolchain, name: &str) -> String {
    let mut hash = Hash::new();
    hash.field(tree.path.as_os_str().as_encoded_bytes());
    for (tool, version) in &toolchain.versions {
        hash.field(tool).field(version);
    }
    format!("{name}-{}", &hash.hex()[..16])
}

/// make variables that keep the builder's clock, name and paths out of the kernel.
fn pinned_vars(tree: &PreparedTree, objects: &Path, toolchain: &Toolchain) -> Vec<(String, String)> {
    let date = Timestamp::from_second(tree.epoch)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned(TimeZone::UTC)
        .strftime("%a %b %e %H:%M:%S UTC %Y")
        .to_string();
    // Later mappings are tried first, so the objects' place, which may lie below the tree's, comes last.
    let mut places = vec![(tree.path.clone(), "linux"), (objects.to_owned(), "build")];
    let rust_src = toolchain.make_vars.iter().find(|(name, _)| name == "RUST_LIB_SRC");
    places.extend(rust_src.map(|(_, src)| (PathBuf::from(src), "rust")));
    let map = |option: &str| -> String {
        places
            .iter()
            .map(|(path, name)| format!("{option}={}=/{name}", path.display()))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut vars = toolchain.make_vars.clone();
    let mut set = |name: &str, value: String| vars.push((name.to_owned(), value));
    set("KBUILD_BUILD_TIMESTAMP", date);
    set("KBUILD_BUILD_USER", "vmmlinux".to_owned());
    set("KBUILD_BUILD_HOST", "vmmlinux".to_owned());
    set("KBUILD_BUILD_VERSION", "1".to_owned());
    set("KCFLAGS", map("-ffile-prefix-map"));
    set("KAFLAGS", map("-ffile-prefix-map"));
    set("KRUSTFLAGS", map("--remap-path-prefix"));
    vars
}

/// Sizes by file name.
pub(crate) type Sizes = BTreeMap<String, output::FileRecord>;
