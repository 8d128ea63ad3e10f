//! `kernel/series.lock`: the release of each series that was built last.
//!
//! The first build of a series takes the newest release. Further builds take the same release, without the network,
//! until `--update` asks for a newer one. The file is not kept in git: a mirror has only the newest package of a suite,
//! so a release locked elsewhere might not be available.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use support::file::{self, write_atomically};

use crate::fetch::error::{FetchError, Result};

/// The origin of a released source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A Debian `linux-source` package, by apt.
    #[serde(rename = "debian")]
    Debian,
    /// A signed tarball of kernel.org.
    #[serde(rename = "kernel.org")]
    KernelOrg,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian => "debian",
            Self::KernelOrg => "kernel.org",
        })
    }
}

/// A release of a series, identified by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// Its origin.
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
    /// Reads the file. A missing file locks nothing.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(file::Error::new("read", path, e).into()),
        };
        let series = toml::from_str(&text).map_err(|e| FetchError::Malformed {
            path: path.to_owned(),
            problem: e.to_string(),
            help: Some(
                "remove the file: the next build takes the newest release and writes the file".to_owned(),
            ),
        })?;
        Ok(Self { path: path.to_owned(), series })
    }

    pub(crate) fn get(&self, series: &str) -> Option<&Locked> {
        self.series.get(series)
    }

    /// Records a release. An unchanged file is not written.
    pub(crate) fn set(&mut self, series: &str, locked: &Locked) -> Result<()> {
        if self.series.get(series) == Some(locked) {
            return Ok(());
        }
        self.series.insert(series.to_owned(), locked.clone());
        let table = toml::to_string(&self.series).expect("a table of strings serialises");
        let text = format!(
            "# Written by `vmmlinux build`: the releases that were built. `vmmlinux build --update` looks for newer ones.\n\n{table}"
        );
        Ok(write_atomically(&self.path, text.as_bytes())?)
    }
}
