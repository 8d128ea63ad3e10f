//! A user's tree, built from a copy that is updated before each build.
//!
//! The update copies the files whose size, modification time or mode differ, with their times, so that make compiles
//! what was edited. In a git tree the files are those that git tracks or would add: build products that it ignores are
//! not copied. Of any other directory everything is copied, and the kernel's own `make mrproper` cleans the copy. The
//! user's tree itself is only read.

use std::{
    collections::BTreeSet,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use support::{
    cache::{Cache, Lock},
    file,
    hash::Hash,
    progress::Progress,
    run,
};
use walkdir::WalkDir;

use crate::tree::{
    additions::{Additions, Source},
    error::{Result, TreeError},
    files::copy_with_times,
    prepare::{Ingredients, PreparedTree, prepare},
};

/// The prepared copy of a user's directory. Patches that the directory contains are not applied again.
pub(crate) fn prepare_copy(
    cache: &Cache,
    progress: &dyn Progress,
    series: &str,
    dir: &Path,
    additions: Additions,
) -> Result<PreparedTree> {
    let dir = fs::canonicalize(dir).map_err(|e| file::Error::new("find the tree", dir, e))?;
    if !dir.join("Makefile").is_file() || !dir.join("Kconfig").is_file() {
        let problem = "no Makefile and Kconfig at its top".to_owned();
        return Err(TreeError::NotAKernel { path: dir, problem });
    }
    let mut hash = Hash::new();
    hash.field(dir.as_os_str().as_encoded_bytes());
    let slot = format!("user-{}", &hash.hex()[..16]);
    let _following = cache.lock(&format!("copy-{slot}"), Lock::Exclusive, progress)?;
    progress.phase(&format!("reading {}", dir.display()));
    let files = files(&dir)?;
    let copy = cache.dir("pristine")?.join(&slot);
    follow(&dir, &files, &copy)?;
    let source = Source {
        origin: dir.display().to_string(),
        version: describe(&dir),
        sha256: fingerprint(&dir, &files)?,
    };
    let ingredients =
        Ingredients { series, source, slot: &slot, pristine: &copy, additions, skip_applied: true };
    prepare(cache, progress, ingredients)
}

/// The tree's files, relative to it.
fn files(dir: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    if dir.join(".git").exists() {
        let listed = run::stdout(run::command("git").arg("-C").arg(dir).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))?;
        // A file that was removed but not committed is still listed.
        files.extend(
            listed.split('\0').filter(|f| !f.is_empty()).map(PathBuf::from).filter(|f| exists(&dir.join(f))),
        );
        return Ok(files);
    }
    for entry in WalkDir::new(dir) {
        let entry = entry.map_err(|e| file::Error::new("read", dir, e))?;
        if !entry.file_type().is_dir() {
            files.insert(entry.path().strip_prefix(dir).expect("below the directory").to_owned());
        }
    }
    Ok(files)
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_dir())
}

/// A hash over names, sizes, times and modes. Reading the 1.5 GB of contents would take longer than most builds.
fn fingerprint(dir: &Path, files: &BTreeSet<PathBuf>) -> Result<String> {
    let mut hash = Hash::new();
    for file in files {
        let path = dir.join(file);
        let meta = fs::symlink_metadata(&path).map_err(|e| file::Error::new("read", path, e))?;
        hash.field(file.as_os_str().as_encoded_bytes());
        for number in [meta.len().cast_signed(), meta.mtime(), meta.mtime_nsec(), i64::from(meta.mode())] {
            hash.field(number.to_le_bytes());
        }
    }
    Ok(hash.hex())
}

/// Makes a copy equal to its original. Files are replaced and never written into: prepared trees link to the old ones.
fn follow(dir: &Path, files: &BTreeSet<PathBuf>, copy: &Path) -> Result<()> {
    fs::create_dir_all(copy).map_err(|e| file::Error::new("create", copy, e))?;
    for entry in WalkDir::new(copy).contents_first(true) {
        let entry = entry.map_err(|e| file::Error::new("read", copy, e))?;
        let relative = entry.path().strip_prefix(copy).expect("below the copy");
        if !entry.file_type().is_dir() && !files.contains(relative) {
            fs::remove_file(entry.path()).map_err(|e| file::Error::new("remove", entry.path(), e))?;
        } else if entry.file_type().is_dir() && !relative.as_os_str().is_empty() {
            // Only an empty one goes.
            let _ = fs::remove_dir(entry.path());
        }
    }
    for file in files {
        let (from, to) = (dir.join(file), copy.join(file));
        let meta = fs::symlink_metadata(&from).map_err(|e| file::Error::new("read", &from, e))?;
        if fs::symlink_metadata(&to).is_ok_and(|old| same(&old, &meta)) {
            continue;
        }
        replace(&from, &meta, &to).map_err(|e| file::Error::new("copy the tree's file to", &to, e))?;
    }
    Ok(())
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    if a.is_symlink() || b.is_symlink() {
        return false;
    }
    a.len() == b.len() && a.mtime() == b.mtime() && a.mtime_nsec() == b.mtime_nsec() && a.mode() == b.mode()
}

fn replace(from: &Path, meta: &Metadata, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let temp = to.with_file_name(format!(".{}.new", to.file_name().unwrap_or_default().display()));
    let _ = fs::remove_file(&temp);
    if meta.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, &temp)?;
    } else {
        copy_with_times(from, &temp)?;
    }
    fs::rename(&temp, to)
}

/// The output of `git describe` in the tree, or nothing outside of git.
fn describe(dir: &Path) -> String {
    if !dir.join(".git").exists() {
        return String::new();
    }
    let said = run::stdout(
        run::command("git").arg("-C").arg(dir).args(["describe", "--always", "--dirty", "--tags"]),
    );
    said.map(|s| s.trim().to_owned()).unwrap_or_default()
}
