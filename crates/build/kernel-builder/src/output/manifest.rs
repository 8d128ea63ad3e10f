//! The manifest of an output directory.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};
use support::file;

use crate::{
    output::error::OutputError,
    tree::additions::{Piece, Source},
};

/// `manifest.json`: the inputs and outputs of a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name of the output directory.
    pub name: String,
    /// The series.
    pub series: String,
    /// The release, as `uname -r` prints it.
    pub release: String,
    /// The hash over all inputs.
    pub inputs: String,
    /// The origin of the source.
    pub source: Source,
    /// The patches that were applied.
    pub patches: Vec<Piece>,
    /// The drivers of the overlay.
    pub overlay: Vec<Piece>,
    /// The configuration.
    pub config: Config,
    /// The version line of each tool.
    pub toolchain: BTreeMap<String, String>,
    /// The start and duration of the build.
    pub times: Times,
    /// Every file of the directory except this one and SHA256SUMS.
    pub files: BTreeMap<String, FileRecord>,
}

/// A configuration's hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// SHA-256 over the requested configuration.
    pub identity: String,
    /// SHA-256 of the resulting `.config`.
    pub sha256: String,
}

/// The start of a build and the duration of its phases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// UTC, as RFC 3339.
    pub started: String,
    /// Toolchain check, download, unpacking and patching; seconds.
    pub prepare_seconds: f64,
    /// Configuration; seconds.
    pub configure_seconds: f64,
    /// Compilation; seconds.
    pub compile_seconds: f64,
}

/// A file of the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// The name of the manifest's file.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The name of the file with the checksums.
pub(crate) const SUMS: &str = "SHA256SUMS";

impl Manifest {
    /// Reads the manifest of an output directory.
    pub fn load(dir: &Path) -> std::result::Result<Self, OutputError> {
        let path = dir.join(MANIFEST);
        let text = fs::read(&path).map_err(|e| file::Error::new("read", &path, e))?;
        serde_json::from_slice(&text).map_err(|e| OutputError::BadManifest { path, problem: e.to_string() })
    }
}
