//! Configurations that are given as they are, to be built from the same source as ours: other projects' files, and the
//! targets of the kernel's own make.

use std::path::{Path, PathBuf};

use miette::Diagnostic;
use thiserror::Error;

use crate::{DotConfig, DotConfigError, ResolveError, Value, conf::Conf};

/// Targets of the kernel's make that a configuration can begin with.
pub const BASES: [&str; 3] = ["tinyconfig", "allnoconfig", "defconfig"];

/// A configuration in parts, of which the later win.
#[derive(Clone, Debug)]
pub struct Given {
    base: Option<&'static str>,
    files: Vec<PathBuf>,
    /// What the files say.
    said: DotConfig,
}

/// Parts that are no configuration.
#[derive(Debug, Error, Diagnostic)]
pub enum GivenError {
    /// A file that cannot be read, or none.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] DotConfigError),
    /// A target after something that it would replace.
    #[error("{base} comes after what it would replace")]
    #[diagnostic(help(
        "name it first: a target of the kernel's make begins a configuration, files change it"
    ))]
    Order {
        /// The target.
        base: &'static str,
    },
}

/// A given configuration that the kernel's `conf` has completed.
#[derive(Clone, Debug)]
pub struct Completed {
    /// What came out.
    pub config: DotConfig,
    /// Where it lies: `.config` in the build directory.
    pub path: PathBuf,
    /// Symbols that the files set and that have another value now, as when another version of Linux lacks them.
    pub differing: Vec<String>,
}

impl Given {
    /// Reads the parts: one of [`BASES`] first, or none for the defaults of the kernel's Kconfig files, then files.
    pub fn read(parts: &[impl AsRef<Path>]) -> Result<Self, GivenError> {
        let mut given = Self { base: None, files: Vec::new(), said: DotConfig::default() };
        for (index, part) in parts.iter().map(AsRef::as_ref).enumerate() {
            let base = BASES.into_iter().find(|base| Path::new(base) == part);
            match base {
                Some(base) if index == 0 => given.base = Some(base),
                Some(base) => return Err(GivenError::Order { base }),
                None => {
                    given.said.extend(DotConfig::load(part)?);
                    given.files.push(part.to_owned());
                }
            }
        }
        Ok(given)
    }

    /// A name made of the parts' names.
    pub fn name(&self) -> String {
        let stem = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let parts = self.base.map(str::to_owned).into_iter().chain(self.files.iter().map(stem));
        let name = parts.collect::<Vec<_>>().join("-");
        name.chars().map(|c| if c.is_ascii_alphanumeric() || ".+".contains(c) { c } else { '-' }).collect()
    }

    /// All that decides what comes of it, as a text.
    pub fn identity(&self) -> String {
        format!("{}\n{}", self.base.unwrap_or_default(), self.said())
    }

    fn said(&self) -> String {
        self.said.iter().map(|(symbol, value)| value.line(symbol) + "\n").collect()
    }

    /// Has the kernel's make complete it to a `.config` in a build directory, with variables for its command line. A
    /// kernel without some of the symbols is no failure: which they are is told.
    pub fn complete(
        &self,
        tree: &Path,
        build_dir: &Path,
        make_vars: &[(String, String)],
    ) -> Result<Completed, ResolveError> {
        let conf = Conf::begin(tree, build_dir, make_vars)?;
        if let Some(base) = self.base {
            conf.make(base, None)?;
        }
        conf.append(&self.said())?;
        conf.make("olddefconfig", None)?;
        let config = conf.config()?;
        let differs = |(symbol, value): &(&str, &Value)| config.value(symbol) != *value;
        let differing = self.said.set().filter(differs).map(|(symbol, _)| symbol.to_owned()).collect();
        Ok(Completed { config, path: conf.finish()?, differing })
    }

    /// How many symbols the files set.
    pub fn set(&self) -> usize {
        self.said.set().count()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn given(parts: &[(&str, &str)]) -> Result<Given, GivenError> {
        let dir = tempfile::tempdir().unwrap();
        let write = |(name, text): &(&str, &str)| {
            if BASES.contains(name) {
                return PathBuf::from(name);
            }
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        Given::read(&parts.iter().map(write).collect::<Vec<_>>())
    }

    #[test]
    fn the_later_part_wins_and_all_of_them_name_it() {
        let two = given(&[
            ("tinyconfig", ""),
            ("a b.config", "CONFIG_A=y\nCONFIG_B=y\n"),
            ("c", "# CONFIG_A is not set\n"),
        ]);
        let two = two.unwrap();
        assert_eq!(two.name(), "tinyconfig-a-b-c");
        assert_eq!(two.identity(), "tinyconfig\n# CONFIG_A is not set\nCONFIG_B=y\n");
        assert_eq!(two.set(), 1);
    }

    #[test]
    fn what_decides_nothing_does_not_change_the_identity() {
        let plain = given(&[("a", "CONFIG_A=y\n")]).unwrap();
        let told = given(&[("b", "# Given\nCONFIG_A=n\nCONFIG_A=y\n")]).unwrap();
        assert_eq!(plain.identity(), told.identity());
        assert_ne!(plain.identity(), given(&[("defconfig", ""), ("a", "CONFIG_A=y\n")]).unwrap().identity());
    }

    #[test]
    fn a_target_after_a_file_and_what_is_no_configuration_are_refused() {
        let late = given(&[("a", "CONFIG_A=y\n"), ("tinyconfig", "")]);
        assert!(matches!(late, Err(GivenError::Order { base: "tinyconfig" })));
        assert!(matches!(
            given(&[("a", "hello\n")]),
            Err(GivenError::Config(DotConfigError::Line { line: 1, .. }))
        ));
        let missing = Given::read(&[Path::new("firecracker.config")]);
        assert!(matches!(missing, Err(GivenError::Config(DotConfigError::Read { .. }))));
    }

    /// A tree whose make knows what [`Conf`] asks of it: a base, and the removal of symbols that it does not have.
    #[test]
    fn what_the_kernel_lacks_is_told_and_what_is_complete_is_put_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, build) = (dir.path().join("tree"), dir.path().join("build"));
        fs::create_dir(&tree).unwrap();
        fs::write(
            tree.join("Makefile"),
            "tinyconfig:\n\t@echo CONFIG_TINY=y >$(KCONFIG_CONFIG)\n\
             olddefconfig:\n\t@test -z \"$$KCONFIG_ALLCONFIG\"\n\t@sed -i /CONFIG_GONE/d $(KCONFIG_CONFIG)\n",
        )
        .unwrap();
        let parts =
            given(&[("tinyconfig", ""), ("a", "CONFIG_GONE=y\nCONFIG_A=\"x\"\n# CONFIG_NO is not set\n")]);
        let completed = parts.unwrap().complete(&tree, &build, &[]).unwrap();
        assert_eq!(completed.differing, ["GONE"]);
        assert!(completed.config.is_set("TINY") && completed.config.is_set("A"));
        assert_eq!(
            fs::read_to_string(&completed.path).unwrap(),
            "CONFIG_TINY=y\nCONFIG_A=\"x\"\n# CONFIG_NO is not set\n"
        );
        assert!(!build.join(".config.new").exists());
        let defconfig = given(&[("defconfig", "")]).unwrap().complete(&tree, &build, &[]).unwrap_err();
        assert!(matches!(defconfig, ResolveError::Make { target, .. } if target == "defconfig"));
    }
}
