//! Boots images in QEMU without KVM and talks to the guest on its serial console.
//!
//! `VMMLINUX_TEST_KERNEL` names the bzImage to boot; `VMMLINUX_TEST_INITRD` and `VMMLINUX_TEST_MODULES` what a
//! distribution's kernel needs besides. `make boot-test` sets them.

#![expect(clippy::print_stdout, reason = "--nocapture shows it")]

use std::{
    env,
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use image::{Identity, Image, Kernel, Options, RootFs, Tools};
use vmd_release::DiskFormat;

/// For each answer of the guest: emulation without KVM, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_mins(10);

fn kernel() -> Kernel {
    let file = |name| env::var_os(name).map(PathBuf::from);
    let bzimage = file("VMMLINUX_TEST_KERNEL").expect("VMMLINUX_TEST_KERNEL names a bzImage");
    let (initrd, modules) = (file("VMMLINUX_TEST_INITRD"), file("VMMLINUX_TEST_MODULES"));
    Kernel::from_files(&bzimage, initrd.as_deref(), modules.as_deref()).unwrap()
}

fn image(rootfs: RootFs, output: &Path) -> Image {
    let options = Options {
        kernel: Some(kernel()),
        rootfs,
        size: "2G".parse().unwrap(),
        hostname: "guest".parse().unwrap(),
        root_password: Some("secret".into()),
        ssh_keys: None,
        net: None,
        append: None,
        format: DiskFormat::Raw,
        output: output.to_owned(),
        force: false,
        busybox: None,
        packages: Vec::new(),
        mirror: None,
    };
    let started = Instant::now();
    let image =
        image::build(&options, &Identity::from_env("guest").unwrap(), &Tools::default(), &|_| {}).unwrap();
    println!("made in {:.1} s, {} KiB allocated", started.elapsed().as_secs_f32(), image.allocated / 1024);
    image
}

/// A running VM and what it has printed so far.
struct Guest {
    qemu: Child,
    keyboard: ChildStdin,
    output: Receiver<Vec<u8>>,
    screen: String,
    started: Instant,
}

impl Guest {
    fn boot(disk: &Path) -> Self {
        let drive = format!("file={},if=virtio,format=raw", disk.display());
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-machine", "pc,acpi=off", "-m", "512", "-nographic", "-no-reboot"])
            .args(["-drive", &drive, "-nic", "user,model=virtio-net-pci"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-system-x86_64 (Debian: qemu-system-x86) runs");
        let (keyboard, mut console) = (qemu.stdin.take().unwrap(), qemu.stdout.take().unwrap());
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = console.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { qemu, keyboard, output, screen: String::new(), started: Instant::now() }
    }

    /// Waits until `text` appears; returns what was printed up to there and forgets it.
    fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.screen.find(text) {
                let rest = self.screen.split_off(at + text.len());
                return std::mem::replace(&mut self.screen, rest);
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.screen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => panic!("no {text:?} in time:\n{}", self.screen),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the VM ended without {text:?}:\n{}", self.screen)
                }
            }
        }
    }

    fn type_line(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\n").as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits for the ready line, then for the prompt, and logs in.
    fn log_in(&mut self) {
        let printed = self.expect("vmmlinux: ready host=guest ");
        assert!(!printed.contains("vmmlinux: cannot"), "{printed}");
        println!("ready after {:.1} s: {}", self.started.elapsed().as_secs_f32(), self.expect("\n").trim());
        self.expect("login: ");
        self.type_line("root");
        self.expect("assword: ");
        self.type_line("secret");
        self.expect("# ");
    }

    /// What a command prints.
    fn ask(&mut self, command: &str) -> String {
        // The quotes keep the echo of the line from looking like its result.
        self.type_line(&format!("echo '<''<'; {command}; echo '>''>'"));
        self.expect("<<");
        let answer = self.expect(">>");
        self.expect("# ");
        answer.trim_end_matches(">>").trim().to_owned()
    }

    fn root_mebibytes(&mut self) -> u64 {
        self.ask("df -m / | awk 'NR == 2 { print $2 }'").parse().unwrap()
    }

    /// `-no-reboot` ends QEMU when the guest resets.
    fn reboots(mut self) {
        self.type_line("reboot");
        let deadline = Instant::now() + PATIENCE;
        while let Ok(bytes) = self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.screen.push_str(&String::from_utf8_lossy(&bytes));
        }
        assert!(self.qemu.try_wait().is_ok() && Instant::now() < deadline, "no reset:\n{}", self.screen);
    }

    /// Without ACPI nothing switches the machine off: the kernel stops it.
    fn powers_off(mut self) {
        self.type_line("poweroff");
        self.expect("System halted");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn boots_and_grows(rootfs: RootFs) {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk.img");
    image(rootfs, &disk);

    let mut guest = Guest::boot(&disk);
    guest.log_in();
    assert_eq!(guest.ask("uname -r"), kernel().release());
    assert_eq!(guest.ask("hostname"), "guest");
    assert_eq!(guest.ask("id -u"), "0");
    let address = "until ip addr | grep -q 'inet 10.0.2.15/24'; do sleep 1; done; ping -c 1 10.0.2.2 >/dev/null && echo up";
    assert_eq!(guest.ask(address), "up");
    let before = guest.root_mebibytes();
    assert!((1700..2048).contains(&before), "{before} MiB");
    // The kernel replaced by another that does the same: the second boot is by what install-kernel wrote.
    let replace = "mount -t vfat /dev/vda1 /mnt && cp /mnt/vmlinuz /root && echo >> /root/vmlinuz && \
                   { [ ! -f /mnt/initrd.img ] || cp /mnt/initrd.img /root/initrd.img-again; } && umount /mnt && \
                   install-kernel again /root/vmlinuz";
    let said = guest.ask(replace);
    assert!(said.ends_with("\"old\" at the boot prompt starts the one before"), "{said}");
    assert_eq!(guest.ask("touch /var/lib/mark; sync; echo done"), "done");
    guest.reboots();

    File::options().write(true).open(&disk).unwrap().set_len(3 << 30).unwrap();
    let mut guest = Guest::boot(&disk);
    guest.log_in();
    let after = guest.root_mebibytes();
    assert!((before + 960..before + 1024).contains(&after), "{before} MiB, then {after} MiB");
    assert_eq!(guest.ask("ls /var/lib/mark"), "/var/lib/mark");
    let entries = "mount -t vfat /dev/vda1 /mnt && grep -c ^LABEL /mnt/syslinux.cfg; umount /mnt";
    assert_eq!(guest.ask(entries), "2");
    guest.powers_off();

    let start = mbrman::MBR::read_from(&mut File::open(&disk).unwrap(), 512).unwrap()[2].starting_lba;
    let place = format!("{}?offset={}", disk.display(), u64::from(start) * 512);
    let check = Command::new("/usr/sbin/e2fsck").args(["-fn", &place]).output().unwrap();
    assert!(check.status.success(), "{check:?}");
}

#[test]
#[ignore = "boots a VM without KVM: about a minute, and VMMLINUX_TEST_KERNEL; make boot-test"]
fn a_minimal_guest_boots_and_grows() {
    boots_and_grows(RootFs::Minimal);
}

#[test]
#[ignore = "installs a Debian and boots it without KVM: some minutes, and VMMLINUX_TEST_KERNEL; make boot-test"]
fn a_debian_guest_boots_and_grows() {
    boots_and_grows(RootFs::Debian { suite: "trixie".into() });
}
