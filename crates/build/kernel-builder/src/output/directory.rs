//! Output directories.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::output::{
    error::{OutputError, Result},
    manifest::{FileRecord, MANIFEST, Manifest},
};

/// An output directory, which may not exist yet.
#[derive(Debug)]
pub(crate) struct OutputDir {
    pub(crate) out: PathBuf,
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
}

impl OutputDir {
    /// The directory `name` in `out`. Fails if the name is unsuitable, or if the directory exists and has no manifest.
    pub(crate) fn new(out: &Path, name: &str) -> Result<Self> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(good) {
            return Err(OutputError::BadName { name: name.to_owned() });
        }
        let dir = out.join(name);
        if dir.exists() && !dir.join(MANIFEST).is_file() {
            return Err(OutputError::NotABuild { path: dir });
        }
        Ok(Self { out: out.to_owned(), name: name.to_owned(), dir })
    }

    /// The manifest, if the directory was built from the same inputs and all its files are there.
    pub(crate) fn up_to_date(&self, inputs: &str) -> Option<Manifest> {
        let manifest = Manifest::load(&self.dir).ok().filter(|m| m.inputs == inputs)?;
        let there = |(name, record): (&String, &FileRecord)| {
            fs::metadata(self.dir.join(name)).is_ok_and(|meta| meta.len() == record.size)
        };
        manifest.files.iter().all(there).then_some(manifest)
    }
}
