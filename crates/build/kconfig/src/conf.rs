//! The kernel's own `conf`, run by its make on a `.config` in the making.

use std::{
    fs,
    path::{Path, PathBuf},
};

use support::{make::kernel_make, run};

use crate::{DotConfig, ResolveError};

/// A build directory whose `.config` is being made under another name.
pub(crate) struct Conf<'a> {
    tree: &'a Path,
    make_vars: &'a [(String, String)],
    /// Absolute: make runs in the tree's directory, whatever the caller's is.
    build_dir: PathBuf,
}

impl<'a> Conf<'a> {
    /// Begins without a configuration; the build directory is created if need be.
    pub(crate) fn begin(
        tree: &'a Path,
        build_dir: &Path,
        make_vars: &'a [(String, String)],
    ) -> Result<Self, ResolveError> {
        let failed = |source| ResolveError::Write { path: build_dir.to_owned(), source };
        fs::create_dir_all(build_dir).map_err(failed)?;
        let conf = Self { tree, make_vars, build_dir: fs::canonicalize(build_dir).map_err(failed)? };
        let _ = fs::remove_file(conf.new_config());
        Ok(conf)
    }

    /// The configuration in the making.
    fn new_config(&self) -> PathBuf {
        self.build_dir.join(".config.new")
    }

    /// Writes a file that lies beside it.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf, ResolveError> {
        let path = self.build_dir.join(name);
        fs::write(&path, text).map_err(|source| ResolveError::Write { path: path.clone(), source })?;
        Ok(path)
    }

    /// Adds lines to it, which win over those that are there.
    pub(crate) fn append(&self, lines: &str) -> Result<(), ResolveError> {
        let before = fs::read_to_string(self.new_config()).unwrap_or_default();
        self.write(".config.new", &(before + lines)).map(|_| ())
    }

    /// Runs a target of the kernel's make, with what `KCONFIG_ALLCONFIG` shall name.
    pub(crate) fn make(&self, target: &str, allconfig: Option<&Path>) -> Result<(), ResolveError> {
        let variables = self.make_vars.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut command = kernel_make(self.tree, Some(&self.build_dir), variables);
        if let Some(file) = allconfig {
            command.env("KCONFIG_ALLCONFIG", file);
        }
        let output = command
            .arg(target)
            .env("KCONFIG_CONFIG", self.new_config())
            .output()
            .map_err(ResolveError::Spawn)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        tracing::debug!(target, %stderr, "make");
        if output.status.success() {
            return Ok(());
        }
        Err(ResolveError::Make {
            tree: self.tree.to_owned(),
            target: target.to_owned(),
            status: output.status,
            output: run::last(stderr.lines(), 20),
        })
    }

    /// What has come out so far.
    pub(crate) fn config(&self) -> Result<DotConfig, ResolveError> {
        Ok(DotConfig::load(&self.new_config())?)
    }

    /// Puts it in the place of `.config` and says where that is.
    pub(crate) fn finish(self) -> Result<PathBuf, ResolveError> {
        let (new, path) = (self.new_config(), self.build_dir.join(".config"));
        let _ = fs::remove_file(self.build_dir.join(".config.new.old"));
        // An unchanged file keeps its time stamp: the kernel's make looks at it.
        if fs::read(&path).ok() == fs::read(&new).ok() {
            let _ = fs::remove_file(&new);
        } else {
            fs::rename(&new, &path).map_err(|source| ResolveError::Write { path: path.clone(), source })?;
        }
        Ok(path)
    }
}
