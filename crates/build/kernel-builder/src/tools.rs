//! The table of everything that has to be on the machine: what it is for, how to see that it is there, what to install.
//!
//! The toolchain check and the installer read the same table.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use crate::{Cache, run};

/// What a tool is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Fetching sources and compiling a kernel.
    Build,
    /// Compiling a kernel with drivers in Rust.
    Rust,
    /// Debian packages of the kernel.
    Package,
    /// Disk images.
    Image,
    /// Booting them under QEMU.
    Machine,
}

impl Purpose {
    /// All purposes.
    pub const ALL: [Self; 5] = [Self::Build, Self::Rust, Self::Package, Self::Image, Self::Machine];
}

/// One thing that has to be there.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// Its name, as one would ask for it.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: Purpose,
    /// What it does there, in half a sentence.
    pub why: &'static str,
    /// The Debian package that brings it; none where a package would not do.
    pub debian: Option<&'static str>,
    /// The oldest version that works.
    pub min: Option<&'static str>,
    /// How to see that it is there.
    pub(crate) probe: Probe,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Probe {
    /// A program on the PATH that says its version when called so.
    Program(&'static str, &'static [&'static str]),
    /// A program of which it is enough that it is on the PATH.
    Command(&'static str),
    /// A header and a library a C program can be built with.
    Library { header: &'static str, library: &'static str },
    /// A file.
    File(&'static str),
    /// libclang, as bindgen finds it.
    Libclang,
    /// The source of rustc's standard library.
    RustSrc,
    /// gcc or clang.
    Compiler,
}

const fn tool(
    purpose: Purpose,
    name: &'static str,
    debian: &'static str,
    probe: Probe,
    why: &'static str,
) -> Tool {
    Tool { name, purpose, why, debian: Some(debian), min: None, probe }
}

const fn at_least(min: &'static str, tool: Tool) -> Tool {
    Tool { min: Some(min), ..tool }
}

/// The table.
pub static TOOLS: &[Tool] = {
    use Probe::{Command, Compiler, File, Libclang, Library, Program, RustSrc};
    use Purpose::{Build, Image, Machine, Package, Rust};
    const V: &[&str] = &["--version"];
    &[
        at_least("8.1", tool(Build, "gcc or clang", "gcc", Compiler, "compiles the kernel")),
        at_least("4.0", tool(Build, "make", "make", Program("make", V), "runs the kernel's build")),
        tool(Build, "ld", "binutils", Command("ld"), "links the kernel"),
        at_least("2.5.35", tool(Build, "flex", "flex", Program("flex", V), "makes Kconfig's scanner")),
        at_least("2.0", tool(Build, "bison", "bison", Program("bison", V), "makes Kconfig's parser")),
        tool(Build, "bc", "bc", Command("bc"), "computes time constants"),
        tool(
            Build,
            "libelf",
            "libelf-dev",
            Library { header: "gelf.h", library: "elf" },
            "objtool reads objects with it",
        ),
        tool(Build, "perl", "perl", Command("perl"), "some of the build's scripts are in it"),
        tool(Build, "python3", "python3", Command("python3"), "some of the build's scripts are in it"),
        tool(Build, "git", "git", Command("git"), "applies patches"),
        tool(Build, "curl", "curl", Command("curl"), "fetches tarballs from kernel.org"),
        tool(Build, "xz", "xz-utils", Command("xz"), "compresses the kernel image"),
        tool(Build, "zstd", "zstd", Command("zstd"), "compresses the kernel image"),
        tool(Build, "cpio", "cpio", Command("cpio"), "packs initramfs archives"),
        tool(Build, "depmod", "kmod", Command("depmod"), "indexes the modules"),
        at_least(
            "1.85",
            Tool {
                name: "rustc",
                purpose: Rust,
                why: "compiles the drivers in Rust",
                // Debian's may be older than this program's own compiler; rustup is how one got here.
                debian: None,
                min: None,
                probe: Program("rustc", V),
            },
        ),
        at_least(
            "0.71.1",
            tool(Rust, "bindgen", "bindgen", Program("bindgen", V), "translates C headers for Rust drivers"),
        ),
        at_least(
            "17.0.1",
            tool(Rust, "libclang", "libclang-19-dev", Libclang, "parses C headers for bindgen"),
        ),
        Tool {
            name: "rust-src",
            purpose: Rust,
            why: "the kernel compiles its own core library from it",
            debian: None,
            min: None,
            probe: RustSrc,
        },
        tool(Package, "dpkg-buildpackage", "dpkg-dev", Command("dpkg-buildpackage"), "drives bindeb-pkg"),
        tool(Package, "dh", "debhelper", Command("dh"), "lays the package out"),
        tool(Package, "fakeroot", "fakeroot", Command("fakeroot"), "makes root-owned files without root"),
        tool(Package, "rsync", "rsync", Command("rsync"), "copies kernel headers"),
        tool(
            Package,
            "libssl",
            "libssl-dev",
            Library { header: "openssl/opensslv.h", library: "crypto" },
            "builds the signing tool that the headers package carries",
        ),
        tool(Image, "mmdebstrap", "mmdebstrap", Command("mmdebstrap"), "makes Debian root file systems"),
        tool(Image, "fakeroot", "fakeroot", Command("fakeroot"), "makes root-owned files without root"),
        tool(Image, "mtools", "mtools", Command("mcopy"), "writes the boot partition's files"),
        tool(Image, "syslinux", "syslinux", Command("syslinux"), "installs the boot loader into an image"),
        tool(
            Image,
            "syslinux-common",
            "syslinux-common",
            File("/usr/lib/syslinux/modules/bios/ldlinux.c32"),
            "is the boot loader",
        ),
        tool(Image, "mke2fs", "e2fsprogs", Command("mke2fs"), "makes ext4 file systems from directories"),
        tool(Image, "sfdisk", "fdisk", Command("sfdisk"), "shows and checks partition tables"),
        tool(Image, "qemu-img", "qemu-utils", Command("qemu-img"), "converts images to qcow2"),
        tool(Image, "busybox", "busybox-static", Command("busybox"), "is the minimal guest's user space"),
        at_least(
            "10.0",
            tool(
                Machine,
                "qemu-system-x86_64",
                "qemu-system-x86",
                Program("qemu-system-x86_64", V),
                "boots images, and nested virtualisation is broken in it before 10",
            ),
        ),
        tool(Machine, "SeaBIOS", "seabios", File("/usr/share/seabios/bios-256k.bin"), "is the firmware"),
    ]
};

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is there, at this version where one is asked for.
    Yes(Option<String>),
    /// It is there and too old.
    Old(String),
    /// It is not there, or does not work for this reason.
    No(Option<String>),
}

/// Where programs are looked for and run from.
#[derive(Debug, Clone)]
pub(crate) struct Finder {
    path: OsString,
    pub(crate) cache: Cache,
}

impl Finder {
    /// Looks on the given PATH, in what `vmmlinux setup` put into the cache, and where administration programs are.
    pub(crate) fn new(path: Option<&OsStr>, cache: &Cache) -> Self {
        let user = path.map_or_else(|| std::env::var_os("PATH").unwrap_or_default(), OsStr::to_owned);
        let mut dirs = vec![tools_dir(cache).join("bin")];
        dirs.extend(std::env::split_paths(&user));
        if path.is_none() {
            dirs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
        }
        let path = std::env::join_paths(dirs).unwrap_or(user);
        Self { path, cache: cache.clone() }
    }

    /// The PATH.
    pub(crate) fn path(&self) -> &OsStr {
        &self.path
    }

    /// The file of a program.
    pub(crate) fn find(&self, program: &str) -> Option<PathBuf> {
        std::env::split_paths(&self.path)
            .map(|dir| dir.join(program))
            .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file())
    }

    /// A command that finds its program and the programs it calls on this PATH.
    pub(crate) fn command(&self, program: &str) -> std::process::Command {
        let mut command = run::command(program);
        command.env("PATH", &self.path);
        command
    }

    /// What a program prints, standard output and error together, if it ends well.
    pub(crate) fn says(&self, program: &str, args: &[&str]) -> Option<String> {
        self.find(program)?;
        let output = self.command(program).args(args).output().ok()?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        output.status.success().then_some(said)
    }

    /// Looks for a tool.
    pub(crate) fn probe(&self, tool: &Tool) -> Found {
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

    /// The C compiler, and whether it is LLVM's.
    pub(crate) fn compiler(&self) -> Option<(&'static str, bool)> {
        [("gcc", false), ("clang", true)].into_iter().find(|(name, _)| self.find(name).is_some())
    }

    fn links(&self, header: &str, library: &str) -> Found {
        let Some((cc, _)) = self.compiler() else {
            return Found::No(Some("no C compiler to try it with".into()));
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

    /// The version of the libclang that bindgen loads: the preprocessor tells it in a message.
    fn libclang(&self) -> Result<String, Option<String>> {
        self.find("bindgen").ok_or_else(|| Some("no bindgen to ask".to_owned()))?;
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

    /// The directory that the kernel calls RUST_LIB_SRC: the user's, rustup's, or the one `vmmlinux setup` unpacked.
    pub(crate) fn rust_src(&self) -> Option<PathBuf> {
        let user = std::env::var_os("RUST_LIB_SRC").map(PathBuf::from);
        let sysroot = || self.says("rustc", &["--print", "sysroot"]).map(|s| PathBuf::from(s.trim()));
        let rustup = || Some(sysroot()?.join("lib/rustlib/src/rust/library"));
        let ours = || Some(rust_src_dir(&self.cache).join(self.rustc_version()?).join("library"));
        let whole = |dir: &PathBuf| dir.join("core/src/lib.rs").is_file();
        user.filter(whole).or_else(|| rustup().filter(whole)).or_else(|| ours().filter(whole))
    }

    /// `1.95.0`
    pub(crate) fn rustc_version(&self) -> Option<String> {
        version_in(&self.says("rustc", &["--version"])?)
    }
}

/// Where `cargo install` puts tools of ours.
pub(crate) fn tools_dir(cache: &Cache) -> PathBuf {
    cache.root().join("tools")
}

/// Where the sources of Rust's standard library are unpacked, one directory for each version.
pub(crate) fn rust_src_dir(cache: &Cache) -> PathBuf {
    cache.root().join("rust-src")
}

fn judge(version: Option<String>, min: Option<&str>) -> Found {
    match (version, min) {
        (Some(version), Some(min)) if !at_least_version(&version, min) => Found::Old(version),
        (version, _) => Found::Yes(version),
    }
}

/// The first thing in a text that looks like a version: digits and dots, with at least one dot.
fn version_in(text: &str) -> Option<String> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .map(|word| word.trim_matches('.'))
        .find(|word| word.contains('.'))
        .map(str::to_owned)
        .or_else(|| {
            text.split_whitespace().find(|w| w.bytes().all(|b| b.is_ascii_digit())).map(str::to_owned)
        })
}

/// Compares versions number by number; missing numbers count as 0.
pub(crate) fn at_least_version(version: &str, min: &str) -> bool {
    let numbers = |v: &str| -> Vec<u64> { v.split('.').map(|n| n.parse().unwrap_or(0)).collect() };
    let (mut version, mut min) = (numbers(version), numbers(min));
    let len = version.len().max(min.len());
    version.resize(len, 0);
    min.resize(len, 0);
    version >= min
}

#[cfg(test)]
mod tests {
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
    fn versions_compare_by_number() {
        assert!(at_least_version("0.71.1", "0.71.1"));
        assert!(at_least_version("0.100", "0.71.1"));
        assert!(at_least_version("12", "8.1"));
        assert!(!at_least_version("0.60.1", "0.71.1"));
        assert!(!at_least_version("7.2", "10.0"));
    }

    #[test]
    fn every_tool_can_be_asked_for_once_per_purpose() {
        let mut seen = std::collections::BTreeSet::new();
        for tool in TOOLS {
            assert!(seen.insert((tool.purpose, tool.name)), "{} twice", tool.name);
        }
    }
}
