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
        Package::Deb => pack_deb(make, epoch, release, dir, progress),
        Package::Tar => pack_tar(epoch, release, dir),
    }
}

/// The kernel's command for the directory `debian`, with SOURCE_DATE_EPOCH as the date of the changelog instead of the
/// current time, which would be the only difference between two builds.
const DEBIANIZE: &str = "$(srctree)/scripts/package/mkdebian $(mkdebian-opts) && \
    sed -i \"s/^\\( -- .*>  \\).*/\\1$$(LC_ALL=C date -uR -d \"@$$SOURCE_DATE_EPOCH\")/\" debian/changelog";

/// Runs the kernel's own package target and copies its packages, which it writes to the parent of the objects.
fn pack_deb(make: &Make<'_>, epoch: u64, release: &str, dir: &Path, progress: &dyn Progress) -> Result<()> {
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
        if made.file_name().unwrap_or_default().to_string_lossy().starts_with("linux-image-") {
            add_check(&made, &to, epoch, release, &dir.join("config"))?;
        } else {
            fs::copy(&made, &to).map_err(|e| file::Error::new("copy the package to", to, e))?;
        }
    }
    Ok(())
}

/// Packs a Debian package anew, whose preinst refuses a guest that the kernel could not mount. The kernel's own target
/// writes the script and takes no part of one.
fn add_check(made: &Path, to: &Path, epoch: u64, release: &str, config: &Path) -> Result<()> {
    let scratch = temp_dir(to.parent().unwrap_or(Path::new(".")), ".deb-")?;
    let root = scratch.path().join("package");
    run::stdout(run::command("dpkg-deb").arg("--raw-extract").arg(made).arg(&root))?;
    let preinst = root.join("DEBIAN/preinst");
    let script = fs::read_to_string(&preinst).map_err(|e| file::Error::new("read", &preinst, e))?;
    let config = fs::read_to_string(config).map_err(|e| file::Error::new("read", config, e))?;
    fs::write(&preinst, checking(&script, release, &config))
        .map_err(|e| file::Error::new("write", &preinst, e))?;
    let mut pack = run::command("dpkg-deb");
    pack.env("SOURCE_DATE_EPOCH", epoch.to_string()).args(["--root-owner-group", "-Zxz", "--build"]);
    run::stdout(pack.arg(&root).arg(to))?;
    Ok(())
}

/// A preinst that looks before it does what it did, with the lines of the configuration that the check names.
fn checking(script: &str, release: &str, config: &str) -> String {
    let named = |line: &&str| {
        let symbol =
            line.strip_prefix("CONFIG_").and_then(|line| line.strip_suffix("=y").or(line.strip_suffix("=m")));
        symbol.is_some_and(|symbol| {
            MOUNTABLE.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == symbol)
        })
    };
    let config: Vec<_> = config.lines().filter(named).collect();
    let (shebang, rest) = script.split_once('\n').unwrap_or((script, ""));
    format!(
        "{shebang}\n(\nset -eu\nroot=\nrelease={release}\nconfig='{}'\n{MOUNTABLE}\n\
         case ${{1-}} in install | upgrade) ;; *) exit 0 ;; esac\n\
         look_at_fstab\nlook_at_running_root\n\
         if is_running && [ -r /proc/cmdline ]; then look_at_command_line /proc/cmdline \"$(cat /proc/cmdline)\"; fi\n\
         can_be_mounted\n) || exit 1\n{rest}",
        config.join("\n")
    )
}

/// The scripts of packages.
pub(crate) const SCRIPTS: [&str; 2] = [INSTALL, MOUNTABLE];

/// The installation script of tarballs, for guests without dpkg.
const INSTALL: &str = include_str!("../../../../../guests/tarball/install.sh");
/// What it and the Debian package look at before they change a guest.
const MOUNTABLE: &str = include_str!("../../../../../guests/tarball/mountable.sh");

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
    let mountable = root.join("mountable.sh");
    fs::write(&mountable, MOUNTABLE).map_err(|e| file::Error::new("write", &mountable, e))?;
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs a preinst on the machine that the tests run on, whose root no kernel without file systems can mount.
    fn preinst(config: &str, argument: &str) -> std::process::Output {
        let script = checking("#!/bin/sh\nset -e\necho installed\n", "7.3", config);
        // Only the file system of the test's machine: its devices may be anything.
        let script = script
            .replace("/proc/cmdline", "/nonexistent")
            .replace("look_at_fstab\nlook_at_running_root\n", "need_type / ext4 late\n");
        Command::new("sh").args(["-c", &script, "preinst", argument]).output().unwrap()
    }

    #[test]
    fn a_debian_package_refuses_before_anything_is_unpacked() {
        let refused = preinst("CONFIG_XFS_FS=y\n", "install");
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            said.contains("nothing was changed") && said.contains("this kernel has no EXT4_FS"),
            "{said}"
        );
        for (config, argument) in [("CONFIG_EXT4_FS=m\n", "install"), ("CONFIG_XFS_FS=y\n", "abort-upgrade")]
        {
            let taken = preinst(config, argument);
            assert!(taken.status.success(), "{taken:?}");
            assert_eq!(String::from_utf8_lossy(&taken.stdout), "installed\n");
        }
    }

    #[test]
    fn only_what_the_check_names_is_in_it() {
        let script = checking(
            "#!/bin/sh\n",
            "7.3",
            "CONFIG_DM_CRYPT=m\nCONFIG_WIREGUARD=m\n# CONFIG_XFS_FS is not set\n",
        );
        assert!(script.contains("config='CONFIG_DM_CRYPT=m'\n"), "{script}");
    }
}
