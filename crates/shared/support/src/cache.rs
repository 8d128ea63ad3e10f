//! The cache under the XDG cache directory: downloads and trees, named by the hash of their content, and locks.
//!
//! ```text
//! <cache>/downloads/<sha256>/<file name>   what was fetched, verified
//! <cache>/pristine/<sha256>/               a source archive unpacked, named by the archive's hash
//! <cache>/trees/<series>-<sha256>/         a pristine tree with patches and overlay (see `tree`)
//! <cache>/builds/<name>-<hash>/            build directories (see `build`)
//! <cache>/apt/<hash>/                      apt's lists of the mirrors the sources come from
//! ```
//!
//! A file or directory with its final name is complete: it is made under a temporary name beside it and renamed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    file::{Error, Result, TempDir, temp_dir},
    hash::hash_file,
    progress::Progress,
};

/// The cache directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache: `$XDG_CACHE_HOME/vmmlinux`, by default `~/.cache/vmmlinux`.
    pub fn user() -> Result<Self> {
        let base = etcetera::choose_base_strategy().map_err(|e| {
            Error::new("find the home directory of the user for", "~/.cache", io::Error::other(e))
        })?;
        Ok(Self::at(base.cache_dir().join("vmmlinux")))
    }

    /// A cache in the given directory, which is created on first use.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The cache's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory of the cache, created if need be.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).map_err(|e| Error::new("create", &dir, e))?;
        Ok(dir)
    }

    /// The download with this hash, if the cache has it. A file whose hash differs is removed.
    pub fn download(&self, sha256: &str, name: &str) -> Result<Option<PathBuf>> {
        let path = self.root.join("downloads").join(sha256).join(name);
        if !path.is_file() {
            return Ok(None);
        }
        if hash_file(&path)? == sha256 {
            return Ok(Some(path));
        }
        tracing::warn!(path = %path.display(), "damaged file in the cache removed");
        fs::remove_file(&path).map_err(|e| Error::new("remove the damaged", &path, e))?;
        Ok(None)
    }

    /// A temporary directory to download into. [`Cache::keep_download`] moves the file out of it.
    pub fn incoming(&self, what: &str) -> Result<TempDir> {
        temp_dir(&self.dir("downloads")?, &format!(".incoming-{what}-"))
    }

    /// Moves a verified file into the cache under its hash.
    pub fn keep_download(&self, file: &Path, sha256: &str, name: &str) -> Result<PathBuf> {
        let path = self.dir(&format!("downloads/{sha256}"))?.join(name);
        fs::rename(file, &path).map_err(|e| Error::new("move the download to", &path, e))?;
        Ok(path)
    }

    /// Takes the lock of a name in the cache; it is held until the returned file is dropped.
    ///
    /// Runs that use the same tree or build directory wait for each other. Waiting is reported as a phase.
    pub fn lock(&self, name: &str, operation: Lock, progress: &dyn Progress) -> Result<File> {
        let path = self.dir("locks")?.join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::new("open the lock", &path, e))?;
        hold(&file, &path, operation, progress)?;
        Ok(file)
    }
}

/// The kind of a lock.
#[derive(Debug, Clone, Copy)]
pub enum Lock {
    /// Held by any number of runs at a time.
    Shared,
    /// Held by one run.
    Exclusive,
}

/// Takes the lock of an open file, or changes its kind. The change is not atomic: another run may hold the lock in
/// between.
pub fn hold(file: &File, path: &Path, operation: Lock, progress: &dyn Progress) -> Result<()> {
    let (now, later) = match operation {
        Lock::Shared => (FlockOperation::NonBlockingLockShared, FlockOperation::LockShared),
        Lock::Exclusive => (FlockOperation::NonBlockingLockExclusive, FlockOperation::LockExclusive),
    };
    match flock(file, now) {
        Err(Errno::WOULDBLOCK) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            progress.phase(&format!("waiting for another run of vmmlinux that holds {name}"));
            flock(file, later)
        }
        done => done,
    }
    .map_err(|e| Error::new("lock", path, e))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Sender, channel},
        thread,
    };

    use super::*;

    /// Sends phases to a channel.
    struct Reporter(std::sync::Mutex<Sender<String>>);

    impl Progress for Reporter {
        fn phase(&self, what: &str) {
            self.0.lock().unwrap().send(what.to_owned()).unwrap();
        }
        fn step(&self, _: u64, _: u64, _: &str) {}
        fn note(&self, _: &str) {}
    }

    #[test]
    fn waiting_for_a_lock_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let (sender, phases) = channel();
        let reporter = Reporter(sender.into());
        let held = cache.lock("x", Lock::Shared, &reporter).unwrap();
        drop(cache.lock("x", Lock::Shared, &reporter).unwrap());
        assert!(phases.try_recv().is_err(), "sharing is no waiting");
        thread::scope(|scope| {
            scope.spawn(|| cache.lock("x", Lock::Exclusive, &reporter).unwrap());
            assert!(phases.recv().unwrap().contains("waiting for another run"));
            drop(held);
        });
    }
}
