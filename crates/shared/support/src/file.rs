//! Files and directories that appear whole or not at all, and the error for operations on them.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

#[cfg(target_os = "linux")]
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock},
    io::Errno,
};
use walkdir::{DirEntry, WalkDir};

/// A failed operation on a file or directory.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("cannot {what} {path}")]
pub struct Error {
    /// The operation, as it follows "cannot": "read", "create", …
    pub what: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
    /// The remedy, if the kind of the system's error has one.
    #[help]
    pub help: Option<&'static str>,
}

/// A result with an [`Error`](struct@Error) of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error of an operation on a path, with the remedy for its kind.
    pub fn new(what: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let help = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(
                "the disk is full: free some space (a kernel needs about 4 GB) or point XDG_CACHE_HOME or --out to \
                 another disk; no incomplete file was kept",
            ),
            io::ErrorKind::FileTooLarge => {
                Some("a file size limit was exceeded (see `ulimit -f`); no incomplete file was kept")
            }
            io::ErrorKind::PermissionDenied => Some("check the owner and permissions of that path"),
            _ => None,
        };
        Self { what, path: path.into(), source, help }
    }
}

/// A temporary directory. Dropping it removes it, unless it was renamed; one whose process was killed is removed by the next
/// [`temp_dir`] with its parent and prefix.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    /// Locked as long as the directory is in use.
    _lock: File,
}

impl TempDir {
    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary directory was left behind");
        }
    }
}

/// A new temporary directory in `parent`. Directories with the same prefix that no process has locked are removed
/// first: they belong to runs that were killed.
pub fn temp_dir(parent: &Path, prefix: &str) -> Result<TempDir> {
    let entries = fs::read_dir(parent).map_err(|e| Error::new("read", parent, e))?;
    for entry in entries.filter_map(std::result::Result::ok) {
        let path = entry.path();
        if entry.file_name().as_bytes().starts_with(prefix.as_bytes())
            && let Ok(_lock) = lock_dir(&path)
        {
            match remove_tree(&path) {
                // Its owner, or another run, has removed it between its opening and its locking.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done.map_err(|e| Error::new("remove the stale", path, e))?,
            }
        }
    }
    loop {
        let made = tempfile::Builder::new().prefix(prefix).tempdir_in(parent);
        let path = made.map_err(|e| Error::new("create a directory in", parent, e))?.keep();
        match lock_dir(&path) {
            Ok(lock) if path.is_dir() => return Ok(TempDir { path, _lock: lock }),
            // Before it was locked, another run has taken it for a stale one and removed it, or is about to.
            Ok(_) | Err(Errno::NOENT | Errno::WOULDBLOCK) => {}
            Err(e) => return Err(Error::new("lock", path, e)),
        }
    }
}

/// Opens and locks a directory. Fails with `ENOENT` or `ENOTDIR` if there is none, and with `EWOULDBLOCK` if another process
/// has locked it.
fn lock_dir(path: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
    Ok(dir.into())
}

/// Removes a directory with all that is in it, directories that their owner may not write to included.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        done => return done,
    }
    // A directory is made accessible before it is read.
    for entry in WalkDir::new(path).into_iter().filter_entry(|entry| {
        !entry.file_type().is_dir()
            || fs::set_permissions(entry.path(), PermissionsExt::from_mode(0o700)).is_ok()
    }) {
        entry?;
    }
    fs::remove_dir_all(path)
}

/// Writes a file under a temporary name in its own directory and renames it into place. Its mode is 0644.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(|e| Error::new("create a file in", dir, e))?;
    file.write_all(content).map_err(|e| Error::new("write", path, e))?;
    file.persist(path).map_err(|e| Error::new("create", path, e.error))?;
    Ok(())
}

/// Writes an executable shell script that begins with assignments of `variables` and returns its path.
pub fn write_script(path: &Path, variables: &[(&str, &str)], body: &str) -> Result<String> {
    let assignments =
        variables.iter().map(|(name, value)| format!("{name}='{}'\n", value.replace('\'', r"'\''")));
    let script = format!("#!/bin/sh\n{}\n{body}", assignments.collect::<String>());
    write_atomically(path, script.as_bytes())?;
    fs::set_permissions(path, PermissionsExt::from_mode(0o755))
        .map_err(|e| Error::new("make executable", path, e))?;
    Ok(path.display().to_string())
}

/// Linux only: moves a directory to `place`. A directory that is there is exchanged with it and ends up at the path `new`.
#[cfg(target_os = "linux")]
pub fn replace_dir(new: &Path, place: &Path) -> Result<()> {
    match renameat_with(CWD, new, CWD, place, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => fs::rename(new, place).map_err(|e| Error::new("create", place, e)),
        Err(e) => Err(Error::new("replace", place, e)),
    }
}

/// Makes the directory `to` with the directories and symbolic links of `from`; `make` makes each file from the old and the
/// new path. Entries that `wanted` refuses are left out, directories with all that is in them.
pub fn mirror_tree(
    from: &Path,
    to: &Path,
    wanted: impl Fn(&DirEntry) -> bool,
    make: impl Fn(&Path, &Path) -> io::Result<()>,
) -> Result<()> {
    for entry in WalkDir::new(from).into_iter().filter_entry(wanted) {
        let entry = entry.map_err(|e| Error::new("read", from, e))?;
        let target = to.join(entry.path().strip_prefix(from).expect("below the tree"));
        let result = if entry.file_type().is_dir() {
            fs::create_dir(&target)
        } else if entry.file_type().is_symlink() {
            fs::read_link(entry.path()).and_then(|link| std::os::unix::fs::symlink(link, &target))
        } else {
            make(entry.path(), &target)
        };
        result.map_err(|e| Error::new("create", &target, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_directory_that_a_killed_run_left_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let stale = parent.path().join(".run-stale");
        fs::create_dir_all(stale.join("closed")).unwrap();
        fs::write(stale.join("closed/file"), "x").unwrap();
        fs::set_permissions(stale.join("closed"), PermissionsExt::from_mode(0o500)).unwrap();

        let made = temp_dir(parent.path(), ".run-").unwrap();

        assert_eq!([parent.path().join(&names(parent.path())[0])], [made.path()]);
    }

    #[test]
    fn a_directory_in_use_and_other_files_are_kept() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join(".run-file"), "x").unwrap();
        let first = temp_dir(parent.path(), ".run-").unwrap();

        let second = temp_dir(parent.path(), ".run-").unwrap();

        assert!(first.path().is_dir() && first.path() != second.path());
        drop((first, second));
        assert_eq!(names(parent.path()), [".run-file"]);
    }

    #[test]
    fn runs_at_the_same_time_have_a_directory_each() {
        let parent = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let made = temp_dir(parent.path(), ".run-").unwrap();
                        fs::write(made.path().join("file"), "x").unwrap();
                    }
                });
            }
        });
        assert_eq!(names(parent.path()), [""; 0]);
    }
}
