//! The context of fetching: options, series, cache, progress.

use std::path::PathBuf;

use support::{cache::Cache, progress::Progress};

use crate::{
    fetch::{
        error::Result,
        lock::{LockFile, Locked},
        series::SeriesFile,
    },
    options::Options,
};

/// The sources of the tracked series.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) options: &'a Options,
    pub(crate) series: &'a SeriesFile,
    pub(crate) cache: &'a Cache,
    pub(crate) progress: &'a dyn Progress,
}

impl Sources<'_> {
    /// `kernel/series.lock`.
    pub(crate) fn lock_file(&self) -> Result<LockFile> {
        LockFile::load(&self.options.kernel_dir.join("series.lock"))
    }

    /// The releases that were fetched last on this machine, by any checkout.
    pub(crate) fn cache_records(&self) -> Result<LockFile> {
        LockFile::load(&self.cache.dir("downloads")?.join("series.lock"))
    }

    /// The archive of a release in the cache.
    pub(crate) fn archive(&self, locked: &Locked) -> PathBuf {
        self.cache.root().join("downloads").join(&locked.sha256).join(&locked.file)
    }

    /// Whether the cache has a release: its tree, or the archive that becomes the tree.
    pub(crate) fn has(&self, locked: &Locked) -> Result<bool> {
        Ok(self.cache.root().join("pristine").join(&locked.sha256).is_dir()
            || self.cache.download(&locked.sha256, &locked.file)?.is_some())
    }
}
