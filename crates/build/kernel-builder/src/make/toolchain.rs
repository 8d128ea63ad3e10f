//! The toolchain: checked before anything is downloaded, and recorded in the manifest of what it builds.

use std::{collections::BTreeMap, env, ffi::OsString};

use host_tools::{Finder, Missing, Purpose, TOOLS};

use crate::make::error::{MakeError, Result};

/// A toolchain that can build a kernel.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// Variables for every call of the kernel's make.
    pub make_vars: Vec<(String, String)>,
    /// The version line of each tool. A build directory belongs to one set of them.
    pub versions: BTreeMap<String, String>,
    /// The PATH of its programs.
    pub path: OsString,
}

impl Toolchain {
    /// The toolchain of this machine; all missing tools are reported in one error. `more` are misses of other kinds.
    pub(crate) fn check(finder: &Finder, rust: bool, package: bool, more: Option<Missing>) -> Result<Self> {
        let is_needed = |purpose| match purpose {
            Purpose::Build => true,
            Purpose::Rust => rust,
            Purpose::Package => package,
            Purpose::Image | Purpose::Machine => false,
        };
        let needed = TOOLS.iter().filter(|tool| is_needed(tool.purpose));
        let missing: Vec<_> = needed.filter_map(|tool| Missing::of(tool, finder)).chain(more).collect();
        if missing.is_empty() { Ok(Self::of(finder, rust)) } else { Err(MakeError::Missing { missing }) }
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
        if finder.find("ccache").is_some() && env::var_os("CCACHE_DISABLE").is_none() {
            // Not HOSTCC: rustc uses it as its linker, which must be one word.
            set("CC", format!("ccache {cc}"));
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
        Self { make_vars, versions, path }
    }
}
