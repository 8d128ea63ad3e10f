//! Files that only root can change: opened after the whole way to them was checked, for use by descriptor.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, Stat, fstat, openat, readlinkat},
    io::Errno,
};

/// Symbolic links on the way to a file, as many as the kernel follows.
const MOST_LINKS: usize = 40;

/// Why a file is not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such file.
    Missing,
    /// It cannot be reached.
    Unreadable(Errno),
    /// A file, directory or link on the way to it does not belong to root.
    Owner(PathBuf),
    /// A file or directory on the way to it can be written to by others.
    Writable(PathBuf),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("it does not exist"),
            Self::Unreadable(error) => write!(f, "it cannot be read: {error}"),
            Self::Owner(path) => write!(f, "{} does not belong to root", path.display()),
            Self::Writable(path) => {
                write!(f, "others than its owner can write to {}", path.display())
            }
        }
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        if error == Errno::NOENT { Self::Missing } else { Self::Unreadable(error) }
    }
}

/// An opened file or directory that only root can change, on a way that only root can change.
#[derive(Debug)]
pub struct Trusted {
    file: OwnedFd,
    stat: Stat,
}

impl Trusted {
    /// Opens `path`, which is absolute. Everything on the way has to belong to root or to `owner`: directories, symbolic
    /// links, the directories that these lead through, and the file. None of it may be writable by others; a directory that
    /// is passed may be if it has the sticky bit, since others cannot replace there what is not theirs.
    pub fn open(path: &Path, owner: u32) -> Result<Self, Refusal> {
        Walk { owner, passed: vec![Self::root(owner)?], rest: rest_of(path), links: 0 }.run()
    }

    fn root(owner: u32) -> Result<(Self, PathBuf), Refusal> {
        let file = rustix::fs::open("/", FLAGS, Mode::empty())?;
        let root = Self { stat: fstat(&file)?, file };
        root.check(owner, true, Path::new("/"))?;
        Ok((root, PathBuf::from("/")))
    }

    /// Returns whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == FileType::RegularFile
    }

    /// Returns whether it may be executed.
    pub fn is_executable(&self) -> bool {
        self.stat.st_mode & 0o111 != 0
    }

    /// A path that leads to this very file, for this process and its children until it is closed.
    ///
    /// It names the process: in a child the descriptor is closed when a program starts, and interpreters of scripts open
    /// what they run once more.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Names of a directory's entries, sorted.
    pub fn entries(&self) -> io::Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = File::from(openat(&self.file, ".", flags, Mode::empty())?);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(directory)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        Ok(names)
    }

    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// `passed`: a directory on the way, not what is opened.
    fn check(&self, owner: u32, passed: bool, path: &Path) -> Result<(), Refusal> {
        if self.stat.st_uid != 0 && self.stat.st_uid != owner {
            return Err(Refusal::Owner(path.to_owned()));
        }
        let sticky = passed && Mode::from_raw_mode(self.stat.st_mode).contains(Mode::SVTX);
        // The mode of a symbolic link means nothing.
        if self.kind() != FileType::Symlink && self.stat.st_mode & 0o022 != 0 && !sticky {
            return Err(Refusal::Writable(path.to_owned()));
        }
        Ok(())
    }
}

const FLAGS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Names of a path still to be followed, the next one last.
fn rest_of(path: &Path) -> Vec<OsString> {
    let named = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(named).collect()
}

/// A walk from the root directory.
struct Walk {
    owner: u32,
    /// Directories that the walk is in, from the root directory on.
    passed: Vec<(Trusted, PathBuf)>,
    rest: Vec<OsString>,
    links: usize,
}

impl Walk {
    fn run(mut self) -> Result<Trusted, Refusal> {
        while let Some(name) = self.rest.pop() {
            if name == ".." {
                self.passed.truncate(self.passed.len().saturating_sub(1).max(1));
                continue;
            }
            let (directory, path) = self.passed.last().expect("the root directory stays");
            let path = path.join(&name);
            let file = openat(directory.file.as_fd(), &name, FLAGS, Mode::empty())?;
            let next = Trusted { stat: fstat(&file)?, file };
            next.check(self.owner, next.kind() == FileType::Directory && !self.rest.is_empty(), &path)?;
            match next.kind() {
                FileType::Symlink => self.follow(&next)?,
                FileType::Directory => self.passed.push((next, path)),
                _ if self.rest.is_empty() => return Ok(next),
                _ => return Err(Errno::NOTDIR.into()),
            }
        }
        let (last, path) = self.passed.pop().expect("the root directory stays");
        last.check(self.owner, false, &path)?;
        Ok(last)
    }

    fn follow(&mut self, link: &Trusted) -> Result<(), Refusal> {
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = PathBuf::from(OsString::from_vec(readlinkat(&link.file, "", Vec::new())?.into_bytes()));
        if target.is_absolute() {
            self.passed.truncate(1);
        }
        self.rest.extend(rest_of(&target));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    use super::*;

    /// A directory of directories that only their owner can change, and that owner.
    fn tree() -> (tempfile::TempDir, u32) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["hooks", "elsewhere"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), Permissions::from_mode(0o755)).unwrap();
        }
        for file in ["hooks/a", "elsewhere/b"] {
            fs::write(dir.path().join(file), file).unwrap();
            fs::set_permissions(dir.path().join(file), Permissions::from_mode(0o755)).unwrap();
        }
        let owner = fs::metadata(dir.path()).unwrap().uid();
        (dir, owner)
    }

    fn open_to_all(path: &Path) {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }

    #[test]
    fn a_file_behind_links_of_root_is_opened() {
        let (dir, owner) = tree();
        symlink("../elsewhere/./b", dir.path().join("hooks/link")).unwrap();
        symlink(dir.path().join("hooks"), dir.path().join("way")).unwrap();

        let opened = Trusted::open(&dir.path().join("way/link"), owner).unwrap();

        assert!(opened.is_file() && opened.is_executable());
        assert_eq!(fs::read(opened.path()).unwrap(), b"elsewhere/b");
    }

    #[test]
    fn a_file_that_was_replaced_afterwards_is_not_what_was_opened() {
        let (dir, owner) = tree();
        let path = dir.path().join("hooks/a");
        let opened = Trusted::open(&path, owner).unwrap();

        fs::remove_file(&path).unwrap();
        fs::write(&path, "another").unwrap();

        assert_eq!(fs::read(opened.path()).unwrap(), b"hooks/a");
    }

    #[test]
    fn a_parent_that_others_can_write_to_is_refused() {
        let (dir, owner) = tree();
        open_to_all(dir.path());

        let refusal = Trusted::open(&dir.path().join("hooks/a"), owner).unwrap_err();

        assert_eq!(refusal, Refusal::Writable(dir.path().to_owned()));
    }

    #[test]
    fn the_directory_of_a_links_target_counts() {
        let (dir, owner) = tree();
        symlink("../elsewhere/b", dir.path().join("hooks/link")).unwrap();
        open_to_all(&dir.path().join("elsewhere"));

        let refusal = Trusted::open(&dir.path().join("hooks/link"), owner).unwrap_err();

        assert_eq!(refusal, Refusal::Writable(dir.path().join("elsewhere")));
    }

    #[test]
    fn a_sticky_directory_is_passed_but_not_opened() {
        let (dir, owner) = tree();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();

        let passed = Trusted::open(&dir.path().join("hooks/a"), owner);
        let opened = Trusted::open(dir.path(), owner);

        assert!(passed.is_ok(), "{passed:?}");
        assert_eq!(opened.unwrap_err(), Refusal::Writable(dir.path().to_owned()));
    }

    #[test]
    fn what_belongs_to_another_is_refused() {
        let (dir, owner) = tree();
        // Root's own files are always trusted: as root the test gives one away.
        if owner == 0 {
            std::os::unix::fs::chown(dir.path().join("hooks"), Some(1), None).unwrap();
        }

        let refusal = Trusted::open(&dir.path().join("hooks/a"), 0).unwrap_err();

        assert!(matches!(refusal, Refusal::Owner(_)), "{refusal}");
    }

    #[test]
    fn a_circle_of_links_ends() {
        let (dir, owner) = tree();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();

        let refusal = Trusted::open(&dir.path().join("a"), owner).unwrap_err();

        assert_eq!(refusal, Refusal::Unreadable(Errno::LOOP));
    }
}
