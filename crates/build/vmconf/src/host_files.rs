//! The files of an OpenBSD host, below a directory of this machine.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// A host's root directory. Paths, `..` and symbolic links mean what they mean on the host, and never lead out of it.
#[derive(Debug, Clone)]
pub(crate) struct HostFiles {
    root: PathBuf,
}

impl HostFiles {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Opens a file for reading. A relative path begins at `/`, where vmd runs as a daemon. A FIFO does not block.
    pub(crate) fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        self.resolve(path.as_ref(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    /// The path on the host after all links, as realpath(3) gives it there. `None` if there is no such file.
    pub(crate) fn real_path(&self, path: &str) -> Option<String> {
        let real = |file: File| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
        let root = real(self.resolve(Path::new("/"), OFlags::PATH).ok()?)?;
        let file = real(self.resolve(Path::new(path), OFlags::PATH).ok()?)?;
        Some(Path::new("/").join(file.strip_prefix(root).ok()?).display().to_string())
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let root = File::open(&self.root)?;
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how)?.into())
    }

    /// The numbers of the users in /etc/passwd by name. `None` if it cannot be read.
    pub(crate) fn users(&self) -> Option<HashMap<String, u32>> {
        self.numbers("/etc/passwd")
    }

    /// The numbers of the groups in /etc/group by name. `None` if it cannot be read.
    pub(crate) fn groups(&self) -> Option<HashMap<String, u32>> {
        self.numbers("/etc/group")
    }

    /// Names and numbers of a file whose lines are `NAME:PASSWORD:NUMBER:…`.
    fn numbers(&self, path: &str) -> Option<HashMap<String, u32>> {
        let text = read_limited(self.open(path).ok()?, 1 << 20).ok()?;
        let number = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((name, fields.nth(1)?.parse().ok()?))
        };
        // The first entry of a name counts.
        Some(text.lines().rev().filter_map(number).collect())
    }
}

/// The text of a regular file of at most `limit` bytes. Bytes that are not UTF-8 are replaced.
pub(crate) fn read_limited(file: File, limit: u64) -> io::Result<String> {
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        Err(io::ErrorKind::FileTooLarge.into())
    } else {
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
