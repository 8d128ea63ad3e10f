//! `kernel/series.lock`: which release of each series was built last.
//!
//! The first build of a series takes the newest release; later ones stay with it, so that an unchanged build needs no
//! network and nothing changes under the user, until `--update` asks for a newer one. The file is not kept in git: a
//! mirror keeps only the newest package of a suite, so a lock from elsewhere could not be honoured.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    Origin,
    cache::write_atomically,
    error::{Error, Result},
};

/// One release of a series, found again by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// Where it came from.
    pub origin: Origin,
    /// The release, in its origin's words: `7.3.4-1~bpo13+1` or `7.3.4`.
    pub version: String,
    /// The archive's file name.
    pub file: String,
    /// The archive's SHA-256.
    pub sha256: String,
}

/// The lock file.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    series: BTreeMap<String, Locked>,
}

impl LockFile {
    /// Reads the file; one that does not exist locks nothing.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io("read", path, e)),
        };
        let series = toml::from_str(&text).map_err(|e| Error::Malformed {
            path: path.to_owned(),
            problem: e.to_string(),
            help: Some(
                "remove the file: the next build takes the newest release and writes it anew".to_owned(),
            ),
        })?;
        Ok(Self { path: path.to_owned(), series })
    }

    pub(crate) fn get(&self, series: &str) -> Option<&Locked> {
        self.series.get(series)
    }

    /// Records a release, touching the file only when it says something new.
    pub(crate) fn set(&mut self, series: &str, locked: &Locked) -> Result<()> {
        if self.series.get(series) == Some(locked) {
            return Ok(());
        }
        self.series.insert(series.to_owned(), locked.clone());
        let table = toml::to_string(&self.series).expect("a table of strings serialises");
        let text = format!(
            "# Written by `vmmlinux build`: the releases that were built. `vmmlinux build --update` looks for newer ones.\n\n{table}"
        );
        write_atomically(&self.path, text.as_bytes())
    }
}
