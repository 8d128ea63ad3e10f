//! The files of an OpenBSD host: this one, or one whose root is a directory here.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

/// Symbolic links on the way to a file, as OpenBSD limits them (`SYMLOOP_MAX`).
const MOST_LINKS: usize = 32;

/// A host's root directory. Paths, `..` and symbolic links mean what they mean on the host, and lead out of it only if
/// another process changes the directory meanwhile.
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
        let path = path.as_ref();
        let mut found = self.root.join(self.resolve(path)?);
        if path.as_os_str().as_bytes().ends_with(b"/") {
            // Only a directory may be named so.
            found.push("");
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::open(found, flags, Mode::empty())?.into())
    }

    /// The path on the host after all links, as realpath(3) gives it there. `None` if there is no such file.
    pub(crate) fn real_path(&self, path: &str) -> Option<String> {
        let found = self.resolve(Path::new(path)).ok()?;
        Some(Path::new("/").join(found).display().to_string())
    }

    /// The path of an existing file relative to the root, without links and `..`.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let mut found = PathBuf::new();
        let mut rest: Vec<_> = names(path).collect();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                if !self.root.join(&found).is_dir() {
                    return Err(Errno::NOTDIR.into());
                }
                // The parent of the root is the root.
                found.pop();
                continue;
            }
            let next = found.join(name);
            match fs::read_link(self.root.join(&next)) {
                Ok(_) if links == MOST_LINKS => return Err(Errno::LOOP.into()),
                Ok(target) => {
                    links += 1;
                    if target.is_absolute() {
                        found.clear();
                    }
                    rest.extend(names(&target));
                }
                // EINVAL: not a link.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => found = next,
                Err(error) => return Err(error),
            }
        }
        Ok(found)
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

/// The names of a path, `..` included, from the last to the first.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().rev().filter_map(|component| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        _ => None,
    })
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::*;

    /// A host with a disk, links to it, and a file beside its root.
    fn host() -> (tempfile::TempDir, HostFiles) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("vm/base")).unwrap();
        fs::write(root.join("vm/disk"), "inside").unwrap();
        fs::write(dir.path().join("disk"), "outside").unwrap();
        for (link, target) in [
            ("vm/absolute", "/vm/disk"),
            ("vm/relative", "base/../disk"),
            ("vm/out", "../../../vm/../../vm/disk"),
            ("vm/loop", "loop"),
            ("dir", "/vm"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let files = HostFiles::new(&root);
        (dir, files)
    }

    #[rstest]
    #[case::plain("/vm/disk")]
    #[case::relative_to_the_root("vm//./disk")]
    #[case::absolute_link("/vm/absolute")]
    #[case::relative_link("/vm/relative")]
    #[case::link_above_the_root("/vm/out")]
    #[case::directory_that_is_a_link("/dir/base/../relative")]
    #[case::above_the_root("/../../vm/disk")]
    fn a_path_means_what_it_means_on_the_host(#[case] path: &str) {
        let (_dir, files) = host();

        let text = read_limited(files.open(path).unwrap(), 100).unwrap();

        assert_eq!((text.as_str(), files.real_path(path)), ("inside", Some("/vm/disk".to_owned())));
    }

    #[rstest]
    #[case::missing("/disk", Errno::NOENT)]
    #[case::through_a_missing_one("/none/../vm/disk", Errno::NOENT)]
    #[case::through_a_file("/vm/disk/../disk", Errno::NOTDIR)]
    #[case::file_as_a_directory("/vm/disk/", Errno::NOTDIR)]
    #[case::loop_of_links("/vm/loop", Errno::LOOP)]
    fn a_path_fails_as_on_the_host(#[case] path: &str, #[case] errno: Errno) {
        let (_dir, files) = host();

        let refused = files.open(path).unwrap_err();

        assert_eq!(refused.raw_os_error(), Some(errno.raw_os_error()));
    }
}
