//! The cache: downloads and trees under the XDG cache directory, found by the hash of their content.
//!
//! ```text
//! <cache>/downloads/<sha256>/<file name>   what was fetched, verified
//! <cache>/pristine/<sha256>/               a source archive unpacked, named by the archive's hash
//! <cache>/trees/<series>-<sha256>/         a pristine tree with patches and overlay (see `tree`)
//! <cache>/builds/<name>-<hash>/            build directories (see `build`)
//! <cache>/apt/<hash>/                      apt's lists of the mirrors the sources come from
//! ```
//!
//! Whatever has its final name is whole: everything is made under a temporary name beside it and renamed.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, Result},
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
            Error::io("find the home directory of the user for", "~/.cache", io::Error::other(e))
        })?;
        Ok(Self::at(base.cache_dir().join("vmmlinux")))
    }

    /// A cache in a directory of the caller's choice; it is created when something is put in it.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The cache's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory of the cache, created if need be.
    pub(crate) fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        Ok(dir)
    }

    /// The download with this hash, if the cache has it whole. One that rotted on the disk is removed.
    pub(crate) fn download(&self, sha256: &str, name: &str) -> Result<Option<PathBuf>> {
        let path = self.root.join("downloads").join(sha256).join(name);
        if !path.is_file() {
            return Ok(None);
        }
        if hash_file(&path)? == sha256 {
            return Ok(Some(path));
        }
        tracing::warn!(path = %path.display(), "damaged in the cache: fetching it again");
        fs::remove_file(&path).map_err(|e| Error::io("remove the damaged", &path, e))?;
        Ok(None)
    }

    /// A directory to download into; dropped with all it holds unless [`Cache::keep_download`] takes the file.
    pub(crate) fn incoming(&self, what: &str) -> Result<tempfile::TempDir> {
        temp_dir(&self.dir("downloads")?, &format!(".incoming-{what}-"))
    }

    /// Moves a verified file into the cache under its hash.
    pub(crate) fn keep_download(&self, file: &Path, sha256: &str, name: &str) -> Result<PathBuf> {
        let path = self.dir(&format!("downloads/{sha256}"))?.join(name);
        fs::rename(file, &path).map_err(|e| Error::io("move the download to", &path, e))?;
        Ok(path)
    }

    /// Waits for, then holds, the lock of a name in the cache until the file is dropped.
    ///
    /// Two runs that want the same tree or build directory take turns instead of writing over each other. Who waits is told.
    pub(crate) fn lock(&self, name: &str, operation: Lock, progress: &dyn Progress) -> Result<File> {
        let path = self.dir("locks")?.join(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("open the lock", &path, e))?;
        hold(&file, &path, operation, progress)?;
        Ok(file)
    }
}

/// Who else may hold a lock.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lock {
    /// Others that share it, too.
    Shared,
    /// Nobody.
    Exclusive,
}

/// Takes the lock of an open file, or changes it from one kind to the other: in between others may have it.
pub(crate) fn hold(file: &File, path: &Path, operation: Lock, progress: &dyn Progress) -> Result<()> {
    let (now, later) = match operation {
        Lock::Shared => (FlockOperation::NonBlockingLockShared, FlockOperation::LockShared),
        Lock::Exclusive => (FlockOperation::NonBlockingLockExclusive, FlockOperation::LockExclusive),
    };
    match flock(file, now) {
        Err(Errno::WOULDBLOCK) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            progress.phase(&format!("waiting for another run of vmmlinux, which is busy with {name}"));
            flock(file, later)
        }
        done => done,
    }
    .map_err(|e| Error::io("lock", path, e.into()))
}

/// A temporary directory; those of the same prefix are removed first: the caller holds the lock of what it makes, so they
/// are what a killed run left behind.
pub(crate) fn temp_dir(parent: &Path, prefix: &str) -> Result<tempfile::TempDir> {
    let entries = fs::read_dir(parent).map_err(|e| Error::io("read", parent, e))?;
    for entry in entries.filter_map(std::result::Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_dir_all(entry.path()).map_err(|e| Error::io("remove the stale", entry.path(), e))?;
        }
    }
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(parent)
        .map_err(|e| Error::io("create a directory in", parent, e))
}

/// The SHA-256 of a file, in hexadecimal.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let mut hash = Hash::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.hex()),
            Ok(n) => hash.bytes(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path, e)),
        }
    }
}

/// A SHA-256 over fields, each with its length, so that no two lists of fields hash the same.
#[derive(Default)]
pub(crate) struct Hash(Sha256);

impl Hash {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Bytes of a file, as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// One field of several.
    pub(crate) fn field(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The hash in hexadecimal.
    pub(crate) fn hex(self) -> String {
        use std::fmt::Write as _;
        self.0.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// Writes a file under a temporary name in its own directory and renames it into place.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(|e| Error::io("create a file in", dir, e))?;
    io::Write::write_all(&mut file, content).map_err(|e| Error::io("write", path, e))?;
    file.persist(path).map_err(|e| Error::io("create", path, e.error))?;
    Ok(())
}

/// Writes a shell script that begins with variables, and gives its path as make would be told it.
pub(crate) fn write_script(path: &Path, variables: &[(&str, &str)], body: &str) -> Result<String> {
    use std::fmt::Write as _;

    let mut script = "#!/bin/sh\n".to_owned();
    for (name, value) in variables {
        let _ = writeln!(script, "{name}='{}'", value.replace('\'', r"'\''"));
    }
    script.push('\n');
    script.push_str(body);
    write_atomically(path, script.as_bytes())?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(|e| Error::io("make executable", path, e))?;
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Sender, channel},
        thread,
    };

    use super::*;

    /// Passes phases on.
    struct Teller(std::sync::Mutex<Sender<String>>);

    impl Progress for Teller {
        fn phase(&self, what: &str) {
            self.0.lock().unwrap().send(what.to_owned()).unwrap();
        }
        fn step(&self, _: u64, _: u64, _: &str) {}
        fn note(&self, _: &str) {}
    }

    #[test]
    fn who_waits_for_a_lock_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let (sender, told) = channel();
        let teller = Teller(sender.into());
        let held = cache.lock("x", Lock::Shared, &teller).unwrap();
        drop(cache.lock("x", Lock::Shared, &teller).unwrap());
        assert!(told.try_recv().is_err(), "sharing is no waiting");
        thread::scope(|scope| {
            scope.spawn(|| cache.lock("x", Lock::Exclusive, &teller).unwrap());
            assert!(told.recv().unwrap().contains("waiting for another run"));
            drop(held);
        });
    }
}
