//! Files of a release: listed, copied, written; and the directory that appears whole or not at all.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use support::hash::hash_file;
use tempfile::TempDir;

use crate::error::{Error, Result};

/// The sorted names of the files in a directory.
pub(crate) fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        if entry.path().is_file() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Copies a file to a path where there is none yet, or the same one.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        let same = hash_file(from)? == hash_file(to)?;
        return if same { Ok(()) } else { Err(Error::Twice { path: from.to_owned() }) };
    }
    fs::copy(from, to).map_err(Error::io("copy", from))?;
    Ok(())
}

/// Writes a file and creates the directories above it.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::write(path, content).map_err(Error::io("write", path))
}

/// A directory that is made beside its place and moved there at the end.
pub(crate) struct Output {
    place: PathBuf,
    scratch: TempDir,
    made: PathBuf,
}

impl Output {
    /// A directory to be published as `place`. Fails if there is one that does not have the file `mark`, by which `what` is
    /// known.
    pub(crate) fn new(place: &Path, what: &'static str, mark: &str) -> Result<Self> {
        if place.exists() && !place.join(mark).is_file() {
            return Err(Error::Taken { path: place.to_owned(), what });
        }
        let parent = match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let scratch = tempfile::Builder::new()
            .prefix(".package-")
            .tempdir_in(parent)
            .map_err(Error::io("create a directory in", parent))?;
        let made = scratch.path().join("made");
        fs::create_dir(&made).map_err(Error::io("create", &made))?;
        Ok(Self { place: place.to_owned(), scratch, made })
    }

    /// The directory to fill.
    pub(crate) fn dir(&self) -> &Path {
        &self.made
    }

    /// A directory for intermediate files, on the same file system.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Moves the directory to its place, and away what is there.
    pub(crate) fn publish(self) -> Result<()> {
        if self.place.exists() {
            let old = self.scratch.path().join("old");
            fs::rename(&self.place, &old).map_err(Error::io("move away the old", &self.place))?;
        }
        fs::rename(&self.made, &self.place).map_err(Error::io("create", &self.place))
    }
}
