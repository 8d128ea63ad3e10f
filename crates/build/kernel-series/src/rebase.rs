//! Carrying the stack to another kernel, and writing what came of it back.
//!
//! [`rebase`] makes a git tree of the new kernel and applies the stack with `git am -3`; git finds the old versions of
//! the files by the blob identifiers of the patches. It goes through the whole stack twice. The first pass is a survey:
//! where a person is needed it takes the patch's side of each conflict and goes on, so that all such hunks are known.
//! The second stops at the first of them, in the middle of `git am`, for the person to go on from.
//!
//! [`refresh`] turns the commits of such a tree into patch files again.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use support::{cache::Cache, file::write_atomically, progress::Progress, run};

use crate::{
    check::{load, work_dir},
    error::{Error, Result},
    git::{self, Git},
    patch::PatchFile,
    released::{CONTEXT, Loaded, RELEASED, Release, WorkTree, changed_files, copy_tree, mbox, mbox_text},
    stack::{Patch, STACK_FILE, Stack},
};

/// A rebase to be made.
pub struct Rebase<'a> {
    /// The stack.
    pub stack: &'a Stack,
    /// The series whose patches are carried.
    pub series: &'a str,
    /// Its released kernel, to which the patches apply.
    pub from: &'a Release,
    /// The kernel to carry them to.
    pub onto: &'a Release,
    /// Where the old kernel's git tree is kept.
    pub cache: &'a Cache,
    /// The tree to make. It must not exist, or be a git tree without changes that an earlier rebase made.
    pub tree: &'a Path,
    /// The listener to what is being done.
    pub progress: &'a dyn Progress,
}

/// How a patch came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It applied as it is.
    Applied,
    /// git merged it.
    Merged,
    /// The kernel has it already.
    AlreadyThere,
    /// A person is needed.
    Conflict,
}

/// A hunk for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The file.
    pub file: String,
    /// Hunks of the patch that do not apply to it, by number, with their `@@` lines. Empty if all of the file is
    /// concerned.
    pub hunks: Vec<String>,
    /// Why, if it is not the hunks' context: the file does not exist, say.
    pub why: Option<String>,
}

/// What became of one patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Carried {
    /// `group/file`.
    pub patch: String,
    /// How it came over.
    pub outcome: Outcome,
    /// Its hunks.
    pub hunks: usize,
    /// Hunks that git merged, where a plain `git apply` fails.
    pub merged_hunks: usize,
    /// What is left to a person.
    pub conflicts: Vec<Conflict>,
}

/// What became of the stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// The version that the patches came from.
    pub from: String,
    /// The version they were carried to.
    pub onto: String,
    /// The tree.
    pub tree: PathBuf,
    /// All patches, in order.
    pub patches: Vec<Carried>,
}

impl Survey {
    /// Whether no person is needed.
    pub fn is_clean(&self) -> bool {
        self.patches.iter().all(|patch| patch.outcome != Outcome::Conflict)
    }

    /// The survey as text, with the steps that are left.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for patch in &self.patches {
            let state = match patch.outcome {
                Outcome::Applied => "applies".to_owned(),
                Outcome::Merged => format!("merged by git ({} of {} hunks)", patch.merged_hunks, patch.hunks),
                Outcome::AlreadyThere => "the kernel has it already".to_owned(),
                Outcome::Conflict => "NEEDS A PERSON".to_owned(),
            };
            let _ = writeln!(text, "{}: {state}", patch.patch);
            for conflict in &patch.conflicts {
                let hunks = if conflict.hunks.is_empty() {
                    "all of it".to_owned()
                } else {
                    conflict.hunks.join(", ")
                };
                let why = conflict.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                let _ = writeln!(text, "  {}, {hunks}{why}", conflict.file);
            }
        }
        let count = |outcome| self.patches.iter().filter(|patch| patch.outcome == outcome).count();
        let hunks: usize = self.patches.iter().map(|patch| patch.hunks).sum();
        let merged: usize = self.patches.iter().map(|patch| patch.merged_hunks).sum();
        let failed: usize =
            self.patches.iter().flat_map(|p| &p.conflicts).map(|conflict| conflict.hunks.len().max(1)).sum();
        let _ = writeln!(
            text,
            "{} to {}: {} patches apply, {} are merged, {} are there already, {} need a person; of {hunks} hunks {merged} \
             are merged and {failed} need a person",
            self.from,
            self.onto,
            count(Outcome::Applied),
            count(Outcome::Merged),
            count(Outcome::AlreadyThere),
            count(Outcome::Conflict),
        );
        let tree = self.tree.display();
        if self.is_clean() {
            let _ = writeln!(text, "the stack is applied in {tree}");
        } else {
            let _ = writeln!(
                text,
                "git am stopped at the first of them in {tree}: resolve it, `git add` the files, `git am --continue`; \
                 `git am --skip` drops a patch"
            );
        }
        let _ = writeln!(text, "then `vmmlinux series refresh --tree {tree}` writes the patches back");
        text
    }
}

/// Carries a series' product patches to another kernel.
pub fn rebase(job: &Rebase<'_>) -> Result<Survey> {
    let patches = load(job.stack, &job.stack.product(job.series))?;
    let (base_dir, _lock) = work_dir(job.cache, "base", job.series, job.from, job.progress)?;
    // The old kernel's tree has the blobs that the patches name.
    job.progress.phase(&format!("applying the patches to Linux {}", job.from.version));
    let old = WorkTree::prepare(&base_dir, job.from, &changed_files(&patches, None, job.from))?;
    let mut carried = Vec::new();
    for patch in &patches {
        if let Err(output) = old.am(patch)? {
            return Err(Error::DoesNotApply {
                patch: patch.name.clone(),
                version: job.from.version.clone(),
                output,
            });
        }
        // With the blob identifiers of this series, whichever series the file is written for.
        carried.push(Loaded { text: format_patch(&old.git, "HEAD", &patch.file.notes)?, ..patch.clone() });
    }
    job.progress.phase(&format!("making a git tree of Linux {}", job.onto.version));
    let git = onto_tree(job, &old)?;
    let mut survey = Survey {
        from: job.from.version.clone(),
        onto: job.onto.version.clone(),
        tree: job.tree.to_owned(),
        patches: Vec::new(),
    };
    for patch in &carried {
        job.progress.phase(&format!("carrying {} to Linux {}", patch.name, job.onto.version));
        survey.patches.push(carry(&git, patch)?);
    }
    if !survey.is_clean() {
        job.progress.phase("going to the first patch that needs a person");
        git.run(["reset", "--quiet", "--hard", RELEASED])?;
        let dir =
            tempfile::tempdir().map_err(|e| Error::io("create a directory in", std::env::temp_dir(), e))?;
        let mut am = git.command(["am", "--quiet", "-3", CONTEXT, "--message-id", "--keep-non-patch"]);
        for (number, patch) in carried.iter().enumerate() {
            let path = dir.path().join(format!("{number:04}"));
            fs::write(&path, mbox_text(patch)).map_err(|e| Error::io("write", &path, e))?;
            am.arg(path);
        }
        run::output(&mut am)?;
    }
    Ok(survey)
}

/// The git tree of the new kernel, all of it tracked, that borrows the old tree's blobs.
fn onto_tree(job: &Rebase<'_>, old: &WorkTree) -> Result<Git> {
    let git = Git::at(job.tree);
    let marker = job.tree.join(".git/vmmlinux-release");
    if job.tree.exists() {
        if fs::read_to_string(&marker).ok().as_deref() != Some(&*job.onto.hash) {
            return Err(Error::NotOurTree { tree: job.tree.to_owned(), version: job.onto.version.clone() });
        }
        refuse_unfinished_work(&git)?;
    } else {
        copy_tree(&job.onto.path, job.tree)?;
        git.run(["-c", "init.defaultBranch=stack", "init", "--quiet"])?;
        // Ten times faster than the default, for twice the space.
        git.run(["config", "core.looseCompression", "0"])?;
        git.run(["add", "--all", "--force", "."])?;
        git.run(["commit", "--quiet", "-m", &format!("Linux {}", job.onto.version)])?;
        git.run(["tag", RELEASED])?;
        fs::write(&marker, &job.onto.hash).map_err(|e| Error::io("write", &marker, e))?;
    }
    let alternates = job.tree.join(".git/objects/info/alternates");
    let objects = format!("{}\n", old.git.dir().join(".git/objects").display());
    fs::write(&alternates, objects).map_err(|e| Error::io("write", &alternates, e))?;
    git.run(["reset", "--quiet", "--hard", RELEASED])?;
    Ok(git)
}

/// Fails if a tree has uncommitted changes or is in the middle of `git am`.
fn refuse_unfinished_work(git: &Git) -> Result<()> {
    if git.run(["status", "--porcelain"])?.is_empty() && !git.dir().join(".git/rebase-apply").exists() {
        return Ok(());
    }
    Err(Error::Busy { tree: git.dir().to_owned() })
}

/// Applies one patch, whatever it takes, and says what it took.
fn carry(git: &Git, patch: &Loaded) -> Result<Carried> {
    let hunks = patch.file.changes.iter().map(|change| change.hunks.len()).sum();
    let mut carried = Carried {
        patch: patch.name.clone(),
        outcome: Outcome::Applied,
        hunks,
        merged_hunks: 0,
        conflicts: Vec::new(),
    };
    let mbox = mbox(patch)?;
    let check = run::output(git.command(["apply", CONTEXT, "--check"]).arg(mbox.path()))?;
    let rejected =
        if check.status.success() { BTreeMap::new() } else { rejected(git.dir(), patch, mbox.path())? };
    let head = git.run(["rev-parse", "HEAD"])?;
    let mut am = git.command(["am", "-3", CONTEXT, "--message-id", "--keep-non-patch"]);
    let output = run::output(am.arg(mbox.path()))?;
    if output.status.success() {
        if git.run(["rev-parse", "HEAD"])? == head {
            carried.outcome = Outcome::AlreadyThere;
        } else if !check.status.success() {
            carried.outcome = Outcome::Merged;
            carried.merged_hunks = rejected.values().map(|rejected| rejected.hunks.len()).sum();
        }
        return Ok(carried);
    }
    carried.outcome = Outcome::Conflict;
    let unmerged = git.run(["diff", "--name-only", "--diff-filter=U"])?;
    if unmerged.is_empty() {
        // git could not even begin to merge: every file that refuses hunks is a person's.
        carried.conflicts = rejected.into_values().collect();
        if carried.conflicts.is_empty() {
            let why = Some(git::said(&output, 5));
            carried.conflicts.push(Conflict { file: "all files".to_owned(), hunks: Vec::new(), why });
        }
        git.try_run(["am", "--skip"])?;
        return Ok(carried);
    }
    for file in unmerged.lines() {
        let regions = conflict_regions(&git.dir().join(file));
        let conflict = rejected.get(file).cloned().unwrap_or_else(|| Conflict {
            file: file.to_owned(),
            hunks: Vec::new(),
            why: None,
        });
        carried.conflicts.push(Conflict { why: conflict.why.or(regions), ..conflict });
    }
    carried.merged_hunks = rejected
        .iter()
        .filter(|(file, _)| !unmerged.lines().any(|unmerged| unmerged == **file))
        .map(|(_, rejected)| rejected.hunks.len())
        .sum();
    take_the_patchs_side(git, &unmerged)?;
    Ok(carried)
}

/// Ends a merge with the patch's side of the files, one a line, so that the patches that build on it are judged by themselves.
fn take_the_patchs_side(git: &Git, unmerged: &str) -> Result<()> {
    for file in unmerged.lines() {
        if !git.try_run(["checkout", "--theirs", "--", file])?.status.success() {
            git.try_run(["checkout", "--ours", "--", file])?;
        }
        git.try_run(["add", "--", file])?;
    }
    if !git.try_run(["am", "--continue"])?.status.success() {
        git.try_run(["am", "--skip"])?;
    }
    Ok(())
}

/// Where a file has conflict markers.
fn conflict_regions(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let lines: Vec<String> = text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with("<<<<<<< "))
        .map(|(number, _)| (number + 1).to_string())
        .collect();
    (!lines.is_empty()).then(|| format!("conflict at line {}", lines.join(", ")))
}

/// The hunks that a plain `git apply` rejects, by file. Tried on copies of the files.
fn rejected(tree: &Path, patch: &Loaded, mbox: &Path) -> Result<BTreeMap<String, Conflict>> {
    let dir = tempfile::tempdir().map_err(|e| Error::io("create a directory in", std::env::temp_dir(), e))?;
    let mut rejected = BTreeMap::new();
    for change in &patch.file.changes {
        let old = change.old_path.as_ref().unwrap_or(&change.path);
        let (from, to) = (tree.join(old), dir.path().join(old));
        if from.is_file() {
            let parent = to.parent().expect("below the directory");
            fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
            fs::copy(&from, &to).map_err(|e| Error::io("copy", &from, e))?;
        } else if change.old_path.is_some() {
            let why = Some("the file does not exist".to_owned());
            rejected.insert(old.clone(), Conflict { file: old.clone(), hunks: Vec::new(), why });
            continue;
        }
        let mut apply = Git::at(dir.path()).command(["apply", CONTEXT, "--reject", "--verbose"]);
        let output = run::output(apply.arg(format!("--include={old}")).arg(mbox))?;
        if output.status.success() {
            continue;
        }
        let text = git::said(&output, usize::MAX);
        let hunks: Vec<String> = text
            .lines()
            .filter_map(|line| {
                line.strip_prefix("Rejected hunk #")?.trim_end_matches('.').parse::<usize>().ok()
            })
            .map(|number| {
                let header = change.hunks.get(number - 1).map_or("", |hunk| &hunk.header);
                format!("hunk {number} ({header})")
            })
            .collect();
        let why = hunks.is_empty().then(|| git::said(&output, 2));
        rejected.insert(change.path.clone(), Conflict { file: change.path.clone(), hunks, why });
    }
    Ok(rejected)
}

/// A commit as a patch file, with notes.
pub(crate) fn format_patch(git: &Git, commit: &str, notes: &str) -> Result<String> {
    let message = git.run(["log", "-1", "--format=%s%n%n%b", commit])?;
    let (subject, body) = message.split_once("\n\n").unwrap_or((&message, ""));
    let body: Vec<&str> = body.lines().filter(|line| !line.starts_with("Message-ID: ")).collect();
    let body = body.join("\n");
    let formatted = git.run([
        "format-patch",
        "-1",
        "--stdout",
        "--full-index",
        "--no-signature",
        "--find-renames",
        "--stat=72",
        commit,
    ])?;
    let below = formatted.split_once("\n---\n").map_or("", |(_, below)| below);
    let notes = if notes.is_empty() { String::new() } else { format!("{}\n\n", notes.trim_end()) };
    Ok(format!(
        "Subject: {subject}\n\n{}\n---\n{notes}{}\n",
        body.trim_matches('\n'),
        below.trim_end_matches('\n')
    ))
}

/// A refresh to be made.
pub struct Refresh<'a> {
    /// The stack.
    pub stack: &'a Stack,
    /// The series that the tree is of.
    pub series: &'a str,
    /// Whether the common files are written for this series.
    pub is_default: bool,
    /// The git tree that [`rebase`] made.
    pub tree: &'a Path,
}

/// What a refresh wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Refreshed {
    /// Files that were written, relative to the stack's directory.
    pub written: Vec<String>,
    /// Files that are no longer needed and were removed.
    pub removed: Vec<String>,
    /// Patches of the stack that the tree does not have.
    pub dropped: Vec<String>,
}

/// Writes the commits of a tree back as patch files: those of the default series as the common files, those of others
/// as files of their own where the common file does not do the same.
pub fn refresh(job: &Refresh<'_>) -> Result<Refreshed> {
    let git = Git::at(job.tree);
    if !job.tree.join(".git").exists() {
        return Err(Error::NotOurTree { tree: job.tree.to_owned(), version: job.series.to_owned() });
    }
    refuse_unfinished_work(&git)?;
    let commits = git.run(["rev-list", "--reverse", &format!("{RELEASED}..HEAD")])?;
    let mut known: BTreeMap<String, Patch> =
        job.stack.product(job.series).into_iter().map(|patch| (patch.name(), patch)).collect();
    let mut refreshed = Refreshed::default();
    let mut pending: Vec<(PathBuf, String)> = Vec::new();
    let mut overrides: Vec<String> = Vec::new();
    for commit in commits.lines() {
        let (group, file) = file_of(&git, commit)?;
        let name = format!("{group}/{file}");
        let old = known.remove(&name);
        let old_file = match &old {
            Some(patch) => load(job.stack, std::slice::from_ref(patch))?.into_iter().next(),
            None => None,
        };
        let notes = old_file.as_ref().map_or("", |loaded| &loaded.file.notes);
        let text = format_patch(&git, commit, notes)?;
        PatchFile::parse(&text, &name)
            .map_err(|problems| Error::Malformed { dir: job.stack.dir().to_owned(), problems })?;
        let common = job.stack.dir().join(&name);
        let own = format!("{group}/{}/{file}", job.series);
        if job.is_default || (old.is_none() && !common.exists()) {
            if fs::read_to_string(&common).ok().as_deref() != Some(&text) {
                pending.push((common, text));
                refreshed.written.push(name);
            }
        } else if common_does(&git, &common, commit)? {
            if job.stack.dir().join(&own).exists() {
                refreshed.removed.push(own);
            }
        } else {
            let path = job.stack.dir().join(&own);
            if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
                pending.push((path, text));
                refreshed.written.push(own);
            }
            if job.stack.why_override(job.series, &name).is_none() {
                overrides.push(name);
            }
        }
    }
    write_all(pending)?;
    for file in &refreshed.removed {
        let path = job.stack.dir().join(file);
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    exceptions(job, &overrides, &refreshed.removed)?;
    refreshed.dropped = known.into_keys().collect();
    Ok(refreshed)
}

/// The group and the file of a commit's patch, from its message.
fn file_of(git: &Git, commit: &str) -> Result<(String, String)> {
    let message = git.run(["log", "-1", "--format=%B", commit])?;
    let name = message.lines().rev().find_map(|line| line.strip_prefix("Message-ID: "));
    let parts = name.and_then(|id| id.trim_matches(['<', '>']).split_once('/'));
    let (group, file) = parts.ok_or_else(|| Error::NoName {
        commit: commit[..12].to_owned(),
        subject: message.lines().next().unwrap_or_default().to_owned(),
    })?;
    Ok((group.to_owned(), file.to_owned()))
}

/// Writes patch files, with the directories that they need.
fn write_all(patches: Vec<(PathBuf, String)>) -> Result<()> {
    for (path, text) in patches {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        }
        write_atomically(&path, text.as_bytes())?;
    }
    Ok(())
}

/// Whether the common file, applied to a commit's parent, gives the commit's tree.
fn common_does(git: &Git, common: &Path, commit: &str) -> Result<bool> {
    let index = git.dir().join(".git/vmmlinux-index");
    let with = |args: &[&str]| {
        let mut command = git.command(args);
        command.env("GIT_INDEX_FILE", &index);
        command
    };
    run::stdout(&mut with(&["read-tree", &format!("{commit}^")]))?;
    let applied = run::output(with(&["apply", CONTEXT, "--cached"]).arg(common))?.status.success();
    let same = applied
        && run::stdout(&mut with(&["write-tree"]))?.trim()
            == git.run(["rev-parse", &format!("{commit}^{{tree}}")])?;
    let _ = fs::remove_file(&index);
    Ok(same)
}

/// Writes new overrides into `stack.toml`, with empty reasons, which the reader refuses until a person gives them, and
/// takes out those whose files were removed.
fn exceptions(job: &Refresh<'_>, new: &[String], removed: &[String]) -> Result<()> {
    if new.is_empty() && removed.is_empty() {
        return Ok(());
    }
    let path = job.stack.dir().join(STACK_FILE);
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let header = format!("[override.\"{}\"]", job.series);
    let gone: Vec<String> = removed
        .iter()
        .map(|file| format!("\"{}\" =", file.replacen(&format!("/{}/", job.series), "/", 1)))
        .collect();
    let mut out = String::new();
    let mut inside = false;
    let mut written = false;
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line.trim() == header;
        }
        if inside && gone.iter().any(|key| line.starts_with(key)) {
            continue;
        }
        out.push_str(line);
        out.push('\n');
        if inside && line.trim() == header {
            written = true;
            for name in new {
                let _ = writeln!(out, "\"{name}\" = \"\"");
            }
        }
    }
    if !written && !new.is_empty() {
        let _ = writeln!(out, "\n{header}");
        for name in new {
            let _ = writeln!(out, "\"{name}\" = \"\"");
        }
    }
    Ok(write_atomically(&path, out.as_bytes())?)
}
