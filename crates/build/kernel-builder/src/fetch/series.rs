//! `kernel/series.toml`: the tracked kernel series and the origins of their sources.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use support::file;

use crate::fetch::error::{FetchError, Result};

/// The content of `kernel/series.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeriesFile {
    /// The series that is built by default.
    pub default: String,
    /// The URL of kernel.org's `pub/linux/kernel`.
    pub kernel_org: String,
    /// Fingerprints (hexadecimal, 40 or 64 digits) of the keys that may sign a kernel.org tarball.
    pub keys: Vec<Key>,
    /// Debian suites searched, in this order, for the `rust-src` that matches the installed rustc.
    pub rust_src_suites: Vec<String>,
    /// The tracked series by name.
    pub series: BTreeMap<String, Series>,
    /// The file this was read from.
    #[serde(skip)]
    path: PathBuf,
}

/// A release manager's key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its owner.
    pub owner: String,
    /// Its primary key's fingerprint.
    pub fingerprint: String,
}

/// One series.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// Debian suites that carry its `linux-source-…` package.
    pub suites: Vec<String>,
    /// Whether its configuration holds drivers written in Rust.
    pub rust: bool,
}

impl SeriesFile {
    /// Reads `series.toml` in the kernel directory.
    pub fn load(kernel_dir: &Path) -> Result<Self> {
        let path = kernel_dir.join("series.toml");
        let text = fs::read_to_string(&path).map_err(|e| file::Error::new("read", &path, e))?;
        let mut file: Self = toml::from_str(&text).map_err(|e| FetchError::Malformed {
            path: path.clone(),
            problem: e.to_string(),
            help: None,
        })?;
        if !file.series.contains_key(&file.default) {
            return Err(FetchError::Malformed {
                problem: format!("the default series {} is not described", file.default),
                path,
                help: Some(format!("add a [series.\"{}\"] table", file.default)),
            });
        }
        file.path = path;
        Ok(file)
    }

    /// The given name of a series, or that of the default one.
    pub fn name_or_default(&self, name: Option<&str>) -> String {
        name.unwrap_or(&self.default).to_owned()
    }

    /// The description of a series.
    pub fn get(&self, series: &str) -> Result<&Series> {
        self.series.get(series).ok_or_else(|| FetchError::UnknownSeries {
            series: series.to_owned(),
            path: self.path.clone(),
            known: self.series.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}

/// The directory that holds `series.toml`, found from `start` upward: the repository's `kernel/`.
pub fn find_kernel_dir(start: &Path) -> Result<PathBuf> {
    start
        .ancestors()
        .map(|dir| dir.join("kernel"))
        .find(|dir| dir.join("series.toml").is_file())
        .ok_or_else(|| FetchError::NoKernelDir { start: start.to_owned() })
}
