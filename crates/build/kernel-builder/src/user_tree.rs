//! A tree of the user's, built from a copy that follows it.
//!
//! The copy takes over files by size and modification time and keeps both, so that the next build after an edit copies
//! and compiles what was edited. In a git tree the files are those git knows or would add; build products that it ignores
//! stay behind. Of any other directory everything is copied, and the kernel's own `make mrproper` cleans the copy. The
//! user's tree itself is only read.

use std::{
    collections::BTreeSet,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

use crate::{
    Forge, PreparedTree,
    cache::{Hash, Lock},
    error::{Error, Result},
    run,
    tree::{self, Additions, Source, copy_with_times},
};

impl Forge {
    /// The patched copy of a directory. Patches of the series that the directory has already are left out.
    pub fn prepare_dir(&self, series: &str, dir: &Path) -> Result<PreparedTree> {
        self.prepare_dir_with(series, dir, true)
    }

    /// The copy of a directory with our patches and drivers, or as it is.
    pub(crate) fn prepare_dir_with(&self, series: &str, dir: &Path, patched: bool) -> Result<PreparedTree> {
        self.series.get(series)?;
        let dir = fs::canonicalize(dir).map_err(|e| Error::io("find the tree", dir, e))?;
        if !dir.join("Makefile").is_file() || !dir.join("Kconfig").is_file() {
            return Err(Error::NotAKernel {
                path: dir,
                problem: "no Makefile and Kconfig at its top".to_owned(),
            });
        }
        let mut hash = Hash::new();
        hash.field(dir.as_os_str().as_encoded_bytes());
        let slot = format!("user-{}", &hash.hex()[..16]);
        let _following = self.cache.lock(&format!("copy-{slot}"), Lock::Exclusive, &*self.progress)?;
        self.progress.phase(&format!("looking at {}", dir.display()));
        let files = files(&dir)?;
        let copy = self.cache.dir("pristine")?.join(&slot);
        follow(&dir, &files, &copy)?;
        let source = Source {
            origin: dir.display().to_string(),
            version: describe(&dir),
            sha256: fingerprint(&dir, &files)?,
        };
        let ours = patched.then(|| Additions::of_series(&self.options.kernel_dir, series)).transpose()?;
        tree::prepare(self, series, source, &slot, &copy, ours.unwrap_or_default(), true)
    }
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
        let entry = entry.map_err(|e| Error::io("read", dir, e.into()))?;
        if !entry.file_type().is_dir() {
            files.insert(entry.path().strip_prefix(dir).expect("below the directory").to_owned());
        }
    }
    Ok(files)
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_dir())
}

/// A hash over names, sizes, times and modes: reading 1.5 GB for every build would take longer than most builds do.
fn fingerprint(dir: &Path, files: &BTreeSet<PathBuf>) -> Result<String> {
    let mut hash = Hash::new();
    for file in files {
        let path = dir.join(file);
        let meta = fs::symlink_metadata(&path).map_err(|e| Error::io("read", path, e))?;
        hash.field(file.as_os_str().as_encoded_bytes());
        for number in [meta.len().cast_signed(), meta.mtime(), meta.mtime_nsec(), i64::from(meta.mode())] {
            hash.field(number.to_le_bytes());
        }
    }
    Ok(hash.hex())
}

/// Brings a copy up to its original. Each file is replaced, never written into: prepared trees link to the old one.
fn follow(dir: &Path, files: &BTreeSet<PathBuf>, copy: &Path) -> Result<()> {
    fs::create_dir_all(copy).map_err(|e| Error::io("create", copy, e))?;
    for entry in WalkDir::new(copy).contents_first(true) {
        let entry = entry.map_err(|e| Error::io("read", copy, e.into()))?;
        let relative = entry.path().strip_prefix(copy).expect("below the copy");
        if !entry.file_type().is_dir() && !files.contains(relative) {
            fs::remove_file(entry.path()).map_err(|e| Error::io("remove", entry.path(), e))?;
        } else if entry.file_type().is_dir() && !relative.as_os_str().is_empty() {
            // Only an empty one goes.
            let _ = fs::remove_dir(entry.path());
        }
    }
    for file in files {
        let (from, to) = (dir.join(file), copy.join(file));
        let meta = fs::symlink_metadata(&from).map_err(|e| Error::io("read", &from, e))?;
        if fs::symlink_metadata(&to).is_ok_and(|old| same(&old, &meta)) {
            continue;
        }
        replace(&from, &meta, &to).map_err(|e| Error::io("copy the tree's file to", &to, e))?;
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

/// The tree's git commit, as `git describe` would say it, or nothing.
fn describe(dir: &Path) -> String {
    if !dir.join(".git").exists() {
        return String::new();
    }
    let said = run::stdout(
        run::command("git").arg("-C").arg(dir).args(["describe", "--always", "--dirty", "--tags"]),
    );
    said.map(|s| s.trim().to_owned()).unwrap_or_default()
}
