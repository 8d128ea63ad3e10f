//! Looking for tools on this machine.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use support::{cache::Cache, run};

use crate::tools::{Probe, Tool};

/// The result of looking for a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Present, with its version if that is known.
    Yes(Option<String>),
    /// Present in this version, which is too old.
    Old(String),
    /// Absent, or unusable for this reason.
    No(Option<String>),
}

/// Finds programs, libraries and files.
#[derive(Debug, Clone)]
pub struct Finder {
    path: OsString,
    cache: Cache,
}

impl Finder {
    /// Searches what `vmmlinux setup` put into the cache and then `path`, by default the environment's PATH, /usr/sbin
    /// and /sbin.
    pub fn new(path: Option<&OsStr>, cache: &Cache) -> Self {
        let user = path.map_or_else(|| std::env::var_os("PATH").unwrap_or_default(), OsStr::to_owned);
        let mut dirs = vec![tools_dir(cache).join("bin")];
        dirs.extend(std::env::split_paths(&user));
        if path.is_none() {
            dirs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
        }
        let path = std::env::join_paths(dirs).unwrap_or(user);
        Self { path, cache: cache.clone() }
    }

    /// The directories that are searched, in the form of PATH.
    pub fn path(&self) -> &OsStr {
        &self.path
    }

    /// The path of a program.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        which::which_in(program, Some(&self.path), "/").ok()
    }

    /// A command whose PATH is this one.
    pub fn command(&self, program: &str) -> std::process::Command {
        let mut command = run::command(program);
        command.env("PATH", &self.path);
        command
    }

    /// Standard output and then standard error of a program; `None` if it is absent or fails.
    pub fn says(&self, program: &str, args: &[&str]) -> Option<String> {
        self.output(program, args).map(|output| output.concat())
    }

    /// Standard output and standard error of a program; `None` if it is absent or fails.
    fn output(&self, program: &str, args: &[&str]) -> Option<[String; 2]> {
        self.find(program)?;
        let output = self.command(program).args(args).output().ok()?;
        let texts = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        output.status.success().then_some(texts)
    }

    /// Looks for a tool.
    pub fn probe(&self, tool: &Tool) -> Found {
        match tool.probe {
            Probe::Command(name) => self.find(name).map_or(Found::No(None), |_| Found::Yes(None)),
            Probe::Program(name, args) => match self.says(name, args) {
                Some(said) => judge(version_in(&said), tool.min),
                None => Found::No(self.find(name).map(|p| format!("{} does not run", p.display()))),
            },
            Probe::File(path) => {
                if Path::new(path).exists() {
                    Found::Yes(None)
                } else {
                    Found::No(None)
                }
            }
            Probe::Compiler => match self.compiler() {
                Some((name, _)) => {
                    let version =
                        self.says(name, &["-dumpfullversion"]).or_else(|| self.says(name, &["-dumpversion"]));
                    judge(version.as_deref().and_then(version_in), tool.min)
                }
                None => Found::No(None),
            },
            Probe::Library { header, library } => self.links(header, library),
            Probe::Libclang => match self.libclang() {
                Ok(version) => judge(Some(version), tool.min),
                Err(reason) => Found::No(reason),
            },
            Probe::RustSrc => self.rust_src().map_or(Found::No(None), |_| Found::Yes(None)),
        }
    }

    /// The C compiler and whether it is LLVM's; gcc is preferred.
    pub fn compiler(&self) -> Option<(&'static str, bool)> {
        [("gcc", false), ("clang", true)].into_iter().find(|(name, _)| self.find(name).is_some())
    }

    fn links(&self, header: &str, library: &str) -> Found {
        let Some((cc, _)) = self.compiler() else {
            return Found::No(Some("there is no C compiler to test it with".into()));
        };
        let Ok(dir) = tempfile::tempdir() else { return Found::No(Some("no temporary directory".into())) };
        let source = dir.path().join("try.c");
        let program = format!("#include <{header}>\nint main(void) {{ return 0; }}\n");
        let built = std::fs::write(&source, program).is_ok()
            && self
                .command(cc)
                .arg(&source)
                .arg("-o")
                .arg(dir.path().join("try"))
                .arg(format!("-l{library}"))
                .output()
                .is_ok_and(|output| output.status.success());
        if built { Found::Yes(None) } else { Found::No(None) }
    }

    /// The version of the libclang that bindgen loads, from a message of its preprocessor.
    fn libclang(&self) -> Result<String, Option<String>> {
        self.find("bindgen").ok_or_else(|| Some("bindgen, which loads it, is missing".to_owned()))?;
        let dir = tempfile::tempdir().map_err(|e| Some(e.to_string()))?;
        let header = dir.path().join("which.h");
        std::fs::write(&header, "#pragma message(\"libclang \" __clang_version__)\n")
            .map_err(|e| Some(e.to_string()))?;
        let output = self.command("bindgen").arg(&header).output().map_err(|e| Some(e.to_string()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        said.split_once("libclang ")
            .filter(|_| output.status.success())
            .and_then(|(_, rest)| version_in(rest))
            .ok_or_else(|| said.lines().next().map(str::to_owned))
    }

    /// The kernel's RUST_LIB_SRC: the directory of the environment variable, of rustup, or of `vmmlinux setup`.
    pub fn rust_src(&self) -> Option<PathBuf> {
        let user = std::env::var_os("RUST_LIB_SRC").map(PathBuf::from);
        // Below a make with several jobs rustc warns that it finds no job server.
        let sysroot = || self.output("rustc", &["--print", "sysroot"]).map(|[sysroot, _]| sysroot);
        let rustup = || Some(Path::new(sysroot()?.trim()).join("lib/rustlib/src/rust/library"));
        let ours = || Some(rust_src_dir(&self.cache).join(self.rustc_version()?).join("library"));
        let whole = |dir: &PathBuf| dir.join("core/src/lib.rs").is_file();
        user.filter(whole).or_else(|| rustup().filter(whole)).or_else(|| ours().filter(whole))
    }

    /// The version of rustc: `1.95.0`.
    pub fn rustc_version(&self) -> Option<String> {
        version_in(&self.says("rustc", &["--version"])?)
    }
}

/// The root of `cargo install` in the cache.
pub(crate) fn tools_dir(cache: &Cache) -> PathBuf {
    cache.root().join("tools")
}

/// The directory of unpacked Rust standard libraries, one subdirectory per version.
pub(crate) fn rust_src_dir(cache: &Cache) -> PathBuf {
    cache.root().join("rust-src")
}

fn judge(version: Option<String>, min: Option<&str>) -> Found {
    match (version, min) {
        (Some(version), Some(min)) if !at_least_version(&version, min) => Found::Old(version),
        (version, _) => Found::Yes(version),
    }
}

/// The first version in a text: digits and dots with at least one dot, else the first number.
fn version_in(text: &str) -> Option<String> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .map(|word| word.trim_matches('.'))
        .find(|word| word.contains('.'))
        .map(str::to_owned)
        .or_else(|| {
            text.split_whitespace().find(|w| w.bytes().all(|b| b.is_ascii_digit())).map(str::to_owned)
        })
}

/// Whether a version is `min` or newer, compared number by number; missing numbers count as 0.
fn at_least_version(version: &str, min: &str) -> bool {
    let numbers = |v: &str| -> Vec<u64> { v.split('.').map(|n| n.parse().unwrap_or(0)).collect() };
    let (mut version, mut min) = (numbers(version), numbers(min));
    let len = version.len().max(min.len());
    version.resize(len, 0);
    min.resize(len, 0);
    version >= min
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (said, version) in [
            ("GNU Make 4.3\nBuilt for x86_64", "4.3"),
            ("bindgen 0.71.1", "0.71.1"),
            ("rustc 1.95.0 (59807616e 2026-04-14)", "1.95.0"),
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)", "10.0.2"),
            ("12", "12"),
        ] {
            assert_eq!(version_in(said).as_deref(), Some(version), "{said}");
        }
    }

    #[test]
    fn the_source_of_rusts_library_is_found_beside_a_compiler_that_warns() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("lib/rustlib/src/rust/library");
        fs::create_dir_all(library.join("core/src")).unwrap();
        fs::write(library.join("core/src/lib.rs"), "").unwrap();
        let rustc = dir.path().join("rustc");
        fs::write(&rustc, "#!/bin/sh\ndirname \"$0\"\necho 'warning: no job server' >&2\n").unwrap();
        fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::join_paths([dir.path(), Path::new("/usr/bin"), Path::new("/bin")]).unwrap();
        let finder = Finder::new(Some(&path), &Cache::at(dir.path().join("cache")));

        assert_eq!(finder.rust_src(), Some(library));
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(at_least_version("0.71.1", "0.71.1"));
        assert!(at_least_version("0.100", "0.71.1"));
        assert!(at_least_version("12", "8.1"));
        assert!(!at_least_version("0.60.1", "0.71.1"));
        assert!(!at_least_version("7.2", "10.0"));
    }
}
