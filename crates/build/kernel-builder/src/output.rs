//! What a build leaves in `out/<name>/`: staged under a temporary name, put in place whole.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::{
    Forge,
    build::{Package, Sizes},
    cache::{hash_file, temp_dir},
    error::{Error, Result},
    make::Make,
    pack, run,
    tree::{Piece, Source, put},
};

/// `manifest.json`: what was built from what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name of the output directory.
    pub name: String,
    /// The series.
    pub series: String,
    /// The release as `uname -r` says it.
    pub release: String,
    /// The hash over everything that decides what comes out.
    pub inputs: String,
    /// Where the source came from.
    pub source: Source,
    /// The patches that were applied.
    pub patches: Vec<Piece>,
    /// The drivers that were laid over it.
    pub overlay: Vec<Piece>,
    /// The configuration.
    pub config: Config,
    /// What each tool calls itself.
    pub toolchain: BTreeMap<String, String>,
    /// When it was built and how long that took.
    pub times: Times,
    /// Every file of the directory, but for this one and SHA256SUMS.
    pub files: BTreeMap<String, FileRecord>,
}

/// A configuration's hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// SHA-256 over what was asked for.
    pub identity: String,
    /// SHA-256 of the `.config` that came of it.
    pub sha256: String,
}

/// When a build began and how long its phases took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// UTC, as RFC 3339.
    pub started: String,
    /// Toolchain check, download, unpacking and patching; seconds.
    pub prepare_seconds: f64,
    /// Configuration; seconds.
    pub configure_seconds: f64,
    /// Compilation; seconds.
    pub compile_seconds: f64,
}

/// A file of the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
}

const MANIFEST: &str = "manifest.json";
const SUMS: &str = "SHA256SUMS";

impl Manifest {
    /// Reads the manifest of an output directory.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        serde_json::from_slice(&text).map_err(|e| Error::Malformed {
            path,
            problem: e.to_string(),
            help: Some("build it again: `vmmlinux build` replaces the directory".to_owned()),
        })
    }
}

/// The place of an output directory.
#[derive(Debug)]
pub(crate) struct Place {
    out: PathBuf,
    name: String,
    pub(crate) dir: PathBuf,
}

impl Place {
    /// Checks that the name can be a directory's and that nothing of somebody else's is in its place.
    pub(crate) fn new(out: &Path, name: &str) -> Result<Self> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(good) {
            return Err(Error::Malformed {
                path: out.join(name),
                problem: "not a name for an output directory".to_owned(),
                help: Some("use letters, digits and any of ._-+, not beginning with a dot".to_owned()),
            });
        }
        let dir = out.join(name);
        if dir.exists() && !dir.join(MANIFEST).is_file() {
            return Err(Error::Malformed {
                path: dir,
                problem: "is there already and was not made by a build: it is not replaced".to_owned(),
                help: Some("move it away, or choose another --name or --out".to_owned()),
            });
        }
        Ok(Self { out: out.to_owned(), name: name.to_owned(), dir })
    }

    /// The manifest of what is there, if that was built from the same inputs and all its files are still there.
    pub(crate) fn up_to_date(&self, inputs: &str) -> Option<Manifest> {
        let manifest = Manifest::load(&self.dir).ok().filter(|m| m.inputs == inputs)?;
        let there = |(name, record): (&String, &FileRecord)| {
            fs::metadata(self.dir.join(name)).is_ok_and(|meta| meta.len() == record.size)
        };
        manifest.files.iter().all(there).then_some(manifest)
    }
}

/// An output directory in the making.
#[derive(Debug)]
pub(crate) struct Staging<'a> {
    place: &'a Place,
    temp: TempDir,
}

/// What was collected.
pub(crate) struct Collected {
    pub(crate) release: String,
    pub(crate) sizes: Sizes,
}

impl<'a> Staging<'a> {
    pub(crate) fn new(place: &'a Place) -> Result<Self> {
        fs::create_dir_all(&place.out).map_err(|e| Error::io("create", &place.out, e))?;
        let prefix = format!(".{}.new-", place.name);
        // A run that was killed between taking the place and emptying the old directory left things of the user's there.
        let entries = fs::read_dir(&place.out).map_err(|e| Error::io("read", &place.out, e))?;
        for entry in entries.filter_map(std::result::Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                keep_foreign(&entry.path(), &place.dir)?;
            }
        }
        Ok(Self { place, temp: temp_dir(&place.out, &prefix)? })
    }

    /// Copies and installs what make has built. A package's files are of the time that is given, in seconds since 1970.
    pub(crate) fn collect(
        &self,
        make: &Make<'_>,
        package: Option<(Package, u64)>,
        forge: &Forge,
    ) -> Result<Collected> {
        let dir = self.temp.path();
        let from = |name: &str| make.objects.join(name);
        let copy = |from: PathBuf, name: &str| {
            let to = dir.join(name);
            fs::copy(&from, &to).map(|_| ()).map_err(|e| Error::io("copy the build's output to", to, e))
        };
        copy(from("arch/x86/boot/bzImage"), "bzImage")?;
        copy(from("vmlinux"), "vmlinux.debug")?;
        copy(from("System.map"), "System.map")?;
        copy(from(".config"), "config")?;
        let llvm = make.vars.iter().any(|(name, _)| name == "LLVM");
        let mut strip = run::command(if llvm { "llvm-strip" } else { "strip" });
        run::stdout(
            strip
                .env("PATH", &make.toolchain.path)
                .arg("-o")
                .arg(dir.join("vmlinux"))
                .arg(dir.join("vmlinux.debug")),
        )?;
        let release_file = from("include/config/kernel.release");
        let release = fs::read_to_string(&release_file)
            .map_err(|e| Error::io("read", &release_file, e))?
            .trim()
            .to_owned();
        let config = dir.join("config");
        let config = fs::read_to_string(&config).map_err(|e| Error::io("read", &config, e))?;
        if config.lines().any(|line| line == "CONFIG_MODULES=y") {
            let modules = dir.join("modules");
            let vars =
                [("INSTALL_MOD_PATH", modules.display().to_string()), ("INSTALL_MOD_STRIP", "1".to_owned())];
            make.run(&["modules_install"], &vars, (0, 0), &*forge.progress)?;
            // They point to directories of this machine.
            for link in ["build", "source"] {
                let link = modules.join("lib/modules").join(&release).join(link);
                if fs::symlink_metadata(&link).is_ok() {
                    fs::remove_file(&link).map_err(|e| Error::io("remove", &link, e))?;
                }
            }
        }
        if let Some(package) = package {
            forge.progress.phase("packaging");
            make_package(make, package, &release, dir, forge)?;
        }
        Ok(Collected { release, sizes: records(dir)? })
    }

    /// Writes the sums and the manifest and puts the directory in its place.
    pub(crate) fn publish(self, manifest: &Manifest) -> Result<()> {
        let dir = self.temp.path();
        let mut sums = String::new();
        for (name, record) in &manifest.files {
            let _ = writeln!(sums, "{}  {name}", record.sha256);
        }
        let write = |name: &str, text: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, text).map_err(|e| Error::io("write", path, e))
        };
        write(SUMS, sums.as_bytes())?;
        let mut text = serde_json::to_vec_pretty(manifest).expect("a manifest serialises");
        text.push(b'\n');
        write(MANIFEST, &text)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir, mode).map_err(|e| Error::io("set the permissions of", dir, e))?;
        put(dir, &self.place.dir)?;
        keep_foreign(dir, &self.place.dir)
    }
}

/// Moves what a build did not make, such as a disk image, from an old output directory to the new one.
fn keep_foreign(old: &Path, new: &Path) -> Result<()> {
    let Ok(manifest) = Manifest::load(old) else { return Ok(()) };
    let ours = |name: &str| {
        name == MANIFEST
            || name == SUMS
            || manifest.files.keys().any(|file| file.split('/').next() == Some(name))
    };
    let entries = fs::read_dir(old).map_err(|e| Error::io("read", old, e))?;
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = entry.file_name();
        let to = new.join(&name);
        if !ours(&name.to_string_lossy()) && !to.exists() {
            fs::rename(entry.path(), &to).map_err(|e| Error::io("keep", to, e))?;
        }
    }
    Ok(())
}

/// Makes the package that was asked for in the output directory.
fn make_package(
    make: &Make<'_>,
    (package, epoch): (Package, u64),
    release: &str,
    dir: &Path,
    forge: &Forge,
) -> Result<()> {
    match package {
        Package::Deb => pack_deb(make, release, dir, forge),
        Package::Tar => pack_tar(epoch, release, dir),
    }
}

/// The kernel's command for the directory `debian`, which dates its changelog by the clock: that is the one thing in the
/// packages that the build's time does not pin.
const DEBIANIZE: &str = "$(srctree)/scripts/package/mkdebian $(mkdebian-opts) && \
    sed -i \"s/^\\( -- .*>  \\).*/\\1$$(LC_ALL=C date -uR -d \"@$$SOURCE_DATE_EPOCH\")/\" debian/changelog";

/// Runs the kernel's own package target and takes what it made: it leaves that beside the build directory.
fn pack_deb(make: &Make<'_>, release: &str, dir: &Path, forge: &Forge) -> Result<()> {
    let place = make.objects.parent().expect("objects lie in a build directory");
    let list = || -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(place).map_err(|e| Error::io("read", place, e))?;
        let paths = entries.filter_map(|e| Some(e.ok()?.path()));
        Ok(paths.filter(|path| path.extension().is_some_and(|e| e == "deb")).collect())
    };
    for stale in list()? {
        fs::remove_file(&stale).map_err(|e| Error::io("remove the old", stale, e))?;
    }
    let vars = [
        ("KDEB_PKGVERSION", format!("{}-1", release.replace('_', "-"))),
        ("KDEB_CHANGELOG_DIST", "unstable".to_owned()),
        ("DPKG_FLAGS", "-d".to_owned()),
        ("cmd_debianize", DEBIANIZE.to_owned()),
    ];
    make.run(&["bindeb-pkg"], &vars, (0, 0), &*forge.progress)?;
    for made in list()? {
        // Installed in a guest, it would replace the distribution's, which goes with its C library.
        if made.file_name().unwrap_or_default().to_string_lossy().starts_with("linux-libc-dev") {
            continue;
        }
        let to = dir.join(made.file_name().expect("a listed file"));
        fs::copy(&made, &to).map_err(|e| Error::io("copy the package to", to, e))?;
    }
    Ok(())
}

/// What installs the kernel of a tarball in guests without dpkg.
pub(crate) const INSTALL: &str = include_str!("../../../../guests/tarball/install.sh");

/// Packs what was collected, with a script that installs it. The kernel's own tarballs have an unstripped vmlinux instead.
fn pack_tar(epoch: u64, release: &str, dir: &Path) -> Result<()> {
    let scratch = temp_dir(dir, ".tarball-")?;
    let name = format!("linux-{release}");
    let root = scratch.path().join(&name);
    let boot = root.join("boot");
    fs::create_dir_all(&boot).map_err(|e| Error::io("create", &boot, e))?;
    for (from, to) in [("bzImage", "vmlinuz"), ("config", "config"), ("System.map", "System.map")] {
        let to = boot.join(format!("{to}-{release}"));
        fs::copy(dir.join(from), &to).map_err(|e| Error::io("copy the build's output to", to, e))?;
    }
    let install = root.join("install.sh");
    fs::write(&install, INSTALL).map_err(|e| Error::io("write", &install, e))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&install, mode).map_err(|e| Error::io("set the permissions of", &install, e))?;
    if dir.join("modules/lib").is_dir() {
        run::stdout(run::command("cp").arg("-R").arg(dir.join("modules/lib")).arg(&root))?;
    }
    pack::tarball(scratch.path(), &name, epoch, &dir.join(format!("{name}-x86_64.tar.xz")))
}

/// Size and hash of every file in a directory, by its path in it.
fn records(dir: &Path) -> Result<Sizes> {
    let mut records = Sizes::new();
    for entry in WalkDir::new(dir).sort_by_file_name() {
        let entry = entry.map_err(|e| Error::io("read", dir, e.into()))?;
        if entry.file_type().is_file() {
            let name = entry.path().strip_prefix(dir).expect("below the directory").display().to_string();
            let size = entry.metadata().map_err(|e| Error::io("read", entry.path(), e.into()))?.len();
            records.insert(name, FileRecord { size, sha256: hash_file(entry.path())? });
        }
    }
    Ok(records)
}
