//! The kernel builder, and the preparation of trees.

use std::path::{Path, PathBuf};

use kernel_series::{Release, Stack};
use support::{
    cache::{Cache, Lock},
    file,
    hash::{Hash, hash_file},
    progress::Progress,
};

use crate::{
    error::Result,
    fetch::{lock::Locked, select, series::SeriesFile, sources::Sources, unpack},
    options::Options,
    tree::{
        additions::{Additions, Source},
        overlay,
        prepare::{Ingredients, PreparedTree, prepare},
        user_tree,
        version::kernel_version,
    },
};

/// Builds kernels of the tracked series.
pub struct KernelBuilder {
    pub(crate) options: Options,
    pub(crate) series: SeriesFile,
    pub(crate) cache: Cache,
    pub(crate) progress: Box<dyn Progress>,
}

impl KernelBuilder {
    /// A builder for a kernel directory.
    pub fn new(options: Options, cache: Cache, progress: Box<dyn Progress>) -> Result<Self> {
        let series = SeriesFile::load(&options.kernel_dir)?;
        Ok(Self { options, series, cache, progress })
    }

    /// The tracked series.
    pub fn series(&self) -> &SeriesFile {
        &self.series
    }

    /// The kernel directory.
    pub fn kernel_dir(&self) -> &Path {
        &self.options.kernel_dir
    }

    /// The patched tree of a series, fetched, verified, unpacked and patched if need be: the locked release or else the
    /// newest.
    pub fn prepare(&self, series: &str) -> Result<PreparedTree> {
        self.prepare_with(series, true)
    }

    /// The tree of a series, with patches and drivers or as it was released.
    pub(crate) fn prepare_with(&self, series: &str, patched: bool) -> Result<PreparedTree> {
        let (locked, pristine) = self.unpacked(series)?;
        let source = Source {
            origin: locked.origin.to_string(),
            version: locked.version.clone(),
            sha256: locked.sha256.clone(),
        };
        let mut slot = format!("{series}-{}", &locked.sha256[..16]);
        if !patched {
            // Beside the patched tree, which other runs may be building from.
            slot.push_str("-released");
        }
        let additions = self.additions(series, patched)?;
        let ingredients =
            Ingredients { series, source, slot: &slot, pristine: &pristine, additions, skip_applied: false };
        let tree = prepare(&self.cache, &*self.progress, ingredients)?;
        self.record(series, &locked)?;
        Ok(tree)
    }

    /// The unpacked release of a series, fetched and verified if need be. Nothing may be written to it.
    pub fn released(&self, series: &str) -> Result<Release> {
        let (locked, path) = self.unpacked(series)?;
        self.record(series, &locked)?;
        Ok(Release { version: kernel_version(&path)?, path, hash: locked.sha256 })
    }

    /// The kernel in a tree, a `.tar.xz` or a `linux-source-*.deb` of the user's.
    pub fn release_at(&self, path: &Path) -> Result<Release> {
        if path.is_dir() {
            let path = std::fs::canonicalize(path).map_err(|e| file::Error::new("find the tree", path, e))?;
            let version = kernel_version(&path)?;
            let mut hash = Hash::new();
            hash.field(path.as_os_str().as_encoded_bytes()).field(hash_file(&path.join("Makefile"))?);
            return Ok(Release { path, version, hash: hash.hex() });
        }
        let hash = hash_file(path)?;
        let path = self.pristine(path, &hash)?;
        Ok(Release { version: kernel_version(&path)?, path, hash })
    }

    /// The patch stack of the kernel directory.
    pub fn stack(&self) -> Result<Stack> {
        let known = self.series.series.keys().map(String::as_str);
        Ok(Stack::load(&self.options.kernel_dir.join("patches"), known)?)
    }

    /// The overlay's files, relative to a kernel tree.
    pub fn overlay_files(&self) -> Result<Vec<PathBuf>> {
        Ok(overlay::files(&self.options.kernel_dir.join(overlay::DIR))?)
    }

    /// Copies the overlay to a tree and hooks its drivers in.
    pub fn lay_overlay(&self, tree: &Path) -> Result<()> {
        Ok(overlay::lay(&self.options.kernel_dir.join(overlay::DIR), &self.overlay_files()?, tree)?)
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The listener to what is being done.
    pub fn progress(&self) -> &dyn Progress {
        &*self.progress
    }

    /// The release that a series is locked to, and its unpacked source.
    fn unpacked(&self, series: &str) -> Result<(Locked, PathBuf)> {
        self.series.get(series)?;
        let sources = self.sources();
        let locked = select::fetch(&sources, series)?;
        let pristine = self.pristine(&sources.archive(&locked), &locked.sha256)?;
        Ok((locked, pristine))
    }

    fn record(&self, series: &str, locked: &Locked) -> Result<()> {
        let sources = self.sources();
        sources.lock_file()?.set(series, locked)?;
        Ok(sources.cache_records()?.set(series, locked)?)
    }

    /// The patched copy of a user's directory. Patches that the directory contains are not applied again.
    pub fn prepare_dir(&self, series: &str, dir: &Path) -> Result<PreparedTree> {
        self.prepare_dir_with(series, dir, true)
    }

    /// The copy of a user's directory, with patches and drivers or unchanged.
    pub(crate) fn prepare_dir_with(&self, series: &str, dir: &Path, patched: bool) -> Result<PreparedTree> {
        self.series.get(series)?;
        let additions = self.additions(series, patched)?;
        Ok(user_tree::prepare_copy(&self.cache, &*self.progress, series, dir, additions)?)
    }

    pub(crate) fn sources(&self) -> Sources<'_> {
        Sources {
            options: &self.options,
            series: &self.series,
            cache: &self.cache,
            progress: &*self.progress,
        }
    }

    fn additions(&self, series: &str, patched: bool) -> Result<Additions> {
        if !patched {
            return Ok(Additions::default());
        }
        Ok(Additions::of_series(&self.options.kernel_dir, &self.stack()?, series)?)
    }

    fn pristine(&self, archive: &Path, sha256: &str) -> Result<PathBuf> {
        let _unpacking = self.cache.lock(&format!("pristine-{sha256}"), Lock::Exclusive, &*self.progress)?;
        Ok(unpack::pristine(&self.cache, archive, sha256, &*self.progress)?)
    }
}
