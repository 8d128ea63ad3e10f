//! Reproducible archives: the same files give the same bytes.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use walkdir::WalkDir;

use crate::{
    file::Error,
    run::{self, Result},
};

/// Packs the directory `name` in `parent` as the `.tar.xz` file `to`. All times become `epoch`, in seconds since 1970.
pub fn tarball(parent: &Path, name: impl AsRef<OsStr>, epoch: u64, to: &Path) -> Result<()> {
    settle(&parent.join(name.as_ref()), epoch)?;
    let mut tar = run::command("tar");
    tar.args(["--create", "--format=gnu", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--mtime=@{epoch}"))
        // One thread: xz begins new blocks depending on the number of threads.
        .args(["--use-compress-program", "xz -6 --threads=1"])
        .arg("--file")
        .arg(to)
        .arg("--directory")
        .arg(parent)
        .arg(name);
    run::stdout(&mut tar)?;
    Ok(())
}

/// Packs the directory `root`, which has a `DEBIAN`, as the Debian package `to`. All times become `epoch`.
pub fn deb(root: &Path, epoch: u64, to: &Path) -> Result<()> {
    settle(root, epoch)?;
    let mut dpkg = run::command("dpkg-deb");
    dpkg.args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"]).arg(root).arg(to);
    run::stdout(dpkg.env("SOURCE_DATE_EPOCH", epoch.to_string()))?;
    Ok(())
}

/// Sets the time of every file and directory of a tree to `epoch` and the mode of every directory to 0755, whatever the
/// umask was. dpkg-deb by itself changes only times that are later than its epoch.
fn settle(root: &Path, epoch: u64) -> Result<()> {
    let time = UNIX_EPOCH + Duration::from_secs(epoch);
    for entry in WalkDir::new(root).contents_first(true) {
        let entry = entry.map_err(|e| Error::new("read", root, e))?;
        let path = entry.path();
        if entry.file_type().is_symlink() {
            continue;
        }
        if entry.file_type().is_dir() {
            fs::set_permissions(path, Permissions::from_mode(0o755))
                .map_err(|e| Error::new("set the mode of", path, e))?;
        }
        File::open(path)
            .and_then(|file| file.set_modified(time))
            .map_err(|e| Error::new("set the time of", path, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(parent: &Path, umask: u32, time: u64) {
        let root = parent.join("thing-1");
        fs::create_dir_all(root.join("DEBIAN")).unwrap();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/thing"), "program").unwrap();
        fs::write(
            root.join("DEBIAN/control"),
            "Package: thing\nVersion: 1\nArchitecture: all\nMaintainer: me <me@example.invalid>\nDescription: thing\n",
        )
        .unwrap();
        fs::set_permissions(root.join("usr"), Permissions::from_mode(0o777 & !umask)).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(time);
        File::open(root.join("usr/bin/thing")).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn neither_times_nor_the_umask_show() {
        let dir = tempfile::tempdir().unwrap();
        // One tree is older than the packages' time, as a file of an earlier build; the other one is younger.
        for (name, umask, time) in [("old", 0o022, 1_000_000), ("new", 0o077, 2_000_000_000)] {
            let parent = dir.path().join(name);
            tree(&parent, umask, time);
            tarball(&parent, "thing-1", 1_500_000_000, &parent.join("tar")).unwrap();
            deb(&parent.join("thing-1"), 1_500_000_000, &parent.join("deb")).unwrap();
        }
        for file in ["tar", "deb"] {
            let read = |name: &str| fs::read(dir.path().join(name).join(file)).unwrap();
            assert!(read("old") == read("new"), "{file}");
        }
    }
}
