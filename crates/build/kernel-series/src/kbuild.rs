//! Compiling single objects of a kernel tree, and which objects a configuration has.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use support::{make::kernel_make, run};

use crate::{
    error::{Error, Result},
    git,
    patch::PatchFile,
};

/// How to compile: the toolchain, and what the kernel is configured to.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// PATH of the kernel's make.
    pub path: OsString,
    /// Variables for make's command line.
    pub make_vars: Vec<(String, String)>,
    /// The toolchain's versions: results are kept for as long as they are the same.
    pub identity: String,
    /// Commands that run at a time.
    pub jobs: usize,
}

/// A kernel configuration: a base that the kernel's make knows, and values on top of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Configuration {
    /// The name of its build directory and in reports.
    pub(crate) name: &'static str,
    /// `allnoconfig` or a defconfig.
    pub(crate) base: &'static str,
    /// Lines of a `.config`.
    pub(crate) values: String,
}

/// A build directory of a tree.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    pub(crate) tree: &'a Path,
    pub(crate) objects: PathBuf,
    pub(crate) toolchain: &'a Toolchain,
    pub(crate) configuration: Configuration,
    configured: bool,
    listings: BTreeMap<String, Option<BTreeSet<String>>>,
}

/// The rules of one directory's Makefile, evaluated, without building anything.
const LISTING: &str = "\
-include $(objtree)/include/config/auto.conf
obj := $(dir)
src := $(srctree)/$(dir)
-include $(srctree)/scripts/Kbuild.include
include $(srctree)/$(file)
.PHONY: __list
__list:
\t@:
members = $(foreach m,$(filter %.o,$(1)),$(m) $($(m:.o=-y)) $($(m:.o=-m)) $($(m:.o=-objs)))
all := $(obj-y) $(obj-m) $(lib-y) $(lib-m) $(core-y) $(drivers-y) $(extra-y)
$(info VMMLINUX $(sort $(all) $(call members,$(all)) $(call members,$(call members,$(all)))))
";

impl<'a> Build<'a> {
    pub(crate) fn new(
        tree: &'a Path,
        dir: &Path,
        toolchain: &'a Toolchain,
        configuration: Configuration,
    ) -> Result<Self> {
        let objects = dir.join(configuration.name);
        fs::create_dir_all(&objects).map_err(|e| Error::io("create", &objects, e))?;
        Ok(Self { tree, objects, toolchain, configuration, configured: false, listings: BTreeMap::new() })
    }

    /// Notes that a patch was applied: what it changes in Kconfig files and Makefiles has to be read again.
    pub(crate) fn patched(&mut self, patch: &PatchFile) {
        for change in &patch.changes {
            let name = file_name(&change.path);
            if name.starts_with("Kconfig") {
                self.read_again();
            } else if is_makefile(name) {
                self.listings.clear();
            }
        }
    }

    /// Forgets what was read of the tree's Kconfig files and Makefiles.
    pub(crate) fn read_again(&mut self) {
        self.configured = false;
        self.listings.clear();
    }

    /// Brings `.config` up to date with the tree.
    pub(crate) fn configure(&mut self) -> Result<std::result::Result<(), String>> {
        if self.configured {
            return Ok(Ok(()));
        }
        let values = self.objects.join(".values");
        fs::write(&values, &self.configuration.values).map_err(|e| Error::io("write", &values, e))?;
        let all = format!("KCONFIG_ALLCONFIG={}", values.display());
        if let Err(said) = self.make(&[&all, self.configuration.base])? {
            return Ok(Err(said));
        }
        if self.configuration.base != "allnoconfig" {
            let path = self.objects.join(".config");
            let mut text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
            text.push_str(&self.configuration.values);
            fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
            if let Err(said) = self.make(&["olddefconfig"])? {
                return Ok(Err(said));
            }
        }
        self.listings.clear();
        // Writes include/config/auto.conf, which the listings read.
        if let Err(said) = self.make(&["syncconfig"])? {
            return Ok(Err(said));
        }
        self.configured = true;
        Ok(Ok(()))
    }

    /// Compiles objects; returns make's words if that fails.
    pub(crate) fn compile(
        &self,
        objects: &BTreeSet<String>,
        prepare: bool,
    ) -> Result<std::result::Result<(), String>> {
        let (twice, mut targets): (Vec<&str>, Vec<_>) =
            objects.iter().map(String::as_str).partition(|object| is_entered_twice(object));
        if prepare {
            targets.push("prepare");
        }
        for (targets, jobs) in [(targets, self.toolchain.jobs), (twice, 1)] {
            if !targets.is_empty()
                && let Err(said) = self.make_jobs(&targets, jobs)?
            {
                return Ok(Err(said));
            }
        }
        Ok(Ok(()))
    }

    fn make(&self, targets: &[&str]) -> Result<std::result::Result<(), String>> {
        self.make_jobs(targets, self.toolchain.jobs)
    }

    fn make_jobs(&self, targets: &[&str], jobs: usize) -> Result<std::result::Result<(), String>> {
        let variables = self.toolchain.make_vars.iter().map(|(name, value)| (&**name, &**value));
        let mut make = kernel_make(self.tree, Some(&self.objects), variables);
        make.env("PATH", &self.toolchain.path).args(["-s", &format!("-j{jobs}")]);
        let output = run::output(make.args(targets))?;
        Ok(if output.status.success() { Ok(()) } else { Err(git::said(&output, 30)) })
    }

    /// The objects that the configuration has among those of source files.
    pub(crate) fn enabled(&mut self, sources: impl IntoIterator<Item = String>) -> Result<BTreeSet<String>> {
        let mut objects = BTreeSet::new();
        for source in sources {
            let Some(stem) = source
                .strip_suffix(".c")
                .or_else(|| source.strip_suffix(".S"))
                .or_else(|| source.strip_suffix(".rs"))
            else {
                continue;
            };
            let object = format!("{stem}.o");
            if self.tree.join(&source).is_file() && self.has(&object)? {
                objects.insert(object);
            }
        }
        Ok(objects)
    }

    /// Whether the configuration has an object, and all directories above it.
    fn has(&mut self, object: &str) -> Result<bool> {
        let mut dir = dir_name(object).to_owned();
        if !self.listing(&dir)?.is_some_and(|listed| listed.contains(file_name(object))) {
            return Ok(false);
        }
        while let Some((above, own)) = dir.rsplit_once('/') {
            // arch/x86/Makefile names directories in ways of its own.
            let listed = if above == "arch/x86" { None } else { self.listing(above)? };
            let Some(listed) = listed else { return Ok(true) };
            if !listed.contains(&format!("{own}/")) {
                return Ok(false);
            }
            dir = above.to_owned();
        }
        Ok(true)
    }

    /// What a directory's Makefile builds; `None` if it has no Makefile.
    fn listing(&mut self, dir: &str) -> Result<Option<BTreeSet<String>>> {
        if let Some(known) = self.listings.get(dir) {
            return Ok(known.clone());
        }
        let file = ["Kbuild", "Makefile"].map(|name| format!("{dir}/{name}"));
        let listing = match file.into_iter().find(|file| self.tree.join(file).is_file()) {
            None => None,
            Some(file) => Some(self.evaluate(dir, &file)?),
        };
        self.listings.insert(dir.to_owned(), listing.clone());
        Ok(listing)
    }

    fn evaluate(&self, dir: &str, file: &str) -> Result<BTreeSet<String>> {
        let rules = self.objects.join(".listing.mk");
        fs::write(&rules, LISTING).map_err(|e| Error::io("write", &rules, e))?;
        let mut make = kernel_make(&self.objects, None, []);
        make.env("PATH", &self.toolchain.path).arg("-f").arg(&rules);
        make.args(["-r", "-R", "-s", "--no-print-directory", "SRCARCH=x86", "CC=cc", "BITS=64"]);
        make.arg(format!("srctree={}", self.tree.display()));
        make.args([
            &format!("objtree={}", self.objects.display()),
            &format!("dir={dir}"),
            &format!("file={file}"),
        ]);
        let said = run::stdout(make.arg("__list"))?;
        let line = said.lines().find_map(|line| line.strip_prefix("VMMLINUX ")).unwrap_or_default();
        Ok(line.split_whitespace().map(str::to_owned).collect())
    }
}

/// Whether kbuild enters an object's directory twice for it, at the same time and writing the same files: once by itself, as
/// arch/x86/Makefile names it among `drivers-y`, and once by arch/x86.
fn is_entered_twice(object: &str) -> bool {
    ["arch/x86/pci/", "arch/x86/power/", "arch/x86/video/"].iter().any(|dir| object.starts_with(dir))
}

pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

pub(crate) fn dir_name(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn is_makefile(name: &str) -> bool {
    name.starts_with("Makefile") || name.starts_with("Kbuild")
}

/// The source files whose objects a patch touches.
///
/// A source file stands for itself and for files of its directory that include it. A header stands for the files that include it directly: those of its own directory
/// and of the directories of the patch's other files; if there are none, the first eight elsewhere in the tree.
pub(crate) fn touched_sources(tree: &Path, patch: &PatchFile) -> Result<BTreeSet<String>> {
    let paths: Vec<&str> =
        patch.changes.iter().filter(|change| !change.removed).map(|change| &*change.path).collect();
    let mut sources: BTreeSet<String> =
        paths.iter().filter(|path| is_source(path)).map(|path| (*path).to_owned()).collect();
    for source in sources.clone() {
        sources.extend(includers(
            tree,
            dir_name(&source),
            &[format!("#include \"{}\"", file_name(&source))],
        )?);
    }
    for header in paths.iter().filter(|path| Path::new(path).extension().is_some_and(|e| e == "h")) {
        let names = include_names(header);
        let mut dirs: BTreeSet<&str> = paths.iter().map(|path| dir_name(path)).collect();
        dirs.insert(dir_name(header));
        let mut users = BTreeSet::new();
        for dir in dirs {
            users.extend(includers(tree, dir, &names)?);
        }
        if users.is_empty() {
            users.extend(includers_anywhere(tree, &names)?.into_iter().take(8));
        }
        sources.extend(users);
    }
    Ok(sources)
}

fn is_source(path: &str) -> bool {
    [".c", ".S", ".rs"].iter().any(|end| path.ends_with(end))
}

/// The directives that include a header.
fn include_names(header: &str) -> Vec<String> {
    let mut names = vec![format!("#include \"{}\"", file_name(header))];
    for root in ["include/", "arch/x86/include/", "include/uapi/", "arch/x86/include/uapi/"] {
        if let Some(name) = header.strip_prefix(root) {
            names.push(format!("#include <{name}>"));
        }
    }
    names
}

/// The C files of a directory that include a header directly.
fn includers(tree: &Path, dir: &str, names: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let path = tree.join(dir);
    let Ok(entries) = fs::read_dir(&path) else { return Ok(found) };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("read", &path, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_source(&name) && fs::read_to_string(entry.path()).is_ok_and(|text| includes(&text, names)) {
            found.push(if dir.is_empty() { name } else { format!("{dir}/{name}") });
        }
    }
    found.sort();
    Ok(found)
}

fn includes(text: &str, names: &[String]) -> bool {
    text.lines().any(|line| names.iter().any(|name| line.starts_with(name.as_str())))
}

/// The C files of the tree that include a header directly.
fn includers_anywhere(tree: &Path, names: &[String]) -> Result<Vec<String>> {
    let mut grep = run::command("grep");
    grep.current_dir(tree).args(["-rlF", "--include=*.c"]);
    for name in names {
        grep.args(["-e", name]);
    }
    let tops = ["kernel", "arch/x86", "drivers", "mm", "lib", "fs", "init"];
    let output = run::output(grep.args(tops.iter().filter(|top| tree.join(top).is_dir())))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found: Vec<String> = text.lines().map(str::to_owned).collect();
    // In the order of the directories above, then by name.
    found.sort_by_key(|path| (tops.iter().position(|top| path.starts_with(top)), path.clone()));
    Ok(found)
}

/// The configuration symbols that patches define.
pub(crate) fn defined_symbols<'a>(patches: impl IntoIterator<Item = &'a PatchFile>) -> BTreeSet<String> {
    let mut symbols = BTreeSet::new();
    for change in patches.into_iter().flat_map(|patch| &patch.changes) {
        if file_name(&change.path).starts_with("Kconfig") {
            for line in change.hunks.iter().flat_map(|hunk| &hunk.added) {
                let name = line.strip_prefix("config ").or_else(|| line.strip_prefix("menuconfig "));
                symbols.extend(name.map(|name| name.trim().to_owned()));
            }
        }
    }
    symbols
}
