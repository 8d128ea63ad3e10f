//! Packages of a kernel: Debian packages by the kernel's own target, and a tarball.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use support::{
    archive::tarball,
    file::{self, temp_dir},
    progress::Progress,
    run,
};

use crate::{make::runner::Make, output::error::Result};

/// A package format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Package {
    /// Debian packages: image and headers.
    Deb,
    /// A tar archive of /boot and /lib/modules, with a script that installs them.
    Tar,
}

/// Makes a package in the output directory. Its files have the time `epoch`, in seconds since 1970.
pub(crate) fn make_package(
    make: &Make<'_>,
    (package, epoch): (Package, u64),
    release: &str,
    dir: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    match package {
        Package::Deb => pack_deb(make, release, dir, progress),
        Package::Tar => pack_tar(epoch, release, dir),
    }
}

/// The kernel's command for the directory `debian`, with SOURCE_DATE_EPOCH as the date of the changelog instead of the
/// current time, which would be the only difference between two builds.
const DEBIANIZE: &str = "$(srctree)/scripts/package/mkdebian $(mkdebian-opts) && \
    sed -i \"s/^\\( -- .*>  \\).*/\\1$$(LC_ALL=C date -uR -d \"@$$SOURCE_DATE_EPOCH\")/\" debian/changelog";

/// Runs the kernel's own package target and copies its packages, which it writes to the parent of the objects.
fn pack_deb(make: &Make<'_>, release: &str, dir: &Path, progress: &dyn Progress) -> Result<()> {
    let place = make.objects.parent().expect("objects lie in a build directory");
    let list = || -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(place).map_err(|e| file::Error::new("read", place, e))?;
        let paths = entries.filter_map(|e| Some(e.ok()?.path()));
        Ok(paths.filter(|path| path.extension().is_some_and(|e| e == "deb")).collect())
    };
    for stale in list()? {
        fs::remove_file(&stale).map_err(|e| file::Error::new("remove the old", stale, e))?;
    }
    let vars = [
        ("KDEB_PKGVERSION", format!("{}-1", release.replace('_', "-"))),
        ("KDEB_CHANGELOG_DIST", "unstable".to_owned()),
        ("DPKG_FLAGS", "-d".to_owned()),
        ("cmd_debianize", DEBIANIZE.to_owned()),
    ];
    make.run(&["bindeb-pkg"], &vars, (0, 0), progress)?;
    for made in list()? {
        // In a guest it would replace the distribution's, which belongs to its C library.
        if made.file_name().unwrap_or_default().to_string_lossy().starts_with("linux-libc-dev") {
            continue;
        }
        let to = dir.join(made.file_name().expect("a listed file"));
        fs::copy(&made, &to).map_err(|e| file::Error::new("copy the package to", to, e))?;
    }
    Ok(())
}

/// The installation script of tarballs, for guests without dpkg.
pub(crate) const INSTALL: &str = include_str!("../../../../../guests/tarball/install.sh");

/// Packs the collected files and an installation script. The kernel's own tarballs have neither the script nor a
/// stripped kernel.
fn pack_tar(epoch: u64, release: &str, dir: &Path) -> Result<()> {
    let scratch = temp_dir(dir, ".tarball-")?;
    let name = format!("linux-{release}");
    let root = scratch.path().join(&name);
    let boot = root.join("boot");
    fs::create_dir_all(&boot).map_err(|e| file::Error::new("create", &boot, e))?;
    for (from, to) in [("bzImage", "vmlinuz"), ("config", "config"), ("System.map", "System.map")] {
        let to = boot.join(format!("{to}-{release}"));
        fs::copy(dir.join(from), &to).map_err(|e| file::Error::new("copy the build's output to", to, e))?;
    }
    let install = root.join("install.sh");
    fs::write(&install, INSTALL).map_err(|e| file::Error::new("write", &install, e))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&install, mode)
        .map_err(|e| file::Error::new("set the permissions of", &install, e))?;
    if dir.join("modules/lib").is_dir() {
        run::stdout(run::command("cp").arg("-R").arg(dir.join("modules/lib")).arg(&root))?;
    }
    Ok(tarball(scratch.path(), &name, epoch, &dir.join(format!("{name}-x86_64.tar.xz")))?)
}
