//! A released kernel as a git tree in which patches are applied one by one.
//!
//! The work tree is made of hard links to the unpacked release, which git never writes into: it replaces files. git
//! tracks only the files that the patches change, so that the repository is made in seconds instead of minutes; `git am`
//! and every program that reads the tree see all of it.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use support::{file::mirror_tree, run};

use crate::{
    error::{BoxedError, Error, Result},
    git::Git,
    patch::PatchFile,
};

/// An unpacked release. Nothing is written to it.
#[derive(Debug, Clone)]
pub struct Release {
    /// Its directory.
    pub path: PathBuf,
    /// The version its Makefile says: `7.3.4`.
    pub version: String,
    /// A hash of its content.
    pub hash: String,
}

/// Lays files over a tree.
pub type Lay<'a> = Box<dyn Fn(&Path) -> std::result::Result<(), BoxedError> + 'a>;

/// Files of ours that are laid over a tree, and hooked into it.
pub struct Overlay<'a> {
    /// The files, relative to the tree.
    pub files: Vec<PathBuf>,
    /// Lays them over a tree.
    pub lay: Lay<'a>,
}

impl Overlay<'_> {
    /// Takes the overlay off a tree again.
    pub(crate) fn remove(&self, work: &WorkTree) -> Result<()> {
        work.git.run(["reset", "--quiet", "--hard", "HEAD"])?;
        for file in &self.files {
            let path = work.git.dir().join(file);
            if path.exists() {
                fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        Ok(())
    }
}

/// The context that a hunk needs, for `git apply` and `git am`: one line on each side, so that a file serves several
/// series whose lines farther away differ.
pub const CONTEXT: &str = "-C1";

/// The tag of the commit that holds the release.
pub(crate) const RELEASED: &str = "released";

/// A patch with its text, ready to be applied.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    /// `group/file`.
    pub(crate) name: String,
    /// Relative to the stack's directory.
    pub(crate) path: String,
    pub(crate) file: PatchFile,
    pub(crate) text: String,
}

/// A git tree of a release.
#[derive(Debug)]
pub(crate) struct WorkTree {
    pub(crate) git: Git,
}

impl WorkTree {
    /// The tree of a release in `dir`, made now or taken back to the release. `changed` are the files of the release
    /// that will be changed.
    pub(crate) fn prepare(dir: &Path, release: &Release, changed: &BTreeSet<String>) -> Result<Self> {
        let tree = dir.join("tree");
        if !tree.join(".git/refs/tags").join(RELEASED).exists() {
            if tree.exists() {
                fs::remove_dir_all(&tree).map_err(|e| Error::io("remove the incomplete", &tree, e))?;
            }
            link_tree(&release.path, &tree)?;
            let git = Git::at(&tree);
            git.run(["-c", "init.defaultBranch=stack", "init", "--quiet"])?;
            git.run(["config", "status.showUntrackedFiles", "no"])?;
            git.run(["commit", "--quiet", "--allow-empty", "-m", &format!("Linux {}", release.version)])?;
            git.run(["tag", RELEASED])?;
        }
        let work = Self { git: Git::at(&tree) };
        work.reset()?;
        work.track(changed)?;
        Ok(work)
    }

    /// Takes the tree back to the release.
    pub(crate) fn reset(&self) -> Result<()> {
        let _ = fs::remove_dir_all(self.git.dir().join(".git/rebase-apply"));
        let _ = fs::remove_file(self.git.dir().join(".git/index.lock"));
        self.git.run(["reset", "--quiet", "--hard", RELEASED])?;
        Ok(())
    }

    /// Adds files to the release's commit.
    fn track(&self, changed: &BTreeSet<String>) -> Result<()> {
        let tracked = self.git.run(["ls-files"])?;
        let tracked: BTreeSet<&str> = tracked.lines().collect();
        let new: Vec<&str> =
            changed.iter().map(String::as_str).filter(|file| !tracked.contains(file)).collect();
        if new.is_empty() {
            return Ok(());
        }
        self.git.run(["add", "--force", "--"].iter().copied().chain(new))?;
        self.git.run(["commit", "--quiet", "--amend", "--no-edit"])?;
        self.git.run(["tag", "--force", RELEASED])?;
        Ok(())
    }

    /// Applies a patch by `git am`; on failure the tree is as before and git's words are returned.
    pub(crate) fn am(&self, patch: &Loaded) -> Result<std::result::Result<(), String>> {
        let mbox = mbox(patch)?;
        let mut am = self.git.command(["am", "--quiet", CONTEXT, "--keep-non-patch"]);
        let output = run::output(am.arg(mbox.path()))?;
        if output.status.success() {
            return Ok(Ok(()));
        }
        let _ = self.git.try_run(["am", "--abort"])?;
        Ok(Err(crate::git::said(&output, 20)))
    }
}

/// The files of a release that patches and an overlay change.
pub(crate) fn changed_files<'a>(
    patches: impl IntoIterator<Item = &'a Loaded>,
    overlay: Option<&Overlay<'_>>,
    release: &Release,
) -> BTreeSet<String> {
    let old = patches.into_iter().flat_map(|patch| &patch.file.changes);
    let old = old.filter_map(|change| change.old_path.clone());
    let hooks = overlay.into_iter().flat_map(|overlay| &overlay.files).flat_map(|file| {
        let dir = file.ancestors().skip(1).find(|dir| release.path.join(dir).is_dir());
        dir.into_iter()
            .flat_map(|dir| ["Kconfig", "Makefile"].map(|name| dir.join(name).display().to_string()))
    });
    old.chain(hooks).filter(|file| release.path.join(file).is_file()).collect()
}

/// A patch as `git am` takes it: with an author and a date that are the same each time, and with the patch's name as
/// its message identifier.
pub(crate) fn mbox_text(patch: &Loaded) -> String {
    let text = match patch.text.split_once('\n') {
        Some((line, rest)) if line.starts_with("From ") => rest,
        _ => &patch.text,
    };
    format!(
        "From {:040} Mon Sep 17 00:00:00 2001\nFrom: vmmlinux series <series@localhost>\n\
         Date: Thu, 1 Jan 2026 00:00:00 +0000\nMessage-ID: <{}>\n{text}",
        0, patch.name
    )
}

/// A temporary file with [`mbox_text`].
pub(crate) fn mbox(patch: &Loaded) -> Result<tempfile::NamedTempFile> {
    let mbox =
        tempfile::NamedTempFile::new().map_err(|e| Error::io("create a file in", std::env::temp_dir(), e))?;
    fs::write(mbox.path(), mbox_text(patch)).map_err(|e| Error::io("write", mbox.path(), e))?;
    Ok(mbox)
}

/// Makes a tree of hard links to the files of another; copies where the file system cannot link.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    mirror(from, to, |from, to| fs::hard_link(from, to).or_else(|_| copy(from, to)))
}

/// Copies a tree, for people whose editors write into files.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    mirror(from, to, copy)
}

/// A tree of the user's may be a git tree: its repository stays with it.
fn mirror(from: &Path, to: &Path, make: impl Fn(&Path, &Path) -> io::Result<()>) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    }
    Ok(mirror_tree(from, to, |entry| entry.file_name() != ".git", make)?)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to).map(|_| ())
}
