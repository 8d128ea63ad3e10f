//! `kernel/patches/`: the patch stack and what each series takes of it.
//!
//! `stack.toml` orders groups; a group's patches are the files `NNNN-name.patch` of its directory, in the order of their
//! numbers. All series take all patches, with two exceptions that `stack.toml` names with a reason: a series is without
//! a patch, or it takes a file of the same name in `<group>/<series>/` instead of the common one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    error::{Error, Problem, Result},
    patch::PatchFile,
};

/// The file that orders the groups.
pub const STACK_FILE: &str = "stack.toml";

/// The file of a group that holds its cover letter: the subject, an empty line, the text.
pub const COVER_FILE: &str = "cover.txt";

/// The file that holds the message of the overlay's patch, in the same form.
pub const OVERLAY_FILE: &str = "overlay.txt";

/// The patch stack.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    dir: PathBuf,
    groups: Vec<Group>,
    /// Per series and patch (`group/file`): why the series is without it.
    without: Exceptions,
    /// Per series and patch (`group/file`): why the series takes another file.
    overrides: Exceptions,
}

type Exceptions = BTreeMap<String, BTreeMap<String, String>>;

/// Patches that serve one purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The name of its directory.
    pub name: String,
    /// What the patches are for.
    pub purpose: String,
    /// Whether our kernels are built with them. Other groups are kept to be mailed; each applies to a released kernel
    /// by itself.
    pub product: bool,
    /// When the group can be removed.
    pub expires: Option<String>,
    /// Its files' names, in order.
    pub files: Vec<String>,
}

/// A patch as one series takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Its group.
    pub group: String,
    /// Its file name.
    pub file: String,
    /// The file, relative to the stack's directory: `group/file` or `group/series/file`.
    pub path: String,
    /// Whether the file is this series' own.
    pub own: bool,
}

impl Patch {
    /// The patch's name in every series: `group/file`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.group, self.file)
    }
}

/// `stack.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    group: Vec<GroupEntry>,
    #[serde(default)]
    without: Exceptions,
    #[serde(default, rename = "override")]
    overrides: Exceptions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupEntry {
    name: String,
    purpose: String,
    #[serde(default = "yes")]
    product: bool,
    expires: Option<String>,
}

const fn yes() -> bool {
    true
}

impl Stack {
    /// Reads the stack of a directory and checks the form of all of it, the patches included. A directory that does
    /// not exist is an empty stack. `series` are the tracked series.
    pub fn load<'a>(dir: &Path, series: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        if !dir.exists() {
            return Ok(Self { dir: dir.to_owned(), ..Self::default() });
        }
        let series: BTreeSet<&str> = series.into_iter().collect();
        let path = dir.join(STACK_FILE);
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let malformed = |problems| Error::Malformed { dir: dir.to_owned(), problems };
        let file: File = toml::from_str(&text)
            .map_err(|e| malformed(vec![Problem::new(STACK_FILE, e.to_string().trim_end(), "")]))?;
        let mut reader = Reader { dir, series: &series, problems: Vec::new() };
        let stack = reader.stack(file)?;
        if reader.problems.is_empty() { Ok(stack) } else { Err(malformed(reader.problems)) }
    }

    /// The stack's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The groups, in order.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The patches that a series' kernels are built with, in order.
    pub fn product(&self, series: &str) -> Vec<Patch> {
        self.groups.iter().filter(|group| group.product).flat_map(|group| self.of(group, series)).collect()
    }

    /// The patches of a group that concern a series, in order.
    pub fn of(&self, group: &Group, series: &str) -> Vec<Patch> {
        let take = |file: &String| {
            let name = format!("{}/{file}", group.name);
            if reason(&self.without, series, &name).is_some() {
                return None;
            }
            let own = reason(&self.overrides, series, &name).is_some();
            let path = if own { format!("{}/{series}/{file}", group.name) } else { name };
            Some(Patch { group: group.name.clone(), file: file.clone(), path, own })
        };
        group.files.iter().filter_map(take).collect()
    }

    /// Why a series is without a patch.
    pub fn why_without(&self, series: &str, name: &str) -> Option<&str> {
        reason(&self.without, series, name)
    }

    /// Why a series takes a file of its own.
    pub fn why_override(&self, series: &str, name: &str) -> Option<&str> {
        reason(&self.overrides, series, name)
    }
}

/// Why a table of exceptions names a patch for a series.
fn reason<'a>(exceptions: &'a Exceptions, series: &str, name: &str) -> Option<&'a str> {
    let entries = exceptions.get(series)?;
    entries.iter().find(|(pattern, _)| matches(pattern, name)).map(|(_, reason)| reason.as_str())
}

/// Whether a key of an exception means a patch: by its name, or by its group's with `/*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => prefix.ends_with('/') && name.starts_with(prefix),
        None => pattern == name,
    }
}

/// The sorted names in a directory; one that does not exist has none.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", dir, e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("read", dir, e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// A stack being read.
struct Reader<'a> {
    dir: &'a Path,
    series: &'a BTreeSet<&'a str>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn problem(&mut self, file: impl Into<String>, what: impl Into<String>, remedy: &str) {
        self.problems.push(Problem::new(file, what, remedy));
    }

    fn stack(&mut self, file: File) -> Result<Stack> {
        let mut stack = Stack {
            dir: self.dir.to_owned(),
            groups: Vec::new(),
            without: file.without,
            overrides: file.overrides,
        };
        let mut own_files: BTreeSet<(String, String)> = BTreeSet::new();
        for entry in file.group {
            if stack.groups.iter().any(|group| group.name == entry.name) {
                self.problem(STACK_FILE, format!("group {} is there twice", entry.name), "remove one");
                continue;
            }
            if entry.purpose.trim().is_empty() {
                self.problem(
                    STACK_FILE,
                    format!("group {} has no purpose", entry.name),
                    "say what it is for",
                );
            }
            let files = self.group(&entry.name, &mut own_files)?;
            let GroupEntry { name, purpose, product, expires } = entry;
            stack.groups.push(Group { name, purpose, product, expires, files });
        }
        for name in entries(self.dir)? {
            let known = [STACK_FILE, OVERLAY_FILE].contains(&&*name)
                || stack.groups.iter().any(|group| group.name == name);
            if !known {
                self.problem(name, "belongs to no group", "add a [[group]] of this name to stack.toml");
            }
        }
        self.exceptions(&stack, &own_files);
        Ok(stack)
    }

    /// The files of a group; those of its series are added to `own_files` as series and `group/file`.
    fn group(&mut self, group: &str, own_files: &mut BTreeSet<(String, String)>) -> Result<Vec<String>> {
        let dir = self.dir.join(group);
        let mut files = Vec::new();
        let mut numbers: BTreeMap<String, String> = BTreeMap::new();
        for name in entries(&dir)? {
            let relative = format!("{group}/{name}");
            if dir.join(&name).is_dir() {
                if !self.series.contains(name.as_str()) {
                    self.problem(relative, "is named after no tracked series", "see kernel/series.toml");
                    continue;
                }
                for file in entries(&dir.join(&name))? {
                    self.patch(&format!("{relative}/{file}"))?;
                    own_files.insert((name.clone(), format!("{group}/{file}")));
                }
            } else if let Some(number) = number(&name) {
                if let Some(other) = numbers.insert(number.to_owned(), name.clone()) {
                    self.problem(&relative, format!("has the number of {other}"), "renumber one of them");
                }
                self.patch(&relative)?;
                files.push(name);
            } else if name != COVER_FILE && name != "README.md" {
                self.problem(relative, "is not named NNNN-subject.patch", "rename or remove it");
            }
        }
        Ok(files)
    }

    /// Checks the form of a patch.
    fn patch(&mut self, relative: &str) -> Result<()> {
        if let Err(problems) = PatchFile::read(&self.dir.join(relative), relative)? {
            self.problems.extend(problems);
        }
        Ok(())
    }

    /// Every exception has a reason and a patch, and every file of a series has its exception.
    fn exceptions(&mut self, stack: &Stack, own_files: &BTreeSet<(String, String)>) {
        let names: BTreeSet<String> = stack
            .groups
            .iter()
            .flat_map(|group| group.files.iter().map(|file| format!("{}/{file}", group.name)))
            .collect();
        for (table, exceptions) in [("without", &stack.without), ("override", &stack.overrides)] {
            for (series, entries) in exceptions {
                let place = format!("{STACK_FILE}: [{table}.\"{series}\"]");
                if !self.series.contains(series.as_str()) {
                    self.problem(&place, "is no tracked series", "see kernel/series.toml");
                }
                for (pattern, reason) in entries {
                    if reason.trim().is_empty() {
                        self.problem(&place, format!("no reason for {pattern}"), "say why");
                    }
                    if !names.iter().any(|name| matches(pattern, name)) {
                        self.problem(&place, format!("{pattern} names no patch"), "remove the entry");
                    }
                }
            }
        }
        for (series, entries) in &stack.overrides {
            let place = format!("{STACK_FILE}: [override.\"{series}\"]");
            for pattern in entries.keys() {
                if stack.why_without(series, pattern).is_some() {
                    self.problem(&place, format!("the series is without {pattern}"), "remove one entry");
                }
                for name in names.iter().filter(|name| matches(pattern, name)) {
                    if !own_files.contains(&(series.clone(), name.clone())) {
                        let (group, file) = name.split_once('/').expect("a group and a file");
                        let what = format!("no file {group}/{series}/{file}");
                        self.problem(&place, what, "add the file or remove the entry");
                    }
                }
            }
        }
        for (series, name) in own_files {
            if stack.why_override(series, name).is_none() {
                let (group, file) = name.split_once('/').expect("a group and a file");
                self.problem(
                    format!("{group}/{series}/{file}"),
                    "replaces the common file without a reason",
                    &format!("add \"{name}\" to [override.\"{series}\"] of stack.toml"),
                );
            }
        }
    }
}

/// The number in front of a patch's name.
fn number(file: &str) -> Option<&str> {
    let (number, rest) = file.split_once('-')?;
    let valid = number.len() == 4
        && number.bytes().all(|b| b.is_ascii_digit())
        && rest.strip_suffix(".patch").is_some_and(|name| !name.is_empty());
    valid.then_some(number)
}
