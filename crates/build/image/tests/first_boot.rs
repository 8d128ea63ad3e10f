//! `guests/cloud/first-boot` on root trees that are directories, with programs that write down how they are called.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use rstest::rstest;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../guests/cloud/first-boot");

/// Programs of this machine that the script uses. No other one is found: this machine may have a boot loader.
const TOOLS: [&str; 9] = ["cat", "grep", "gzip", "mkdir", "mktemp", "rm", "sed", "sh", "tar"];

/// The guest's root, a directory of its programs, and the seed.
struct Guest(tempfile::TempDir);

impl Guest {
    /// A guest with these programs, which succeed, or fail where their name ends in `!`.
    fn new(programs: &[&str]) -> Self {
        let guest = Self(tempfile::tempdir().unwrap());
        for directory in ["bin", "root/etc", "seed/packages"] {
            fs::create_dir_all(guest.path(directory)).unwrap();
        }
        for tool in TOOLS {
            let found =
                ["/usr/bin", "/bin"].iter().map(|dir| Path::new(dir).join(tool)).find(|path| path.exists());
            symlink(found.unwrap(), guest.path("bin").join(tool)).unwrap();
        }
        for program in programs {
            let (name, status) = program.strip_suffix('!').map_or((*program, 0), |name| (name, 1));
            let path = guest.path("bin").join(name);
            let calls = guest.path("calls");
            let script = format!("#!/bin/sh\necho {name} \"$@\" >>'{}'\nexit {status}\n", calls.display());
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Runs the script with the guest's programs and returns what it says.
    fn boot(&self) -> String {
        let output = Command::new(self.path("bin/sh"))
            .arg(SCRIPT)
            .args([self.path("root"), self.path("seed")])
            .env("PATH", self.path("bin"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn debians_grub_gets_a_serial_console() {
    let guest = Guest::new(&["update-grub"]);

    guest.boot();

    let settings = guest.read("root/etc/default/grub.d/90-vmmlinux.cfg");
    let line = "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX console=ttyS0,115200 reboot=t\"\n";
    assert!(settings.starts_with(line), "{settings}");
    assert_eq!(guest.read("calls"), "update-grub\n");
}

#[test]
fn the_kernel_that_runs_learns_to_reset() {
    let guest = Guest::new(&["update-grub"]);
    fs::create_dir_all(guest.path("root/sys/kernel/reboot")).unwrap();
    fs::write(guest.path("root/sys/kernel/reboot/type"), "acpi\n").unwrap();

    guest.boot();

    assert_eq!(guest.read("root/sys/kernel/reboot/type"), "triple\n");
}

#[test]
fn entries_of_grubby_get_a_serial_console() {
    let guest = Guest::new(&["grubby", "update-grub"]);

    guest.boot();

    assert_eq!(guest.read("calls"), "grubby --update-kernel=ALL --args=console=ttyS0,115200 reboot=t\n");
}

#[rstest]
#[case::quoted("default_kernel_opts=\"quiet rootfstype=ext4\"")]
#[case::bare("default_kernel_opts=quiet rootfstype=ext4")]
fn alpines_extlinux_gets_a_serial_console_once(#[case] line: &str) {
    let guest = Guest::new(&["update-extlinux"]);
    fs::write(
        guest.path("root/etc/update-extlinux.conf"),
        format!("{line}\nserial_port=\nserial_baud=9600\n"),
    )
    .unwrap();

    guest.boot();
    guest.boot();

    assert_eq!(
        guest.read("root/etc/update-extlinux.conf"),
        "default_kernel_opts=\"quiet rootfstype=ext4 console=ttyS0,115200 reboot=t\"\nserial_port=0\nserial_baud=115200\n"
    );
    assert_eq!(guest.read("calls"), "update-extlinux\nupdate-extlinux\n");
}

#[test]
fn packages_are_installed_and_failures_told() {
    let guest = Guest::new(&["update-grub", "dpkg!", "apt-get!"]);
    fs::write(guest.path("seed/packages/package-0.deb"), "").unwrap();
    let tree = guest.path("tree/linux-7.3.4");
    fs::create_dir_all(&tree).unwrap();
    let install = format!("echo installed >>'{}'\n", guest.path("calls").display());
    fs::write(tree.join("install.sh"), install).unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-czf").arg(guest.path("seed/packages/package-1.tar")).arg("-C").arg(guest.path("tree")).arg(".");
    assert!(tar.status().unwrap().success());

    let said = guest.boot();

    assert!(said.contains("package-0.deb could not be installed"), "{said}");
    assert!(said.contains("installed package-1.tar"), "{said}");
    assert!(guest.read("calls").contains("dpkg -i") && guest.read("calls").contains("\ninstalled\n"));
}

#[test]
fn an_unknown_boot_loader_is_told() {
    let guest = Guest::new(&[]);

    let said = guest.boot();

    assert!(said.contains("no boot loader that is known here"), "{said}");
}
