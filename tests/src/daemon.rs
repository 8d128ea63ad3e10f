//! A guest of busybox whose daemon is vmmcid, and what it did to the device, from the machine's trace of port accesses.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use debian_archive::{Debian, DebianKernel};
use devices::bus::{Direction, PortAccess, Width};
use support::{cache::Cache, progress::Quiet};
use vmm::trace::{self, Record};
use vmmci_protocol::register;

use crate::{
    initramfs::Initramfs,
    run::{Run, machine, program, stripped, vmmlinux},
};

/// Debian's static busybox.
///
/// # Panics
///
/// If it cannot be had.
pub fn busybox(cache: &Cache) -> PathBuf {
    let package = Debian::new(cache, "trixie", &Quiet).package("busybox-static").expect("Debian's busybox");
    let path = package.join("usr/bin/busybox");
    assert!(path.is_file(), "{} is not there", path.display());
    path
}

/// The directories of such a guest.
const DIRECTORIES: [&str; 9] = [
    "bin",
    "etc",
    "etc/vmmcid",
    "etc/vmmcid/after-resume.d",
    "etc/vmmcid/before-stop.d",
    "lib",
    "lib/x86_64-linux-gnu",
    "lib64",
    "sbin",
];

/// A kernel with busybox as its init and vmmcid as its only daemon; `tests/daemon` has its scripts.
#[derive(Debug)]
pub struct DaemonGuest {
    dir: tempfile::TempDir,
    kernel: PathBuf,
}

impl DaemonGuest {
    /// Packs the guest with a kernel, a static busybox, and the program of `src/clockwatch.rs`.
    pub fn new(kernel: PathBuf, busybox: &Path, clockwatch: &Path) -> Self {
        Self::with_files(kernel, busybox, clockwatch, &[])
    }

    /// The same, and further files, by their names in the guest: in directories that `DIRECTORIES` has.
    pub fn with_files(
        kernel: PathBuf,
        busybox: &Path,
        clockwatch: &Path,
        files: &[(String, PathBuf)],
    ) -> Self {
        let guest = Self { dir: tempfile::tempdir().expect("a directory"), kernel };
        let mut archive = Initramfs::create(&guest.initrd(), &DIRECTORIES).expect("an initrd");
        archive.link("init", "bin/busybox").expect("an initrd");
        let vmmcid = guest.dir.path().join("vmmcid");
        stripped("vmmcid", &vmmcid);
        let scripts = scripts();
        for (name, from) in [
            ("bin/busybox", busybox.to_owned()),
            ("bin/clockwatch", clockwatch.to_owned()),
            ("sbin/vmmcid", vmmcid),
            ("etc/inittab", scripts.join("inittab")),
            ("etc/rcS", scripts.join("rcS")),
            ("etc/rcK", scripts.join("rcK")),
            ("etc/main", scripts.join("main")),
            ("etc/stuck", scripts.join("stuck")),
            ("etc/storm.toml", scripts.join("storm.toml")),
            ("etc/told", scripts.join("told")),
            ("etc/vmmcid/before-stop.d/10-say", scripts.join("hook")),
            ("etc/vmmcid/after-resume.d/10-say", scripts.join("hook")),
        ] {
            archive.copy(name, &from).expect("an initrd");
        }
        for (name, from) in files {
            archive.copy(name, from).expect("an initrd");
        }
        archive.finish().expect("an initrd");
        guest
    }

    fn initrd(&self) -> PathBuf {
        self.dir.path().join("initrd")
    }

    /// The trace of the last run.
    pub fn trace(&self) -> Trace {
        Trace::read(&self.dir.path().join("trace"))
    }

    /// Runs it on a generation of vmd. `what` is what it does, `more` goes onto the kernel's command line.
    pub fn run(&self, name: &str, host: &str, what: &str, more: &str) -> Run {
        let common = "console=ttyS0,115200 quiet mitigations=off reboot=t panic=-1";
        let mut command = machine(name, "30m");
        command
            .args(["--host", host])
            .args(["--append", &format!("{common} {more} do={what}")])
            .arg("--kernel")
            .arg(&self.kernel)
            .arg("--initrd")
            .arg(self.initrd())
            .arg("--trace")
            .arg(self.dir.path().join("trace"));
        Run::start(name, command)
    }
}

/// Debian with systemd and a stock kernel: vmmcid comes into it as a package, by its initial RAM disk.
#[derive(Debug)]
pub struct SystemdGuest {
    dir: tempfile::TempDir,
    kernel: PathBuf,
}

impl SystemdGuest {
    /// Makes the image and the initial RAM disk. Takes minutes and downloads Debian's packages.
    pub fn new(suite: &str, kernel: &DebianKernel, busybox: &Path) -> Self {
        let guest = Self { dir: tempfile::tempdir().expect("a directory"), kernel: kernel.vmlinuz.clone() };
        let made = Command::new(vmmlinux())
            .args(["image", "--rootfs", &format!("debian:{suite}"), "--size", "2G", "--hostname", "guest"])
            .arg("--kernel")
            .arg(&kernel.vmlinuz)
            .arg("--output")
            .arg(guest.path("disk"))
            .output()
            .expect("vmmlinux starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let packages = packaging::package_daemon(&program("vmmcid"), 0, guest.dir.path()).expect("packages");
        let mut archive = Initramfs::create(&guest.path("initrd"), &["bin"]).expect("an initrd");
        archive.copy("bin/busybox", busybox).expect("an initrd");
        archive.copy("init", &scripts().join("systemd-init")).expect("an initrd");
        archive.copy("vmmcid.deb", &packages.deb).expect("an initrd");
        let modules = kernel.modules_for(&["virtio_pci", "virtio_blk", "ext4"]).expect("modules");
        for (index, (name, content)) in modules.into_iter().enumerate() {
            let from = guest.path(&name);
            std::fs::write(&from, content).expect("a file");
            archive.copy(&format!("modules/{index:02}-{name}.ko"), &from).expect("an initrd");
        }
        archive.finish().expect("an initrd");
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The trace of the last run.
    pub fn trace(&self) -> Trace {
        Trace::read(&self.path("trace"))
    }

    /// Boots it.
    pub fn run(&self, name: &str, host: &str) -> Run {
        let mut command = machine(name, "30m");
        command
            .args(["--host", host, "-m", "1G"])
            .args(["--append", "console=ttyS0,115200 quiet mitigations=off reboot=t panic=-1"])
            .arg("--kernel")
            .arg(&self.kernel)
            .arg("--initrd")
            .arg(self.path("initrd"))
            .arg("--disk")
            .arg(self.path("disk"))
            .arg("--trace")
            .arg(self.path("trace"));
        Run::start(name, command)
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("daemon")
}

/// An access to a register of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Nanoseconds since the guest's start.
    pub at: u64,
    /// The register.
    pub register: u16,
    /// Whether it was written.
    pub write: bool,
    /// The value.
    pub value: u32,
}

/// The accesses to the device.
#[derive(Debug)]
pub struct Trace(pub Vec<Access>);

impl Trace {
    /// The accesses of a daemon, whose handshake shows where the device is: kernels' drivers write the status as a byte.
    fn read(path: &Path) -> Self {
        let accesses = Self::all(path);
        let base = accesses
            .iter()
            .find(|(_, access)| {
                (access.direction, access.width, access.eax) == (Direction::Out, Width::Dword, 7)
                    && access.port & 0x3f == register::DEVICE_STATUS
            })
            .map(|(_, access)| access.port - register::DEVICE_STATUS)
            .expect("the daemon has agreed with the device");
        Self::of_device(accesses, base)
    }

    /// The accesses in the trace `path` to the device whose registers begin at the port `base`.
    pub fn at(path: &Path, base: u16) -> Self {
        Self::of_device(Self::all(path), base)
    }

    /// All accesses, and when they were, in nanoseconds.
    fn all(path: &Path) -> Vec<(u64, PortAccess)> {
        let (hz, records) = trace::read(path).expect("the machine has written its trace");
        assert!(hz > 0, "the trace has no time");
        let nanos = |ticks| u64::try_from(u128::from(ticks) * 1_000_000_000 / u128::from(hz)).ok();
        let accesses = records.into_iter().filter_map(|record| match record {
            Record::Access { ticks, access, .. } => Some((nanos(ticks)?, access)),
            Record::Start => None,
        });
        accesses.collect()
    }

    fn of_device(accesses: Vec<(u64, PortAccess)>, base: u16) -> Self {
        let of_device = accesses.into_iter().filter_map(|(at, access)| {
            let register = access.port.checked_sub(base).filter(|register| *register < 0x40)?;
            Some(Access { at, register, write: access.direction == Direction::Out, value: access.eax })
        });
        Self(of_device.collect())
    }

    /// The index of the first access like this.
    pub fn position(&self, register: u16, write: bool, value: impl Fn(u32) -> bool) -> Option<usize> {
        self.0.iter().position(|a| (a.register, a.write) == (register, write) && value(a.value))
    }

    /// The accesses a second in the longest time without a reading of the host's clock, from one look of the daemon's to
    /// another.
    #[allow(clippy::cast_precision_loss)]
    pub fn idle_rate(&self) -> f64 {
        let idle = self
            .0
            .split(|a| a.register != register::COMMAND)
            .filter(|looks| !looks.is_empty())
            .max_by_key(|looks| looks[looks.len() - 1].at - looks[0].at)
            .expect("the daemon has looked");
        let nanos = idle[idle.len() - 1].at - idle[0].at;
        assert!(nanos > 10_000_000_000, "watched for {nanos} ns only");
        (idle.len() - 1) as f64 * 1e9 / nanos as f64
    }

    /// Where a command was acknowledged.
    fn answer(&self, command: u32) -> usize {
        self.position(register::COMMAND, true, |value| value == command)
            .unwrap_or_else(|| panic!("command {command} was not acknowledged"))
    }

    /// How long after it took the interrupt a driver acknowledged a command, in nanoseconds.
    pub fn acknowledged_after_interrupt(&self, command: u32) -> u64 {
        let answer = self.answer(command);
        let interrupt = self.0[..answer].iter().rev().find(|a| a.register == register::ISR_STATUS);
        self.0[answer].at - interrupt.expect("there was an interrupt").at
    }

    /// How long a command of the host's can have waited for its acknowledgement, in nanoseconds: from the last look at
    /// which it was not there.
    pub fn acknowledged_within(&self, command: u32) -> u64 {
        let answer = self.answer(command);
        let before = self.0[..answer]
            .iter()
            .rev()
            .find(|a| a.register == register::COMMAND && !a.write && a.value != command)
            .expect("it was not there from the beginning");
        self.0[answer].at - before.at
    }
}
