//! Debian with systemd through its whole life: installed, booted by firmware and boot loader, used, suspended, stopped,
//! rebooted, powered off. With our kernel and its driver, and with Debian's own and vmmcid.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use guest_tests::{
    disk::assert_root_is_clean,
    run::{Run, build, machine, program, vmmlinux},
    shell::Shell,
};
use rstest::rstest;

/// Anybody's: it is only looked for in the guest.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGB4fYfCEpGuvzTPVrFgjvQ4qM6qyYTT2rTe9JQpTbIL me@example";

/// Warnings of a guest that are expected, with the reason.
const WARNINGS: [(&str, &str); 14] = [
    ("TSC doesn't count with P0 frequency", "vmm shows an AMD processor without the bit that says so"),
    (
        "A valid RSDP was not found",
        "up to 7.9 vmd has no ACPI tables, and Linux only finds that out by looking",
    ),
    ("ACPI: Failed to initialize tables", "the same"),
    ("PMU not available due to virtualization", "vmm has no performance counters"),
    (
        "mce: Unable to init MCE device",
        "vmm has no machine checks, and Debian's kernel asks for them all the same",
    ),
    ("Failed to query local AF_VSOCK CID", "Debian's kernel has vsock, and vmd no device for it"),
    ("systemd-ssh-generator failed", "the same"),
    ("Speculative Return Stack Overflow", "vmm's CPUID ends before the leaf that tells of the microcode"),
    ("Long readout interval, skipping watchdog check", "the machine had something else to do for that long"),
    (
        "APIC calibration not consistent with PM-Timer",
        "8.0's ticks come when the host has time; Linux then believes the PM timer",
    ),
    (
        "ACPI: setting ELCR to",
        "8.0's IOAPIC is left alone, so ACPI sets how its interrupt comes to the 8259s",
    ),
    (BUS_MSR, "Linux asks AMD processors for a bridge's register; recorded on a real vmd"),
    ("Forward time jump detected!", "chronyd sees the driver set the clock after the host has slept"),
    ("Using degraded feature set", "no name server answers behind the machine's local interface"),
];

/// Debian's kernel asks for it early, and shows how it came to that.
const BUS_MSR: &str = "unchecked MSR access error: RDMSR from 0xc001001f";

/// Makes a package of 8 MiB that cannot be compressed, installs it, checks what arrived on the disk, and purges it.
const PACKAGE: &str = "mkdir -p /tmp/p/DEBIAN /tmp/p/opt/hello; head -c 8M /dev/urandom >/tmp/p/opt/hello/data; \
    printf 'Package: hello-vmd\\nVersion: 1\\nArchitecture: all\\nMaintainer: me <me@example.invalid>\\nDescription: x\\n' \
    >/tmp/p/DEBIAN/control; dpkg-deb -Znone -b /tmp/p /var/cache/hello.deb >/dev/null; \
    dpkg -i /var/cache/hello.deb >/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches; \
    cmp /tmp/p/opt/hello/data /opt/hello/data && dpkg --verify hello-vmd && dpkg --purge hello-vmd >/dev/null; \
    ls -d /opt/hello 2>/dev/null; dpkg --audit; echo done";

/// Logs in through the network with a key that is made for it. The guest is the only one whom it can reach here.
const SSH: &str = "ssh-keygen -q -t ed25519 -N '' -f /root/key && cat /root/key.pub >>/root/.ssh/authorized_keys; \
    address=$(ip -o -4 addr show dev enp0s2 | sed 's,.*inet \\([0-9.]*\\)/.*,\\1,'); \
    ssh -i /root/key -o BatchMode=yes -o StrictHostKeyChecking=accept-new root@\"$address\" 'echo \"${SSH_CONNECTION:+through }$(hostname)\"' \
    2>/dev/null";

/// An image, and the machine's name for what runs from it.
struct Debian {
    dir: tempfile::TempDir,
    name: String,
}

impl Debian {
    fn install(suite: &str, arguments: &[&str]) -> Self {
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&key, KEY).unwrap();
        let rootfs = format!("debian:{suite}");
        let common = ["--rootfs", &rootfs, "--ssh-key", key.path().to_str().unwrap()];
        Self::make(suite, &[&common, arguments].concat())
    }

    fn make(name: &str, arguments: &[&str]) -> Self {
        let debian = Self { dir: tempfile::tempdir().unwrap(), name: format!("debian-{name}") };
        let made = Command::new(vmmlinux())
            .args(["image", "--size", "2G", "--hostname", "guest"])
            .arg("--output")
            .arg(debian.path("disk.img"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        debian
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A disk with these files: a tar archive.
    fn disk_of(&self, files: &[&Path]) -> PathBuf {
        let disk = self.path("files.img");
        let mut tar = Command::new("tar");
        tar.arg("-cf").arg(&disk);
        for file in files {
            tar.arg("-C").arg(file.parent().unwrap()).arg(file.file_name().unwrap());
        }
        assert!(tar.status().unwrap().success());
        disk
    }

    fn boot(&self, host: &str) -> Run {
        self.boot_with(host, &[])
    }

    fn boot_with(&self, host: &str, arguments: &[&str]) -> Run {
        let mut command = machine(&self.name, "30m");
        command.args(["-i", "--host", host]).arg(self.path("disk.img")).args(arguments);
        Run::start(&self.name, command)
    }

    /// Has it power off from within, to be found clean then, and gives what `vmmlinux run` said.
    fn power_off(&self, mut run: Run) -> String {
        run.send(b"poweroff\n");
        let ended = run.end().assert_status(0);
        assert_root_is_clean(&self.path("disk.img"));
        ended.errors
    }

    /// Stops it as vmctl(8) does, to be found clean then, and gives what it wrote on its console.
    fn stop(&self, run: Run) -> String {
        run.obey(&["stop"]);
        let ended = run.end().assert_status(0);
        assert!(ended.errors.contains("went down as asked"), "{}", ended.errors);
        assert_root_is_clean(&self.path("disk.img"));
        ended.seen.text
    }
}

/// Waits for chrony's first corrections. Then prints what it follows: the first source's kind and name.
const FOLLOWED: &str = "chronyc waitsync 60 0 0 1 >/dev/null; chronyc -c sources | cut -d , -f 1,2,3";

/// Compares the guest's clock with the host's once a second, a hundred times, in nanoseconds.
const HUNDRED_OFFSETS: &str =
    "for n in $(seq 100); do cat /sys/bus/pci/drivers/vmmci/0*/vmmci/offset_ns; sleep 1; done";

/// Who drives the control device, and how that shows.
struct Control {
    /// The clock that chrony follows: a reference clock (`#`), selected (`*`), by name; nothing where the image knows none.
    followed: &'static str,
    /// Prints how far the guest's clock is from the host's, in nanoseconds.
    offset: &'static str,
    /// In the journal of a boot that the host has ended.
    obeyed: &'static str,
}

const DRIVER: Control = Control {
    followed: "#,*,PHC0",
    offset: "cat /sys/bus/pci/drivers/vmmci/0*/vmmci/offset_ns",
    obeyed: "vmmci",
};
const DAEMON: Control = Control {
    followed: "",
    offset: "vmmcid offset --json | sed 's/.*\"nanos\":\\(-*[0-9]*\\).*/\\1/'",
    obeyed: "systemd was asked to go down",
};

/// Logs in again after a boot, in which all is well: the release of the kernel.
fn back_again(run: &mut Run, shell: &mut Shell) -> String {
    shell.log_in_again(run, "guest");
    assert_well(run, shell);
    shell.ask(run, "uname -r")
}

/// A running guest with nothing to complain of.
fn assert_well(run: &mut Run, shell: &mut Shell) {
    // The last that a boot does is to write on the console, perhaps into an answer.
    shell.ask(run, "systemctl is-system-running --wait");
    let state = shell.ask(run, "systemctl is-system-running");
    let failed = shell.ask(run, "systemctl --failed --plain --no-legend");
    assert_eq!((state.as_str(), failed.as_str()), ("running", ""));
    let journal = shell.ask(run, "journalctl -b -p warning -o cat");
    let unknown = unknown(&journal);
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// The unexpected warnings, without the stack that belongs to an expected one.
fn unknown(journal: &str) -> Vec<&str> {
    let mut in_stack = false;
    let mut unknown = Vec::new();
    for line in journal.lines() {
        if WARNINGS.iter().any(|(known, _)| line.contains(known)) {
            in_stack = line.contains(BUS_MSR);
        } else if in_stack && (line.starts_with(' ') || line == "Call Trace:") {
            in_stack = line != " </TASK>";
        } else {
            unknown.push(line);
        }
    }
    unknown
}

/// Everything that a guest meets between its installation and its end.
fn life(debian: &Debian, host: &str, kernel: &str, control: &Control) {
    let mut run = debian.boot(host);
    let mut shell = Shell::log_in(&mut run, "guest");
    assert_well(&mut run, &mut shell);
    println!("{host}: {}", shell.ask(&mut run, "systemd-analyze | head -n 1"));
    assert!(shell.ask(&mut run, "uname -r").contains(kernel));
    assert_eq!(shell.ask(&mut run, PACKAGE), "done");
    let up = "until ip -o -4 addr show dev enp0s2 | grep -q inet; do sleep 1; done; ping -q -c 1 100.64.1.2 >/dev/null && echo up";
    assert_eq!(shell.ask(&mut run, up), "up");
    assert_eq!(shell.ask(&mut run, "cat /root/.ssh/authorized_keys"), KEY);
    assert_eq!(shell.ask(&mut run, SSH), "through guest");
    assert_eq!(shell.ask(&mut run, FOLLOWED), control.followed);

    debian.stop(run);

    let mut run = debian.boot(host);
    let mut shell = Shell::log_in(&mut run, "guest");
    assert_well(&mut run, &mut shell);
    let journal = shell.ask(&mut run, "journalctl -b -1 -o cat -n 200");
    for expected in [control.obeyed, "Unmounted", "Reached target reboot.target", "Journal stopped"] {
        assert!(journal.contains(expected), "no `{expected}` in:\n{journal}");
    }
    assert!(!journal.contains("Failed"), "{journal}");
    // After this the machine is three hours ahead, and it is to stay the same machine.
    let before: u64 = shell.ask(&mut run, "date +%s").parse().unwrap();
    run.obey(&["suspend", "--for", "3h"]);
    let later =
        format!("until [ $(date +%s) -gt {} ]; do sleep 0.2; done; {}", before + 10_700, control.offset);
    let offset: i64 = shell.ask(&mut run, &later).parse().unwrap();
    println!("{host}: {offset} ns from the host's time after a suspend of 3 h");
    assert!(offset.abs() < 50_000_000, "{offset}");
    assert_well(&mut run, &mut shell);
    run.send(b"reboot\n");
    shell.log_in_again(&mut run, "guest");
    assert_eq!(shell.ask(&mut run, "journalctl -q --list-boots | wc -l"), "3");
    debian.power_off(run);
}

#[test]
#[ignore = "installs a Debian and boots it in the helper VM: make e2e"]
fn trixie_with_our_kernel() {
    let debian = Debian::install("trixie", &[build().to_str().unwrap()]);
    life(&debian, "7.8", "vmmlinux", &DRIVER);
}

#[rstest]
#[ignore = "installs a Debian and watches its clock for ten minutes: make long-test"]
fn long_the_image_keeps_exact_time(#[values("7.8", "8.0")] host: &str) {
    let debian = Debian::install("trixie", &[build().to_str().unwrap()]);
    let mut run = debian.boot(host);
    let mut shell = Shell::log_in(&mut run, "guest");
    assert_well(&mut run, &mut shell);
    assert_eq!(shell.ask(&mut run, FOLLOWED), DRIVER.followed);

    let said: Vec<String> = (0..6).map(|_| shell.ask(&mut run, HUNDRED_OFFSETS)).collect();

    let offsets = said.iter().flat_map(|said| said.lines()).map(|line| line.parse::<i64>().unwrap());
    let mut sizes: Vec<u64> = offsets.map(i64::unsigned_abs).collect();
    sizes.sort_unstable();
    let (median, p99) = (sizes[sizes.len() / 2], sizes[sizes.len() * 99 / 100]);
    println!("{host}: median {median} ns, 99th percentile {p99} ns, of {} offsets", sizes.len());
    assert!(median < 500_000, "{median}");
    assert!(p99 < 5_000_000, "{p99}");
    debian.power_off(run);
}

/// Every generation of vmd, and the release before.
#[test]
#[ignore = "installs Debians and boots them in the helper VM: make long-test"]
fn long_debian_with_our_kernel() {
    for (suite, host) in [("bookworm", "7.8"), ("trixie", "7.7"), ("trixie", "7.9"), ("trixie", "8.0")] {
        println!("{suite} on {host}");
        let debian = Debian::install(suite, &[build().to_str().unwrap()]);
        life(&debian, host, "vmmlinux", &DRIVER);
    }
}

/// A Debian with its own kernel and the daemon.
fn stock(suite: &str) -> Debian {
    let dir = tempfile::tempdir().unwrap();
    let packages = packaging::package_daemon(&program("vmmcid"), 0, dir.path()).unwrap();
    let mut debian = Debian::install(suite, &["--stock-kernel", "--deb", packages.deb.to_str().unwrap()]);
    debian.name = format!("stock-{suite}");
    debian
}

#[test]
#[ignore = "installs a Debian and boots it in the helper VM: make long-test"]
fn long_debian_with_its_own_kernel_and_vmmcid() {
    life(&stock("trixie"), "7.8", "cloud-amd64", &DAEMON);
}

/// Files that packages bring: what must be the same after a kernel has come and gone. Kept and compared in the guest, whose
/// console is slow.
const LIST: &str = "find /boot /usr /etc -xdev \\( -type f -o -type l \\) ! -name 'modules.*' ! -path '*/__pycache__/*' | sort >/var/tmp/before";
const COMPARE: &str = "find /boot /usr /etc -xdev \\( -type f -o -type l \\) ! -name 'modules.*' ! -path '*/__pycache__/*' | sort | diff /var/tmp/before -";

/// The kernel's package in a guest that has another kernel: it boots next, the old one still can, and when it is removed
/// nothing of it is left.
#[test]
#[ignore = "installs a Debian and boots it in the helper VM: make long-test; VMMLINUX_TEST_DEB names our kernel's package"]
fn long_a_kernel_package_comes_and_goes() {
    let package = PathBuf::from(env::var_os("VMMLINUX_TEST_DEB").expect("VMMLINUX_TEST_DEB names a package"));
    let debian = stock("trixie");
    let disk = debian.disk_of(&[&package]);
    let mut run = debian.boot_with("7.8", &["-d", disk.to_str().unwrap()]);
    let mut shell = Shell::log_in(&mut run, "guest");
    assert_well(&mut run, &mut shell);
    let stock = shell.ask(&mut run, "uname -r");
    assert_eq!(shell.ask(&mut run, LIST), "");
    shell.ask(&mut run, "tar -C /var/cache -xf /dev/vdb");
    let said = shell.ask(&mut run, "dpkg -i /var/cache/linux-image-*.deb 2>&1");
    assert!(said.contains("vmmlinux boots next"), "{said}");
    // Debian's kernel had an initial RAM disk made for it, and so has ours.
    assert!(said.contains("update-initramfs: Generating /boot/initrd.img-"), "{said}");
    run.send(b"reboot\n");
    let ours = back_again(&mut run, &mut shell);
    assert!(ours.contains("vmmlinux"), "{ours}");
    // The kernel drives the device now.
    assert_eq!(
        shell.ask(&mut run, "systemctl is-active vmmcid; ls /sys/bus/pci/drivers/vmmci | grep -c ^0"),
        "inactive\n1"
    );

    run.send(b"reboot\n");
    // After the first boot and the first reboot. The prompt itself goes to the console by two ways, and comes out mingled.
    run.expect_times("SYSLINUX 6.04 2", 3);
    run.send(b"old\r");
    assert_eq!(back_again(&mut run, &mut shell), stock);
    let said = shell.ask(
        &mut run,
        &format!("dpkg --purge linux-image-{ours} 2>&1; ls -d /lib/modules/{ours} /boot/*{ours}*"),
    );
    assert!(said.contains(&format!("{stock} boots next")), "{said}");
    assert_eq!(shell.ask(&mut run, COMPARE), "");
    run.send(b"reboot\n");
    shell.log_in_again(&mut run, "guest");
    assert_well(&mut run, &mut shell);
    assert_eq!(
        shell.ask(&mut run, "uname -r; mount -t vfat /dev/vda1 /mnt; ls -1 /mnt; umount /mnt"),
        format!("{stock}\ninitrd.img\nldlinux.c32\nldlinux.sys\nsyslinux.cfg\nvmlinuz")
    );
    debian.power_off(run);
}

/// A Debian that is not of our making, as an archive: Debian's kernel, these packages, and what these hooks do to it.
fn archive(dir: &Path, packages: &str, hooks: &[String]) -> PathBuf {
    let archive = dir.join("rootfs.tar");
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--variant=apt", "--format=tar", "--architectures=amd64"])
        .arg(format!("--include={packages},linux-image-cloud-amd64,initramfs-tools"))
        .args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"])
        .args(hooks)
        .arg("trixie")
        .arg(&archive);
    let made = mmdebstrap.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    archive
}

/// A hook that runs this in the new system.
fn inside(script: &str) -> String {
    format!("--customize-hook=chroot \"$1\" sh -c \"{}\"", script.replace('"', "\\\""))
}

/// A hook that takes a file there.
fn upload(from: &Path, to: &str) -> String {
    format!("--customize-hook=upload '{}' {to}", from.display())
}

/// Debian with OpenRC instead of systemd, Debian's kernel, and both of our tarballs for such guests: the daemon's, installed,
/// and the kernel's, unpacked.
fn openrc(dir: &Path, kernel: &Path) -> Debian {
    let packages = packaging::package_daemon(&program("vmmcid"), 0, dir).unwrap();
    let setup = "set -e; passwd -d root; cd /root; tar xf vmmcid.tar.xz; cd vmmcid-*; ./install.sh; \
        rc-update add vmmcid default; rc-update add vmmcid-poweroff shutdown; \
        mkdir /root/kernel; tar -C /root/kernel --strip-components=1 -xf /root/kernel.tar.xz; \
        sed -i 's,^[1-6]:.*getty.*,,' /etc/inittab; \
        echo 'T0:23:respawn:/sbin/getty -L ttyS0 115200 vt100' >> /etc/inittab";
    let archive = archive(
        dir,
        "openrc,sysvinit-core,login,passwd,util-linux,mount,udev,procps,kmod,e2fsprogs,iproute2,xz-utils",
        &[
            upload(&packages.tarball, "/root/vmmcid.tar.xz"),
            upload(kernel, "/root/kernel.tar.xz"),
            inside(setup),
        ],
    );
    Debian::make("openrc", &["--rootfs", &format!("tar:{}", archive.display()), "--stock-kernel"])
}

/// Stop and reboot through OpenRC for real, by the daemon on Debian's kernel and by the driver of ours, which comes from its
/// tarball and goes again.
#[test]
#[ignore = "installs a Debian and boots it in the helper VM: make long-test; VMMLINUX_TEST_TAR names our kernel's tarball"]
fn long_openrc_and_the_tarballs() {
    let kernel = PathBuf::from(env::var_os("VMMLINUX_TEST_TAR").expect("VMMLINUX_TEST_TAR names a tarball"));
    let dir = tempfile::tempdir().unwrap();
    let debian = openrc(dir.path(), &kernel);
    let mut run = debian.boot("7.8");
    let mut shell = Shell::log_in(&mut run, "guest");
    let stock = shell.ask(&mut run, "uname -r");
    assert!(stock.contains("cloud"), "{stock}");
    let services = shell.ask(&mut run, "rc-status -a 2>&1");
    assert!(services.lines().any(|line| line.contains("vmmcid ") && line.contains("started")), "{services}");
    assert!(!services.contains("crashed"), "{services}");
    assert!(!shell.ask(&mut run, "vmmcid test").contains("FAIL"));
    // The daemon goes without a trace, and comes again by what its installer says is to be typed.
    let goes = "cd /root/vmmcid-*; ./install.sh --uninstall >/dev/null 2>&1; pidof vmmcid; \
        find / -xdev -path /root -prune -o -name '*vmmcid*' -print";
    assert_eq!(shell.ask(&mut run, goes), "");
    let comes = "eval \"$(./install.sh | sed -n 's/^now: //p')\" >/dev/null 2>&1; \
        until vmmcid status >/dev/null 2>&1; do sleep 1; done; echo works";
    assert_eq!(shell.ask(&mut run, comes), "works");
    let console = debian.stop(run);
    assert!(console.contains("Will now restart"), "{console}");

    let mut run = debian.boot("7.8");
    let mut shell = Shell::log_in(&mut run, "guest");
    assert_eq!(shell.ask(&mut run, LIST), "");
    let said = shell.ask(&mut run, "/root/kernel/install.sh 2>&1");
    assert!(said.contains("vmmlinux boots next (syslinux"), "{said}");
    run.send(b"reboot\n");
    shell.log_in_again(&mut run, "guest");
    let ours = shell.ask(&mut run, "uname -r");
    assert!(ours.contains("vmmlinux"), "{ours}");
    assert_eq!(shell.ask(&mut run, "ls /sys/bus/pci/drivers/vmmci | grep -c ^0; pidof vmmcid"), "1");
    let console = debian.stop(run);
    assert!(console.contains("Will now restart"), "{console}");

    let mut run = debian.boot("7.8");
    let mut shell = Shell::log_in(&mut run, "guest");
    let said = shell.ask(&mut run, &format!("sh /lib/modules/{ours}/install.sh --uninstall 2>&1"));
    assert!(said.contains(&format!("{ours} is gone")), "{said}");
    assert_eq!(shell.ask(&mut run, COMPARE), "");
    run.send(b"reboot\n");
    shell.log_in_again(&mut run, "guest");
    assert_eq!(shell.ask(&mut run, "uname -r"), stock);
    // The daemon tells the host from the runlevel `shutdown`.
    let errors = debian.power_off(run);
    assert!(errors.contains("announced its shutdown"), "{errors}");
}

/// The init of a guest's first boot, by which it becomes one that boots by GRUB and knows nothing of us, as an installer
/// leaves it: the disk's boot sector is GRUB's, and kernels come from /boot on the root file system.
const INSTALL_GRUB: &str = r#"#!/bin/sh
PATH=/usr/sbin:/usr/bin
trap 'mount -o remount,ro /; poweroff -ff' EXIT
set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null || :
mount -t tmpfs tmpfs /run
# update-grub names the root by what udev knows of it.
/usr/lib/systemd/systemd-udevd --daemon
udevadm trigger --settle
rm -r /usr/lib/vmmlinux /var/lib/vmmlinux
wipefs --quiet --all /dev/vda1
cat >>/etc/default/grub <<'END'
GRUB_CMDLINE_LINUX_DEFAULT=quiet
GRUB_CMDLINE_LINUX="$(cat /root/parameters)"
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
END
grub-install /dev/vda
update-grub
udevadm control --exit
echo 'GRUB has been installed'
"#;

/// What such a Debian consists of, and which parameters its kernel gets.
const GRUB_PACKAGES: &str =
    "systemd-sysv,dbus,login,passwd,util-linux,mount,udev,procps,kmod,e2fsprogs,iproute2,xz-utils,grub-pc";
const GRUB_PARAMETERS: &str = "console=ttyS0,115200 reboot=t";

/// Debian with systemd and Debian's kernel, that boots by GRUB.
fn grub(name: &str, packages: &str, parameters: &str) -> Debian {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("install-grub");
    std::fs::write(&script, INSTALL_GRUB).unwrap();
    let setup = format!(
        "chmod +x /root/install-grub; echo '{parameters}' >/root/parameters; passwd -d root; \
         echo LANG=C.UTF-8 >/etc/locale.conf; ln -sf ../locale.conf /etc/default/locale"
    );
    let archive = archive(dir.path(), packages, &[upload(&script, "/root/install-grub"), inside(&setup)]);
    let debian = Debian::make(name, &["--rootfs", &format!("tar:{}", archive.display()), "--stock-kernel"]);
    let mut installer = machine(&debian.name, "30m");
    installer
        .arg("--no-reboot")
        .arg("--kernel")
        .arg(build().join("bzImage"))
        .args([
            "--append",
            "console=ttyS0,115200 quiet panic=-1 root=/dev/vda2 rw init=/root/install-grub",
            "-d",
        ])
        .arg(debian.path("disk.img"));
    let ended = Run::start(&debian.name, installer).end().assert_status(0);
    assert!(ended.console().contains("GRUB has been installed"), "{}", ended.everything());
    assert_root_is_clean(&debian.path("disk.img"));
    debian
}

/// The kernel's package in a guest made elsewhere, that boots by GRUB: ours is the highest version and boots, on the same console;
/// the guest's own is in the menu, and boots again when ours is purged. Then the tarball, beside a kernel of a higher version.
#[test]
#[ignore = "installs a Debian and boots it in the helper VM: make long-test; VMMLINUX_TEST_DEB and VMMLINUX_TEST_TAR name our kernel's packages"]
fn long_a_kernel_package_comes_and_goes_with_grub() {
    let package = PathBuf::from(env::var_os("VMMLINUX_TEST_DEB").expect("VMMLINUX_TEST_DEB names a package"));
    let tarball = PathBuf::from(env::var_os("VMMLINUX_TEST_TAR").expect("VMMLINUX_TEST_TAR names a tarball"));
    let debian = grub("grub", GRUB_PACKAGES, GRUB_PARAMETERS);
    let disk = debian.disk_of(&[&package, &tarball]);
    let mut run = debian.boot_with("7.8", &["-d", disk.to_str().unwrap()]);
    let mut shell = Shell::log_in(&mut run, "guest");
    assert_well(&mut run, &mut shell);
    let stock = shell.ask(&mut run, "uname -r");
    assert!(stock.contains("cloud"), "{stock}");
    assert_eq!(shell.ask(&mut run, LIST), "");
    shell.ask(&mut run, "cp /boot/grub/grub.cfg /var/tmp; tar -C /var/cache -xf /dev/vdb");
    let said = shell.ask(&mut run, "apt-get install --yes /var/cache/linux-image-*.deb 2>&1");
    for step in ["update-initramfs: Generating /boot/initrd.img-", "Found linux image: /boot/vmlinuz-7"] {
        assert!(said.contains(step), "no `{step}` in:\n{said}");
    }
    run.send(b"reboot\n");
    let ours = back_again(&mut run, &mut shell);
    assert!(ours.contains("vmmlinux"), "{ours}");
    let command_line = shell.ask(&mut run, "cat /proc/cmdline");
    assert!(
        command_line.contains(" root=UUID=") && command_line.contains(" console=ttyS0,115200"),
        "{command_line}"
    );
    assert_eq!(shell.ask(&mut run, "ls /sys/bus/pci/drivers/vmmci | grep -c ^0"), "1");

    // The menu's second entry is one of all kernels, each with a recovery mode: down (^N), enter, twice down, enter. What GRUB
    // draws is full of cursor movements, and no text to wait for.
    run.send(b"reboot\n");
    run.expect_times("GNU GRUB", 3);
    run.send(b"\x0e\r\x0e\x0e\r");
    assert_eq!(back_again(&mut run, &mut shell), stock);

    let said = shell.ask(&mut run, &format!("apt-get purge --yes linux-image-{ours} 2>&1"));
    assert!(said.contains("Generating grub configuration file"), "{said}");
    let left = format!("ls -d /lib/modules/{ours} /boot/*{ours}* 2>/dev/null; {COMPARE}");
    assert_eq!(shell.ask(&mut run, &left), "");
    assert_eq!(shell.ask(&mut run, "diff /var/tmp/grub.cfg /boot/grub/grub.cfg"), "");
    run.send(b"reboot\n");
    shell.log_in_again(&mut run, "guest");
    assert_eq!(shell.ask(&mut run, "uname -r"), stock);

    let higher = format!(
        "for file in vmlinuz initrd.img; do cp /boot/$file-{stock} /boot/$file-99; done; mkdir /var/cache/kernel; \
         tar -C /var/cache/kernel --strip-components=1 -xf /var/cache/linux-*.tar.xz"
    );
    assert_eq!(shell.ask(&mut run, &higher), "");
    let said = shell.ask(&mut run, "/var/cache/kernel/install.sh 2>&1");
    assert!(said.contains(&format!("{ours} boots next (GRUB")), "{said}");
    run.send(b"reboot\n");
    assert_eq!(back_again(&mut run, &mut shell), ours);
    let uninstall =
        format!("sh /lib/modules/{ours}/install.sh --uninstall 2>&1; rm /boot/*-99; update-grub 2>&1");
    let said = shell.ask(&mut run, &uninstall);
    assert!(said.contains(&format!("{ours} is gone")), "{said}");
    assert_eq!(shell.ask(&mut run, &left), "");
    assert_eq!(shell.ask(&mut run, "diff /var/tmp/grub.cfg /boot/grub/grub.cfg"), "");
    debian.power_off(run);
}

/// A disk as distributions publish them, compressed, of a Debian that boots by GRUB and has cloud-init. Adopted, its first
/// boot follows the seed: console and reset for all kernels, name, key, vmmcid. The second needs no seed.
#[test]
#[ignore = "installs a Debian and boots it in the helper VM: make long-test"]
fn long_a_cloud_image_is_adopted() {
    let published =
        grub("cloud", &format!("{GRUB_PACKAGES},cloud-init,openssh-server"), "console=ttyS0,115200");
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "disk.img", "published.qcow2"];
    let converted = Command::new("qemu-img").current_dir(published.dir.path()).args(convert).status();
    assert!(converted.unwrap().success());
    let key = published.path("key.pub");
    std::fs::write(&key, KEY).unwrap();
    let vmmcid = packaging::package_daemon(&program("vmmcid"), 0, published.dir.path()).unwrap().deb;
    let made = Command::new(vmmlinux())
        .args(["adopt", "--hostname", "web", "--package"])
        .arg(&vmmcid)
        .arg("--ssh-key")
        .arg(&key)
        .arg("--output")
        .args([published.path("web.qcow2"), published.path("published.qcow2")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let boot = |arguments: &[&Path]| {
        let mut command = machine("cloud", "60m");
        command.args(["-i", "--host", "7.8"]).arg(published.path("web.qcow2")).args(arguments);
        Run::start("cloud", command)
    };

    let run = boot(&["--cdrom".as_ref(), &published.path("web-seed.iso")]);
    run.expect_within(Duration::from_mins(30), "vmmlinux: first boot done");
    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);
    assert!(ended.errors.contains("went down as asked"), "{}", ended.everything());

    let mut run = boot(&[]);
    let mut shell = Shell::log_in(&mut run, "web");
    assert_eq!(shell.ask(&mut run, "systemctl is-active vmmcid"), "active");
    assert_eq!(shell.ask(&mut run, "cat ~debian/.ssh/authorized_keys"), KEY);
    let parameters = shell.ask(&mut run, "cat /proc/cmdline");
    assert!(parameters.ends_with("console=ttyS0,115200 reboot=t quiet"), "{parameters}");
    // By the reset that the parameter chooses: without it Debian's kernel hangs.
    run.send(b"reboot\n");
    shell.log_in_again(&mut run, "web");
    run.send(b"poweroff\n");
    run.end().assert_status(0);
}
