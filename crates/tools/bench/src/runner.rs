//! Where the machines run: the program, and the files that guests are made of.

use std::{
    cell::Cell,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use helper_vm::Archive;

use crate::{Error, Kernel, Result};

/// Drivers that Debian's kernels need for a disk, and for a network.
const DISK_DRIVERS: [&str; 2] = ["virtio_pci", "virtio_blk"];
const NET_DRIVERS: [&str; 1] = ["virtio_net"];

/// The name of the guests' init.
const GUEST: &str = "vmmlinux-guest";

/// Bytes of the disk that is read in [`crate::io`].
const DATA: u64 = 64 << 20;

/// Runs machines.
pub struct Runner {
    /// The `vmmlinux` program.
    pub(crate) program: PathBuf,
    /// Its `--accel`.
    pub(crate) accel: String,
    pub(crate) scratch: tempfile::TempDir,
    pub(crate) root: PathBuf,
    guest: Vec<u8>,
    /// How many machines were started: each has a name of its own.
    pub(crate) started: Cell<u32>,
    say: Box<dyn Fn(&str)>,
}

impl Runner {
    /// A runner of machines with `program`, beside which the guests' init lies. `say` is told what is being done.
    pub fn new(program: &Path, accel: &str, say: Box<dyn Fn(&str)>) -> Result<Self> {
        let path = program.with_file_name(GUEST);
        if !path.is_file() {
            return Err(Error::NoGuest { path });
        }
        let scratch = tempfile::Builder::new()
            .prefix("vmmlinux-bench-")
            .tempdir()
            .map_err(Error::io("create a directory in", std::env::temp_dir()))?;
        let guest = helper_vm::static_program(&path)?;
        let root = root_disk(scratch.path(), &guest)?;
        Ok(Self {
            program: program.to_owned(),
            accel: accel.to_owned(),
            scratch,
            root,
            guest,
            started: Cell::new(0),
            say,
        })
    }

    /// Tells the user.
    pub(crate) fn say(&self, what: &str) {
        (self.say)(what);
    }

    /// The initramfs with a kernel's drivers, for those that need one.
    pub(crate) fn initrd(&self, kernel: &Kernel, net: bool) -> Result<Option<PathBuf>> {
        let Some(debian) = &kernel.debian else { return Ok(None) };
        let path = self.scratch.path().join(format!("{}-{net}.initrd", kernel.name));
        if path.is_file() {
            return Ok(Some(path));
        }
        let mut wanted = DISK_DRIVERS.to_vec();
        if net {
            wanted.extend(NET_DRIVERS);
        }
        let drivers = debian.modules_for(&wanted)?;
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let mut archive = Archive::new(file, &path, &["proc", "sys", "root", "modules"])?;
        archive.file("init", 0o755, &self.guest)?;
        for (index, (name, content)) in drivers.iter().enumerate() {
            archive.file(&format!("modules/{index:02}-{name}.ko"), 0o400, content)?;
        }
        archive.finish()?;
        Ok(Some(path))
    }

    /// A disk to read from, with something on every block.
    pub(crate) fn data_disk(&self) -> Result<PathBuf> {
        let path = self.scratch.path().join("data.img");
        if !path.is_file() {
            let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
            fs::write(&path, block.repeat((DATA >> 20) as usize)).map_err(Error::io("write", &path))?;
        }
        Ok(path)
    }
}

/// The root file system that guests boot from: ext4 with the guests' init and places to mount on.
fn root_disk(scratch: &Path, guest: &[u8]) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;

    let (tree, disk) = (scratch.join("root"), scratch.join("root.img"));
    let init = tree.join("init");
    let lay_out = || {
        for dir in ["dev", "proc", "sys"] {
            fs::create_dir_all(tree.join(dir))?;
        }
        fs::write(&init, guest)?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
    };
    lay_out().map_err(Error::io("write", &init))?;
    let failed = |said: String| Error::Program {
        program: "mke2fs".to_owned(),
        said,
        help: "it makes the guests' root file system: Debian's package e2fsprogs has it".to_owned(),
    };
    // An ordinary user's PATH may lack it.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&tree)
        .arg(&disk)
        .arg("24M")
        .env("PATH", path)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(disk)
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_guests_init_there_is_no_runner() {
        let dir = tempfile::tempdir().unwrap();
        let runner = Runner::new(&dir.path().join("vmmlinux"), "auto", Box::new(|_| {}));
        assert!(matches!(runner, Err(Error::NoGuest { path }) if path.ends_with(GUEST)));
    }

    #[test]
    fn the_root_file_system_has_an_init() {
        let dir = tempfile::tempdir().unwrap();
        let disk = fs::read(root_disk(dir.path(), b"the guest's program").unwrap()).unwrap();
        assert!(disk.windows(19).any(|bytes| bytes == b"the guest's program"));
    }
}
