//! The state of a build directory: its tree, its progress, the inputs of its last complete build.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use support::file::{self, Result, write_atomically};

/// The content of `state.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// The instance of the tree that the objects were built from.
    instance: String,
    /// Steps taken since the last complete build, or since the directory was made.
    pub(crate) steps: u64,
    /// The hash over the inputs of the last complete build.
    pub(crate) complete: Option<String>,
}

/// The [`State`] of a build directory and its file.
pub(crate) struct BuildState {
    path: PathBuf,
    pub(crate) value: State,
}

impl BuildState {
    /// Opens a build directory. Objects that were built from another tree at the same path are removed: their times do
    /// not relate to the files of this tree.
    pub(crate) fn open(build: &Path, instance: &str) -> Result<Self> {
        let path = build.join("state.json");
        let value: State =
            fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let objects = build.join("obj");
        if value.instance == instance {
            return Ok(Self { path, value });
        }
        if objects.is_dir() {
            fs::remove_dir_all(&objects).map_err(|e| file::Error::new("remove the outdated", &objects, e))?;
        }
        let state = Self { path, value: State { instance: instance.to_owned(), ..State::default() } };
        state.save()?;
        Ok(state)
    }

    pub(crate) fn save(&self) -> Result<()> {
        write_atomically(&self.path, &serde_json::to_vec(&self.value).expect("a state serialises"))
    }

    /// Records the inputs of a complete build.
    pub(crate) fn complete(&mut self, inputs: String) -> Result<()> {
        self.value.steps = 0;
        self.value.complete = Some(inputs);
        self.save()
    }
}
