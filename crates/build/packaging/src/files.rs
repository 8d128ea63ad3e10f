//! Files of a release: listed, copied, written.

use std::{collections::BTreeSet, fs, path::Path};

use support::hash::hash_file;

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
