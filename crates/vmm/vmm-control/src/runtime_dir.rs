//! The runtime directory: a control socket and a name lock for each running VM, accessible to the user only.
//!
//! ```text
//! $XDG_RUNTIME_DIR/vmmlinux/NAME.sock    or /tmp/vmmlinux-UID/NAME.sock
//! $XDG_RUNTIME_DIR/vmmlinux/NAME.lock    locked while the VM runs
//! ```
//!
//! The process that holds the lock owns the name. A socket without a held lock is stale and is removed.

use std::{
    env,
    fs::{self, DirBuilder, File},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::geteuid,
};

use crate::{Error, Result};

/// Maximum length of a VM's name in bytes. A socket's path is limited to 107 bytes in all.
pub const MAX_NAME: usize = 48;

/// Checks that a VM can have this name.
pub fn check_name(name: &str) -> Result<()> {
    let letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let rest = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if letter && rest && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(Error::Name { name: name.to_owned() })
}

/// The user's runtime directory, created if it does not exist.
pub fn directory() -> Result<PathBuf> {
    let runtime =
        env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute() && dir.is_dir());
    let dir = runtime.map_or_else(
        || env::temp_dir().join(format!("vmmlinux-{}", geteuid().as_raw())),
        |runtime| runtime.join("vmmlinux"),
    );
    private(&dir)?;
    Ok(dir)
}

/// Creates a directory if it does not exist, and checks that only the user can enter it.
fn private(dir: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io("create", dir, e)),
        _ => {}
    }
    // Without following symbolic links: in /tmp, any user can create one.
    let meta = fs::symlink_metadata(dir).map_err(|e| Error::io("examine", dir, e))?;
    let problem = if !meta.is_dir() {
        "is not a directory"
    } else if meta.uid() != geteuid().as_raw() {
        "belongs to another user"
    } else if meta.mode() & 0o077 != 0 {
        "can be entered by others"
    } else {
        return Ok(());
    };
    Err(Error::Unsafe { path: dir.to_owned(), problem })
}

/// Ownership of a VM's name while this value lives.
#[derive(Debug)]
pub struct NameLock {
    name: String,
    socket: PathBuf,
    lock: PathBuf,
    _held: File,
}

impl NameLock {
    /// Takes a name in the user's runtime directory.
    pub fn new(name: &str) -> Result<Self> {
        Self::in_directory(&directory()?, name)
    }

    /// Takes a name in the given directory.
    pub fn in_directory(dir: &Path, name: &str) -> Result<Self> {
        let _turn = turn(dir)?;
        Self::take(dir, name)
    }

    /// Takes a name. The caller has the directory's lock.
    fn take(dir: &Path, name: &str) -> Result<Self> {
        check_name(name)?;
        let (socket, lock) = (socket_path(dir, name), lock_path(dir, name));
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&lock)
                .map_err(|e| Error::io("create", &lock, e))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Err(Error::Taken { name: name.to_owned() }),
                result => result.map_err(|e| Error::io("lock", &lock, e))?,
            }
            // The previous owner may have removed the file between our opening and locking it: then try again.
            let held = file.metadata().map_err(|e| Error::io("examine", &lock, e))?;
            if fs::metadata(&lock).is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino())) {
                let _ = fs::remove_file(&socket);
                return Ok(Self { name: name.to_owned(), socket, lock, _held: file });
            }
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path for the control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
        let _ = fs::remove_file(&self.lock);
    }
}

/// Locks the directory, until the returned file is dropped, for taking names and trying whether they are taken: a name that
/// is tried is held for that moment, and no VM must find it so.
fn turn(dir: &Path) -> Result<File> {
    let locked = File::open(dir).map_err(|e| Error::io("open", dir, e))?;
    flock(&locked, FlockOperation::LockExclusive).map_err(|e| Error::io("lock", dir, e))?;
    Ok(locked)
}

/// The names of the running VMs, sorted. Stale locks and sockets are removed.
pub fn running(dir: &Path) -> Result<Vec<String>> {
    let _turn = turn(dir)?;
    let entries = fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".lock").map(str::to_owned))
        // Taking a free name succeeds, and dropping it removes the stale files.
        .filter(|name| matches!(NameLock::take(dir, name), Err(Error::Taken { .. })))
        .collect();
    names.sort();
    Ok(names)
}

/// The path of the control socket of the VM of that name.
pub(crate) fn socket_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.sock"))
}

fn lock_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.lock"))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{PermissionsExt as _, symlink},
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn names_are_vmctls() {
        for good in ["a", "alpine", "vm-1.x_y"] {
            check_name(good).unwrap();
        }
        for bad in ["", "1a", ".a", "-f", "a/b", "a b", "ä", &"a".repeat(MAX_NAME + 1)] {
            assert!(matches!(check_name(bad), Err(Error::Name { .. })), "{bad}");
        }
    }

    #[test]
    fn a_name_is_taken_once_and_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let lock = NameLock::in_directory(dir.path(), "a").unwrap();
        assert!(matches!(NameLock::in_directory(dir.path(), "a"), Err(Error::Taken { .. })));
        let _other = NameLock::in_directory(dir.path(), "b").unwrap();
        assert_eq!(running(dir.path()).unwrap(), ["a", "b"]);
        drop(lock);
        assert_eq!(running(dir.path()).unwrap(), ["b"]);
        drop(NameLock::in_directory(dir.path(), "a").unwrap());
    }

    #[test]
    fn a_name_is_free_for_a_vm_while_others_ask_who_runs() {
        let dir = tempfile::tempdir().unwrap();
        let started = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !started.load(Ordering::Relaxed) {
                    running(dir.path()).unwrap();
                }
            });
            let taken = (0..1000).find_map(|_| NameLock::in_directory(dir.path(), "a").err());
            started.store(true, Ordering::Relaxed);
            assert!(taken.is_none(), "{taken:?}");
        });
    }

    #[test]
    fn stale_files_of_a_killed_vm_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for left in ["dead.sock", "dead.lock"] {
            fs::write(dir.path().join(left), b"").unwrap();
        }
        assert!(running(dir.path()).unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = dir.path().join("sockets");
        private(&sockets).unwrap();
        assert_eq!(fs::metadata(&sockets).unwrap().mode() & 0o777, 0o700);
        private(&sockets).unwrap();
        fs::set_permissions(&sockets, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(private(&sockets), Err(Error::Unsafe { .. })));
        let link = dir.path().join("link");
        symlink(dir.path(), &link).unwrap();
        assert!(matches!(private(&link), Err(Error::Unsafe { .. })));
    }
}
