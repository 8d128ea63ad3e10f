//! Cargo.lock.

use std::{fs, path::Path};

use serde::Deserialize;

use crate::error::{Error, Result};

/// The part of Cargo.lock that is used here.
#[derive(Deserialize)]
pub(crate) struct Lock {
    pub(crate) package: Vec<Locked>,
}

/// A locked package.
#[derive(Deserialize)]
pub(crate) struct Locked {
    pub(crate) name: String,
    pub(crate) version: String,
    /// The registry. `None` for crates of the workspace.
    pub(crate) source: Option<String>,
    /// SHA-256, in hexadecimal.
    pub(crate) checksum: Option<String>,
}

impl Lock {
    /// Reads the lock file of a checkout.
    pub(crate) fn read(checkout: &Path) -> Result<Self> {
        let path = checkout.join("Cargo.lock");
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        toml::from_str(&text)
            .map_err(|e| Error::Malformed { what: path.display().to_string(), problem: e.to_string() })
    }
}
