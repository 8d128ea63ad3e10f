//! The files of `out/<name>/`: collected under a temporary name and moved into place in one step.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use support::{
    file::{self, TempDir, replace_dir, temp_dir},
    hash::hash_file,
    progress::Progress,
    run,
};
use walkdir::WalkDir;

use crate::{
    make::runner::Make,
    output::{
        directory::OutputDir,
        error::Result,
        manifest::{FileRecord, MANIFEST, Manifest, SUMS},
        package::{Package, make_package},
    },
};

/// Sizes and hashes by file name.
type Sizes = BTreeMap<String, FileRecord>;

/// A new output directory under a temporary name.
#[derive(Debug)]
pub(crate) struct Staging<'a> {
    place: &'a OutputDir,
    temp: TempDir,
}

/// The collected files.
pub(crate) struct Collected {
    pub(crate) release: String,
    pub(crate) sizes: Sizes,
}

impl<'a> Staging<'a> {
    pub(crate) fn new(place: &'a OutputDir) -> Result<Self> {
        fs::create_dir_all(&place.out).map_err(|e| file::Error::new("create", &place.out, e))?;
        let prefix = format!(".{}.new-", place.name);
        // A run that was killed while it moved the user's files left the rest of them there.
        let entries = fs::read_dir(&place.out).map_err(|e| file::Error::new("read", &place.out, e))?;
        for entry in entries.filter_map(std::result::Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                keep_foreign(&entry.path(), &place.dir)?;
            }
        }
        Ok(Self { place, temp: temp_dir(&place.out, &prefix)? })
    }

    /// Copies and installs what make has built. The time for a package's files is in seconds since 1970.
    pub(crate) fn collect(
        &self,
        make: &Make<'_>,
        package: Option<(Package, u64)>,
        progress: &dyn Progress,
    ) -> Result<Collected> {
        let dir = self.temp.path();
        let from = |name: &str| make.objects.join(name);
        let copy = |from: PathBuf, name: &str| {
            let to = dir.join(name);
            fs::copy(&from, &to)
                .map(|_| ())
                .map_err(|e| file::Error::new("copy the build's output to", to, e))
        };
        copy(from("arch/x86/boot/bzImage"), "bzImage")?;
        copy(from("vmlinux"), "vmlinux.debug")?;
        copy(from("System.map"), "System.map")?;
        copy(from(".config"), "config")?;
        strip(make, &dir.join("vmlinux.debug"), &dir.join("vmlinux"))?;
        let release_file = from("include/config/kernel.release");
        let release = fs::read_to_string(&release_file)
            .map_err(|e| file::Error::new("read", &release_file, e))?
            .trim()
            .to_owned();
        let config = dir.join("config");
        let config = fs::read_to_string(&config).map_err(|e| file::Error::new("read", &config, e))?;
        if config.lines().any(|line| line == "CONFIG_MODULES=y") {
            install_modules(make, &dir.join("modules"), &release, progress)?;
        }
        if let Some(package) = package {
            progress.phase("packaging");
            make_package(make, package, &release, dir, progress)?;
        }
        Ok(Collected { release, sizes: records(dir)? })
    }

    /// Writes checksums and manifest and moves the directory to its place.
    pub(crate) fn publish(self, manifest: &Manifest) -> Result<()> {
        let dir = self.temp.path();
        let mut sums = String::new();
        for (name, record) in &manifest.files {
            let _ = writeln!(sums, "{}  {name}", record.sha256);
        }
        let write = |name: &str, text: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, text).map_err(|e| file::Error::new("write", path, e))
        };
        write(SUMS, sums.as_bytes())?;
        let mut text = serde_json::to_vec_pretty(manifest).expect("a manifest serialises");
        text.push(b'\n');
        write(MANIFEST, &text)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir, mode).map_err(|e| file::Error::new("set the permissions of", dir, e))?;
        replace_dir(dir, &self.place.dir)?;
        keep_foreign(dir, &self.place.dir)
    }
}

/// Writes a copy of a kernel without debugging information.
fn strip(make: &Make<'_>, from: &Path, to: &Path) -> Result<()> {
    let llvm = make.vars.iter().any(|(name, _)| name == "LLVM");
    let mut strip = run::command(if llvm { "llvm-strip" } else { "strip" });
    run::stdout(strip.env("PATH", &make.toolchain.path).arg("-o").arg(to).arg(from))?;
    Ok(())
}

/// Installs the modules of a kernel in `to`.
fn install_modules(make: &Make<'_>, to: &Path, release: &str, progress: &dyn Progress) -> Result<()> {
    let vars = [("INSTALL_MOD_PATH", to.display().to_string()), ("INSTALL_MOD_STRIP", "1".to_owned())];
    make.run(&["modules_install"], &vars, (0, 0), progress)?;
    // These links point to directories of this machine.
    for link in ["build", "source"] {
        let link = to.join("lib/modules").join(release).join(link);
        if fs::symlink_metadata(&link).is_ok() {
            fs::remove_file(&link).map_err(|e| file::Error::new("remove", &link, e))?;
        }
    }
    Ok(())
}

/// Moves files that no build made, such as disk images, from an old output directory to the new one.
fn keep_foreign(old: &Path, new: &Path) -> Result<()> {
    let Ok(manifest) = Manifest::load(old) else { return Ok(()) };
    let ours = |name: &str| {
        name == MANIFEST
            || name == SUMS
            || manifest.files.keys().any(|file| file.split('/').next() == Some(name))
    };
    let entries = fs::read_dir(old).map_err(|e| file::Error::new("read", old, e))?;
    for entry in entries.filter_map(std::result::Result::ok) {
        let name = entry.file_name();
        let to = new.join(&name);
        if !ours(&name.to_string_lossy()) && !to.exists() {
            fs::rename(entry.path(), &to).map_err(|e| file::Error::new("keep", to, e))?;
        }
    }
    Ok(())
}

/// Size and hash of every file in a directory, by its path in it.
fn records(dir: &Path) -> Result<Sizes> {
    let mut records = Sizes::new();
    for entry in WalkDir::new(dir).sort_by_file_name() {
        let entry = entry.map_err(|e| file::Error::new("read", dir, e))?;
        if entry.file_type().is_file() {
            let name = entry.path().strip_prefix(dir).expect("below the directory").display().to_string();
            let size = entry.metadata().map_err(|e| file::Error::new("read", entry.path(), e))?.len();
            records.insert(name, FileRecord { size, sha256: hash_file(entry.path())? });
        }
    }
    Ok(records)
}
