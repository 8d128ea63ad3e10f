//! The toolchain: checked whole before anything is downloaded, and named exactly in what is built with it.

use std::{collections::BTreeMap, env, ffi::OsString, path::Path};

use miette::Diagnostic;
use thiserror::Error;

use crate::{
    Forge,
    error::{Error, Result},
    tools::{Finder, Found, Purpose, TOOLS, Tool},
};

/// One thing that is missing or too old.
#[derive(Debug, Error, Diagnostic)]
#[error("{what} ({why})")]
pub struct Miss {
    /// The tool and what is wrong with it.
    pub what: String,
    /// What it is needed for.
    pub why: String,
    /// How to get it.
    #[help]
    pub remedy: String,
}

/// A toolchain that can build a kernel.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// Variables for every call of the kernel's make.
    pub make_vars: Vec<(String, String)>,
    /// The C compiler as a shell would be told it; two words if it goes through ccache.
    pub compiler: String,
    /// Whether that is clang, with LLVM's tools.
    pub llvm: bool,
    /// What each tool calls itself; a change in it means a new build directory.
    pub versions: BTreeMap<String, String>,
    /// The PATH to run it with.
    pub path: OsString,
}

/// Free space that a tree and its build need, and that a build needs whose tree is there. Bytes.
const SPACE_NEW: u64 = 5 << 30;
const SPACE_AGAIN: u64 = 2 << 30;

impl Forge {
    /// Checks the toolchain for a series, and disk space; every miss is reported, with its remedy.
    pub fn toolchain(&self, series: &str, package: bool) -> Result<Toolchain> {
        let rust = self.series.get(series)?.rust;
        let finder = Finder::new(self.options.path.as_deref(), &self.cache);
        let mut misses: Vec<Miss> = TOOLS
            .iter()
            .filter(|tool| match tool.purpose {
                Purpose::Build => true,
                Purpose::Rust => rust,
                Purpose::Package => package,
                Purpose::Image | Purpose::Machine => false,
            })
            .filter_map(|tool| miss(tool, finder.probe(tool)))
            .collect();
        misses.extend(self.space_miss(series)?);
        if !misses.is_empty() {
            return Err(Error::Missing { misses });
        }
        Ok(Toolchain::of(&finder, rust))
    }

    fn space_miss(&self, series: &str) -> Result<Option<Miss>> {
        let root = self.cache.root();
        let existing = root.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
        let stat =
            rustix::fs::statvfs(existing).map_err(|e| Error::io("look at the disk of", root, e.into()))?;
        let free = stat.f_bavail * stat.f_frsize;
        let unpacked = self
            .lock_file()?
            .get(series)
            .is_some_and(|locked| root.join("pristine").join(&locked.sha256).is_dir());
        let needed = if unpacked { SPACE_AGAIN } else { SPACE_NEW };
        Ok((free < needed).then(|| Miss {
            what: format!("disk space: {} has {} MB free", existing.display(), free >> 20),
            why: format!("a build needs about {} MB", needed >> 20),
            remedy: "free some, or point XDG_CACHE_HOME to a larger disk".to_owned(),
        }))
    }
}

fn miss(tool: &Tool, found: Found) -> Option<Miss> {
    let what = match found {
        Found::Yes(_) => return None,
        Found::Old(version) => {
            format!("{} {version} is too old: {} or newer is needed", tool.name, tool.min.unwrap_or_default())
        }
        Found::No(None) => format!("{} is missing", tool.name),
        Found::No(Some(reason)) => format!("{} is missing: {reason}", tool.name),
    };
    let remedy = match (tool.name, tool.debian) {
        ("rustc", _) => "`rustup toolchain install stable`".to_owned(),
        ("rust-src", _) => "`vmmlinux setup`, or `rustup component add rust-src`, or set RUST_LIB_SRC to a library/ directory of \
                            the same version"
            .to_owned(),
        ("bindgen", _) => "`vmmlinux setup`, or `cargo install bindgen-cli`".to_owned(),
        (_, Some(package)) => format!("`vmmlinux setup`, or `apt-get install {package}` on Debian"),
        (name, None) => format!("install {name}"),
    };
    Some(Miss { what, why: tool.why.to_owned(), remedy })
}

impl Toolchain {
    /// Sets a variable for make, in the place of an earlier value.
    pub(crate) fn set(&mut self, name: &str, value: String) {
        self.make_vars.retain(|(other, _)| other != name);
        self.make_vars.push((name.to_owned(), value));
    }

    fn of(finder: &Finder, rust: bool) -> Self {
        let (cc, llvm) = finder.compiler().unwrap_or(("gcc", false));
        let mut versions = BTreeMap::new();
        let mut record = |name: &str, args: &[&str]| {
            if let Some(said) = finder.says(name, args) {
                let line = said.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default();
                versions.insert(name.to_owned(), line.to_owned());
            }
        };
        record(cc, &["--version"]);
        record(if llvm { "ld.lld" } else { "ld" }, &["--version"]);
        record("make", &["--version"]);
        let mut make_vars = vec![("ARCH".to_owned(), "x86_64".to_owned())];
        let mut set = |name: &str, value: String| make_vars.push((name.to_owned(), value));
        if llvm {
            set("LLVM", "1".to_owned());
        }
        let mut compiler = cc.to_owned();
        if finder.find("ccache").is_some() && env::var_os("CCACHE_DISABLE").is_none() {
            // Not HOSTCC: rustc takes that as its linker, which must be one word.
            compiler = format!("ccache {cc}");
            set("CC", compiler.clone());
        }
        if rust {
            record("rustc", &["--version"]);
            record("bindgen", &["--version"]);
            if let Some(bindgen) = finder.find("bindgen") {
                set("BINDGEN", bindgen.display().to_string());
            }
            if let Some(src) = finder.rust_src() {
                set("RUST_LIB_SRC", src.display().to_string());
            }
        }
        let path = finder.path().to_owned();
        Self { make_vars, compiler, llvm, versions, path }
    }
}
