//! The check of a series: every patch of the stack, applied one after the other to the released kernel.
//!
//! Of each patch it is asked that
//! - `git am` applies it,
//! - the blob identifiers of its diff are those of the tree before and after it, so that `git am -3` can work,
//! - the tree's own `scripts/checkpatch.pl --strict` has no complaint,
//! - the objects it touches compile with our options and without them,
//! - and, in a defconfig without our options, the objects are the same as before the patch, unless its notes have an
//!   `Objects-change:` line with the reason.
//!
//! Results are kept by the hash of everything they depend on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use support::{
    cache::{Cache, Lock},
    file::write_atomically,
    hash::Hash,
    progress::Progress,
    run,
};

use crate::{
    error::{Error, Result},
    git,
    kbuild::{Build, Configuration, Toolchain, defined_symbols, touched_sources},
    objects::fingerprint,
    patch::PatchFile,
    released::{Loaded, Overlay, Release, WorkTree, changed_files},
    stack::{Patch, Stack},
};

/// Changes when the check asks for something else, so that kept results are not used.
const VERSION: &str = "1";

/// What `checkpatch.pl` shall not complain about: who signs a patch off is decided when it is exported, a commit named
/// in a `Fixes:` line is not in a release's tree, new files are covered by our entry in MAINTAINERS, and files of arch/x86
/// include asm/ headers directly (linux/acpi.h does not include asm/acpi.h in every configuration).
const CHECKPATCH: &[&str] = &[
    "--strict",
    "--terse",
    "--show-types",
    "--no-summary",
    "--no-signoff",
    "--ignore",
    "FILE_PATH_CHANGES,GIT_COMMIT_ID,UNKNOWN_COMMIT_ID,FROM_SIGN_OFF_MISMATCH,NO_AUTHOR_SIGN_OFF,ARCH_INCLUDE_LINUX",
];

/// A check to be made.
pub struct Check<'a> {
    /// The stack.
    pub stack: &'a Stack,
    /// The series.
    pub series: &'a str,
    /// Whether the common files are written for this series: their blob identifiers are its own.
    pub is_default: bool,
    /// The released kernel.
    pub release: &'a Release,
    /// Where trees, objects and results are kept.
    pub cache: &'a Cache,
    /// How to compile; `None` to leave compiling out.
    pub compile: Option<Compile<'a>>,
    /// The patch to report, as a part of its `group/file`; `None` for all.
    pub only: Option<&'a str>,
    /// The listener to what is being done.
    pub progress: &'a dyn Progress,
}

/// How to compile.
pub struct Compile<'a> {
    /// The toolchain.
    pub toolchain: Toolchain,
    /// Our configuration, as lines of a `.config` on top of allnoconfig.
    pub ours: String,
    /// Whether our configuration has Rust.
    pub rust: bool,
    /// Lays the overlay, which is checked after the last patch.
    pub overlay: Option<&'a Overlay<'a>>,
}

/// The kind of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `git am` refuses the patch.
    Apply,
    /// A blob identifier of the diff is not that of the tree.
    BlobChain,
    /// `checkpatch.pl` complains.
    Style,
    /// The touched objects do not compile with our options.
    CompileWith,
    /// The touched objects do not compile without our options.
    CompileWithout,
    /// An object of a kernel without our options changes, and the patch gives no reason.
    ObjectsChange,
}

impl Kind {
    /// The kind's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::BlobChain => "blob-chain",
            Self::Style => "style",
            Self::CompileWith => "compile-with",
            Self::CompileWithout => "compile-without",
            Self::ObjectsChange => "objects-change",
        }
    }
}

/// Something that a patch fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its kind.
    pub kind: Kind,
    /// The cause.
    pub cause: String,
}

/// What was found of one patch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchReport {
    /// `group/file`, or `overlay`.
    pub patch: String,
    /// Its subject.
    pub subject: String,
    /// What it fails.
    pub findings: Vec<Finding>,
    /// The objects that were compiled, by configuration.
    pub objects: BTreeMap<String, Vec<String>>,
    /// Objects of a defconfig that change, with the reason that the patch gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects_change: Option<String>,
    /// Whether the result is of an earlier run.
    #[serde(default)]
    pub cached: bool,
}

/// What was found of a series.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The series.
    pub series: String,
    /// The kernel's version.
    pub version: String,
    /// Whether objects were compiled.
    pub compiled: bool,
    /// Its patches, in order. Those after one that does not apply are not there.
    pub patches: Vec<PatchReport>,
}

impl Report {
    /// Whether no patch fails anything.
    pub fn is_clean(&self) -> bool {
        self.patches.iter().all(|patch| patch.findings.is_empty())
    }

    /// The report as text: a line for each patch, its findings below it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for patch in &self.patches {
            let objects: BTreeSet<&String> = patch.objects.values().flatten().collect();
            let state = match (patch.findings.is_empty(), patch.cached) {
                (false, _) => "FAILED",
                (true, true) => "ok, cached",
                (true, false) => "ok",
            };
            let _ = write!(text, "{} {}: {state}", self.series, patch.patch);
            if self.compiled {
                let _ = write!(text, ", {} objects", objects.len());
            }
            if let Some(reason) = &patch.objects_change {
                let _ = write!(text, ", objects change: {reason}");
            }
            text.push('\n');
            for finding in &patch.findings {
                let _ =
                    writeln!(text, "  {}: {}", finding.kind.name(), finding.cause.replace('\n', "\n    "));
            }
        }
        let failed = self.patches.iter().filter(|patch| !patch.findings.is_empty()).count();
        let _ = writeln!(
            text,
            "{}: Linux {}, {} patches, {failed} failed",
            self.series,
            self.version,
            self.patches.len()
        );
        text
    }
}

/// Checks a series.
pub fn check(job: &Check<'_>) -> Result<Report> {
    let mut report = Report {
        series: job.series.to_owned(),
        version: job.release.version.clone(),
        compiled: job.compile.is_some(),
        patches: Vec::new(),
    };
    let (dir, _lock) = work_dir(job.cache, "check", job.series, job.release, job.progress)?;
    let product = load(job.stack, &job.stack.product(job.series))?;
    let overlay = job.compile.as_ref().and_then(|compile| compile.overlay);
    run(job, &dir, &product, overlay, &mut report)?;
    for group in job.stack.groups().iter().filter(|group| !group.product) {
        let patches = load(job.stack, &job.stack.of(group, job.series))?;
        if !patches.is_empty() {
            run(job, &dir, &patches, None, &mut report)?;
        }
    }
    if let Some(only) = job.only {
        report.patches.retain(|patch| patch.patch.contains(only));
        if report.patches.is_empty() {
            return Err(Error::NoSuchPatch { name: only.to_owned(), series: job.series.to_owned() });
        }
    }
    Ok(report)
}

/// Makes a directory of the cache for a kernel and takes its lock.
pub(crate) fn work_dir(
    cache: &Cache,
    purpose: &str,
    series: &str,
    release: &Release,
    progress: &dyn Progress,
) -> Result<(PathBuf, fs::File)> {
    let name = format!("{purpose}-{series}-{}", &release.hash[..release.hash.len().min(16)]);
    let lock = cache.lock(&format!("series-{name}"), Lock::Exclusive, progress)?;
    Ok((cache.dir(&format!("series/{name}"))?, lock))
}

/// Reads patches.
pub(crate) fn load(stack: &Stack, patches: &[Patch]) -> Result<Vec<Loaded>> {
    let read = |patch: &Patch| {
        let path = stack.dir().join(&patch.path);
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let file = PatchFile::parse(&text, &patch.path)
            .map_err(|problems| Error::Malformed { dir: stack.dir().to_owned(), problems })?;
        Ok(Loaded { name: patch.name(), path: patch.path.clone(), file, text })
    };
    patches.iter().map(read).collect()
}

/// Checks patches that build on one another, from the release on.
fn run(
    job: &Check<'_>,
    dir: &Path,
    patches: &[Loaded],
    overlay: Option<&Overlay<'_>>,
    report: &mut Report,
) -> Result<()> {
    let results = job.cache.dir("series/results")?;
    let configurations = job.compile.as_ref().map(|compile| configurations(compile, patches));
    let keys = keys(job, patches, configurations.as_deref().unwrap_or_default());
    let asked = |name: &str| job.only.is_none_or(|only| name.contains(only));
    let kept: Vec<Option<PatchReport>> = patches
        .iter()
        .zip(&keys)
        .map(|(patch, key)| kept(&results, key).filter(|_| asked(&patch.name)))
        .collect();
    let last = (0..patches.len()).rev().find(|&i| kept[i].is_none() && asked(&patches[i].name));
    if last.is_none() && overlay.is_none() {
        report.patches.extend(kept.into_iter().flatten());
        return Ok(());
    }
    job.progress.phase(&format!("preparing a git tree of Linux {}", job.release.version));
    let work = WorkTree::prepare(dir, job.release, &changed_files(patches, overlay, job.release))?;
    let tree = work.git.dir().to_owned();
    let mut builds = match (&job.compile, configurations) {
        (Some(compile), Some(configurations)) => configurations
            .into_iter()
            .map(|configuration| Build::new(&tree, &dir.join("objects"), &compile.toolchain, configuration))
            .collect::<Result<Vec<_>>>()?,
        _ => Vec::new(),
    };
    for ((patch, key), kept) in patches.iter().zip(&keys).zip(kept) {
        let wanted = kept.is_none() && asked(&patch.name);
        if wanted {
            job.progress.phase(&format!("checking {} on {}", patch.name, job.series));
        }
        let own = job.is_default || patch.path != patch.name;
        let mut one = One { work: &work, patch, builds: &mut builds, own };
        let found = one.check(wanted)?;
        let stop = found.findings.iter().any(|finding| finding.kind == Kind::Apply);
        if let Some(kept) = kept {
            report.patches.push(kept);
        } else if wanted || stop {
            keep(&results, key, &found)?;
            report.patches.push(found);
            if stop {
                return Ok(());
            }
        }
    }
    if let (Some(overlay), Some(compile)) = (overlay, &job.compile)
        && asked("overlay")
    {
        job.progress.phase(&format!("compiling the overlay on {}", job.series));
        report.patches.push(check_overlay(&work, &mut builds, compile, overlay)?);
    }
    Ok(())
}

/// The configurations in which objects are compiled. Those with Rust, whose libraries take minutes, come into play for
/// Rust only.
fn configurations(compile: &Compile<'_>, patches: &[Loaded]) -> Vec<Configuration> {
    let no = |symbols: &BTreeSet<String>| {
        symbols.iter().fold(String::new(), |mut text, symbol| {
            let _ = writeln!(text, "# CONFIG_{symbol} is not set");
            text
        })
    };
    let symbols = defined_symbols(patches.iter().map(|patch| &patch.file));
    let without_rust: String =
        compile.ours.lines().filter(|line| *line != "CONFIG_RUST=y").flat_map(|line| [line, "\n"]).collect();
    let keeps = |line: &&str| !symbols.iter().any(|symbol| line.starts_with(&format!("CONFIG_{symbol}=")));
    let without_ours: String = without_rust.lines().filter(keeps).flat_map(|line| [line, "\n"]).collect();
    let mut all = vec![
        Configuration { name: "ours", base: "allnoconfig", values: without_rust.clone() },
        Configuration { name: "without", base: "allnoconfig", values: without_ours + &no(&symbols) },
        Configuration {
            name: "defconfig",
            base: "x86_64_defconfig",
            // Without verbose BUG() an object bears no line numbers.
            values: "CONFIG_EXPERT=y\n# CONFIG_DEBUG_BUGVERBOSE is not set\n".to_owned() + &no(&symbols),
        },
    ];
    if compile.rust {
        all.push(Configuration { name: "rust", base: "allnoconfig", values: compile.ours.clone() });
    }
    all
}

/// The keys of the patches' results: all that they depend on.
fn keys(job: &Check<'_>, patches: &[Loaded], configurations: &[Configuration]) -> Vec<String> {
    let mut hash = Hash::new();
    hash.field(VERSION).field(job.series).field(&job.release.hash);
    for configuration in configurations {
        hash.field(configuration.name).field(configuration.base).field(&configuration.values);
    }
    if let Some(compile) = &job.compile {
        hash.field(&compile.toolchain.identity);
    }
    let mut chain = hash.hex();
    let mut keys = Vec::new();
    for patch in patches {
        let mut hash = Hash::new();
        hash.field(&chain).field(&patch.name).field(&patch.text);
        chain = hash.hex();
        keys.push(chain.clone());
    }
    keys
}

/// A result of an earlier run. Failures are found again: what they say names paths, and they are what is worked on.
fn kept(results: &Path, key: &str) -> Option<PatchReport> {
    let report: PatchReport =
        serde_json::from_slice(&fs::read(results.join(format!("{key}.json"))).ok()?).ok()?;
    report.findings.is_empty().then_some(PatchReport { cached: true, ..report })
}

fn keep(results: &Path, key: &str, report: &PatchReport) -> Result<()> {
    let path = results.join(format!("{key}.json"));
    let json = serde_json::to_vec(report).expect("a report serialises");
    Ok(write_atomically(&path, &json)?)
}

/// One patch being checked.
struct One<'a, 'b> {
    work: &'a WorkTree,
    patch: &'a Loaded,
    builds: &'a mut [Build<'b>],
    /// Whether the blob identifiers are of this series.
    own: bool,
}

impl One<'_, '_> {
    /// Applies the patch, and checks it if that is wanted.
    fn check(&mut self, wanted: bool) -> Result<PatchReport> {
        let file = &self.patch.file;
        let mut report = PatchReport {
            patch: self.patch.name.clone(),
            subject: file.subject.clone(),
            ..PatchReport::default()
        };
        let rust = file.changes.iter().any(|change| is_rust(&change.path));
        let before = if wanted { self.objects_before()? } else { BTreeMap::new() };
        let mut finding = |kind, cause: String| report.findings.push(Finding { kind, cause });
        if let Err(said) = self.work.am(self.patch)? {
            finding(Kind::Apply, said);
            return Ok(report);
        }
        for build in &mut *self.builds {
            build.patched(file);
        }
        if !wanted {
            return Ok(report);
        }
        if self.own {
            for cause in self.blob_chain()? {
                finding(Kind::BlobChain, cause);
            }
        }
        for cause in self.checkpatch()? {
            finding(Kind::Style, cause);
        }
        let sources = touched_sources(self.work.git.dir(), file)?;
        for build in &mut *self.builds {
            let name = build.configuration.name;
            if (name == "rust") != rust {
                continue;
            }
            let (kind, which) = match name {
                "ours" | "rust" => (Kind::CompileWith, "with our options"),
                _ => (Kind::CompileWithout, "without our options"),
            };
            if let Err(said) = build.configure()? {
                finding(kind, format!("the configuration {name} cannot be made\n{said}"));
                continue;
            }
            let objects =
                build.enabled(sources.iter().filter(|source| !source.starts_with("rust/")).cloned())?;
            match build.compile(&objects, rust)? {
                Err(said) => finding(kind, format!("does not compile {which} ({name})\n{said}")),
                Ok(()) if name == "defconfig" => {
                    let changed = self::changed(&before, build, &objects)?;
                    if !changed.is_empty() && file.objects_change().is_none() {
                        finding(Kind::ObjectsChange, without_a_reason(&changed));
                    } else if !changed.is_empty() {
                        report.objects_change = file.objects_change();
                    }
                }
                Ok(()) => {}
            }
            report.objects.insert(name.to_owned(), objects.into_iter().collect());
        }
        Ok(report)
    }

    /// The fingerprints of the objects of a defconfig that the patch will touch.
    fn objects_before(&mut self) -> Result<BTreeMap<String, String>> {
        let mut fingerprints = BTreeMap::new();
        let tree = self.work.git.dir();
        let Some(build) = self.builds.iter_mut().find(|build| build.configuration.name == "defconfig") else {
            return Ok(fingerprints);
        };
        if build.configure()?.is_err() {
            return Ok(fingerprints);
        }
        let objects = build.enabled(touched_sources(tree, &self.patch.file)?)?;
        // If the tree before the patch does not compile, that is a finding of an earlier patch.
        if build.compile(&objects, false)?.is_ok() {
            for object in objects {
                let fingerprint = fingerprint(&build.objects.join(&object))?;
                fingerprints.insert(object, fingerprint);
            }
        }
        Ok(fingerprints)
    }

    /// Every index line whose blobs are not those of the tree.
    fn blob_chain(&self) -> Result<Vec<String>> {
        let mut broken = Vec::new();
        for change in &self.patch.file.changes {
            let Some((old, new)) = &change.index else { continue };
            let old_path = change.old_path.as_ref().unwrap_or(&change.path);
            for (commit, path, said) in [("HEAD^", old_path, old), ("HEAD", &change.path, new)] {
                let is = self.work.git.blob(commit, path)?.unwrap_or_else(|| "0".repeat(40));
                if said.len() < 7 || !is.starts_with(said.as_str()) {
                    let when = if commit == "HEAD" { "after" } else { "before" };
                    broken.push(format!(
                        "{path}: the index line has {said}, {when} the patch the file is {}",
                        &is[..12]
                    ));
                }
            }
        }
        Ok(broken)
    }

    /// What `checkpatch.pl` says, without the position of the patch in the file system.
    fn checkpatch(&self) -> Result<Vec<String>> {
        let tree = self.work.git.dir();
        let file = tempfile::Builder::new()
            .suffix(".patch")
            .tempfile()
            .map_err(|e| Error::io("create a file in", std::env::temp_dir(), e))?;
        fs::write(file.path(), &self.patch.text).map_err(|e| Error::io("write", file.path(), e))?;
        let mut perl = run::command("perl");
        let output = run::output(
            perl.current_dir(tree).arg("scripts/checkpatch.pl").args(CHECKPATCH).arg(file.path()),
        )?;
        if output.status.success() {
            return Ok(Vec::new());
        }
        let prefix = format!("{}:", file.path().display());
        let text = git::said(&output, 40);
        let lines: Vec<String> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| line.strip_prefix(&prefix).map_or(line.to_owned(), |rest| format!("line {rest}")))
            .collect();
        Ok(if lines.is_empty() { vec!["checkpatch.pl failed".to_owned()] } else { lines })
    }
}

/// The objects whose fingerprints changed.
fn changed(
    before: &BTreeMap<String, String>,
    build: &Build<'_>,
    objects: &BTreeSet<String>,
) -> Result<Vec<String>> {
    let mut changed = Vec::new();
    for object in objects {
        let Some(old) = before.get(object) else { continue };
        if fingerprint(&build.objects.join(object))? != *old {
            changed.push(object.clone());
        }
    }
    Ok(changed)
}

/// The cause of [`Kind::ObjectsChange`].
fn without_a_reason(changed: &[String]) -> String {
    let changed = changed.join(", ");
    format!(
        "in a defconfig without our options {changed} changes; the notes have no `Objects-change: reason`"
    )
}

/// Whether a change is seen by the configuration with Rust only.
fn is_rust(path: &str) -> bool {
    path.starts_with("rust/") || Path::new(path).extension().is_some_and(|e| e == "rs")
}

/// Compiles the overlay with our options.
fn check_overlay(
    work: &WorkTree,
    builds: &mut [Build<'_>],
    compile: &Compile<'_>,
    overlay: &Overlay<'_>,
) -> Result<PatchReport> {
    let mut report = PatchReport { patch: "overlay".to_owned(), ..PatchReport::default() };
    let tree = work.git.dir();
    (overlay.lay)(tree).map_err(Error::Overlay)?;
    let wanted = if compile.rust { "rust" } else { "ours" };
    if let Some(build) = builds.iter_mut().find(|build| build.configuration.name == wanted) {
        build.read_again();
        let sources = overlay.files.iter().map(|file| file.display().to_string());
        let mut done = build.configure()?;
        if done.is_ok() {
            let objects = build.enabled(sources)?;
            done = build.compile(&objects, false)?;
            report.objects.insert(wanted.to_owned(), objects.into_iter().collect());
        }
        if let Err(said) = done {
            report
                .findings
                .push(Finding { kind: Kind::CompileWith, cause: format!("does not compile\n{said}") });
        }
    }
    overlay.remove(work)?;
    Ok(report)
}
