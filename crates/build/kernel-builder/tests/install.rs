//! `guests/tarball/install.sh` on guests that are directories with made-up programs.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use walkdir::WalkDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../guests/tarball/install.sh");

/// Runs the guest's programs with the guest's root in `ROOT`.
const CHROOT: &str = r#"#!/bin/sh
export ROOT="$1"
shift
if [ "$1" = env ]; then
	shift
	while case $1 in *=*) : ;; *) false ;; esac; do export "$1"; shift; done
fi
program=$1
shift
for place in "" /usr/sbin/ /sbin/; do
	[ -f "$ROOT$place$program" ] && exec "$ROOT$place$program" "$@"
done
echo "no $program" >&2
exit 127
"#;

/// As Alpine's installer leaves it.
const ALPINE: &str = "\
SERIAL 0 115200
DEFAULT menu.c32
PROMPT 0
MENU TITLE Alpine/Linux Boot Menu
TIMEOUT 30
LABEL virt
  MENU DEFAULT
  MENU LABEL Linux virt
  LINUX vmlinuz-virt
  INITRD initramfs-virt
  APPEND root=UUID=0a1b modules=sd-mod,usb-storage,ext4 quiet rootfstype=ext4 console=ttyS0,115200
MENU SEPARATOR
";

const DEBIAN: &str = "\
default l0
timeout 50
label l0
\tmenu label Debian
\tlinux /boot/vmlinuz-6.12
\tinitrd /boot/initrd.img-6.12
\tappend root=/dev/vda1 ro

label l0r
\tlinux /boot/vmlinuz-6.12
\tappend root=/dev/vda1 single
";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, text) in [
            ("tarball/boot/vmlinuz-7.3", "kernel"),
            ("tarball/boot/config-7.3", "CONFIG_X=y"),
            ("tarball/boot/System.map-7.3", "map"),
            ("tarball/lib/modules/7.3/kernel/a.ko", "module"),
            ("guest/etc/hostname", "guest"),
            ("guest/boot/vmlinuz-old", "old kernel"),
            ("guest/lib/firmware/x", ""),
            ("guest/log", ""),
        ] {
            place.file(name, text);
        }
        place.program("tarball/install.sh", &fs::read_to_string(SCRIPT).unwrap());
        place.program("bin/chroot", CHROOT);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn program(&self, name: &str, text: &str) {
        self.file(name, text);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A program of the guest's that notes how it was called.
    fn noting(&self, name: &str, more: &str) {
        let text = format!("#!/bin/sh\necho {name} \"$@\" >> \"$ROOT/log\"\n{more}\n");
        self.program(&format!("guest/{name}"), &text);
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn log(&self) -> String {
        let log = self.read("guest/log");
        self.file("guest/log", "");
        log
    }

    fn run_from(&self, script: &Path, arguments: &[&str]) -> Output {
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        let mut command = Command::new(script);
        command.args(["--root", self.path("guest").to_str().unwrap()]).args(arguments).env("PATH", path);
        command.output().unwrap()
    }

    fn install(&self) -> String {
        let output = self.run_from(&self.path("tarball/install.sh"), &[]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// By the copy that stays in the guest.
    fn uninstall(&self) {
        let output = self.run_from(&self.path("guest/lib/modules/7.3/install.sh"), &["--uninstall"]);
        assert!(output.status.success(), "{output:?}");
    }

    /// Every file of the guest with what is in it, and every directory.
    fn guest(&self) -> BTreeMap<PathBuf, String> {
        WalkDir::new(self.path("guest"))
            .into_iter()
            .map(|entry| entry.unwrap().into_path())
            .map(|path| {
                let text = if path.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
                (path, text)
            })
            .collect()
    }
}

#[test]
fn alpine_boots_it_with_an_initial_ram_disk_and_is_as_before_without_it() {
    let place = Place::new();
    place.file("guest/boot/extlinux.conf", ALPINE);
    place.file("guest/etc/update-extlinux.conf", "timeout=3\ndefault=virt\n");
    place.noting("sbin/mkinitfs", "echo initrd > \"$ROOT$2\"");
    let before = place.guest();
    assert!(place.install().contains("7.3 boots next (/boot/extlinux.conf)"));
    assert_eq!(place.log(), "sbin/mkinitfs -o /boot/initramfs-7.3 7.3\n");
    assert_eq!(place.read("guest/lib/modules/7.3/kernel/a.ko"), "module");
    assert_eq!(place.read("guest/boot/vmlinuz-7.3"), "kernel");
    let configuration = place.read("guest/boot/extlinux.conf");
    let entry = "LABEL vmmlinux-7.3\n  MENU LABEL Linux 7.3\n  MENU DEFAULT\n  LINUX vmlinuz-7.3\n  INITRD initramfs-7.3\n  \
                 APPEND root=UUID=0a1b modules=sd-mod,usb-storage,ext4 quiet rootfstype=ext4 console=ttyS0,115200\n";
    assert!(configuration.contains(entry), "{configuration}");
    let defaults = configuration.lines().filter(|line| line.trim() == "MENU DEFAULT").count();
    assert_eq!(defaults, 1, "{configuration}");
    assert!(configuration.contains("  LINUX vmlinuz-virt\n"), "{configuration}");
    assert!(place.read("guest/etc/update-extlinux.conf").contains("\ndefault=7.3 "));
    // Twice is as good as once.
    place.install();
    assert_eq!(place.read("guest/boot/extlinux.conf"), configuration);
    place.uninstall();
    place.log();
    assert_eq!(place.guest(), before);
}

#[test]
fn alpine_without_a_way_to_find_its_root_is_left_alone() {
    let place = Place::new();
    place.file("guest/boot/extlinux.conf", ALPINE);
    let before = place.guest();
    let output = place.run_from(&place.path("tarball/install.sh"), &[]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("root=UUID=0a1b") && said.contains("mkinitfs"), "{said}");
    assert_eq!(place.guest(), before);
    // A device is all that it takes.
    place.file("guest/boot/extlinux.conf", &ALPINE.replace("UUID=0a1b", "/dev/vda3"));
    place.install();
    let configuration = place.read("guest/boot/extlinux.conf");
    let entry = "  LINUX vmlinuz-7.3\n  APPEND root=/dev/vda3 quiet rootfstype=ext4 console=ttyS0,115200\n";
    assert!(configuration.contains(entry), "{configuration}");
}

#[test]
fn extlinux_gets_an_entry_like_the_default_one() {
    let place = Place::new();
    place.file("guest/boot/extlinux/extlinux.conf", DEBIAN);
    place.noting("usr/sbin/update-initramfs", "echo initrd > \"$ROOT/boot/initrd.img-$3\"");
    let before = place.guest();
    place.install();
    assert_eq!(place.log(), "usr/sbin/update-initramfs -c -k 7.3\n");
    let configuration = place.read("guest/boot/extlinux/extlinux.conf");
    let entry = "  LINUX /boot/vmlinuz-7.3\n  INITRD /boot/initrd.img-7.3\n  APPEND root=/dev/vda1 ro console=ttyS0,115200\n";
    assert!(configuration.contains(entry), "{configuration}");
    assert!(configuration.contains("\nDEFAULT vmmlinux-7.3 "), "{configuration}");
    place.uninstall();
    place.log();
    assert_eq!(place.guest(), before);
}

#[test]
fn grub_is_told_by_its_hook_or_by_its_program() {
    let place = Place::new();
    place.file("guest/boot/grub/grub.cfg", "");
    place.noting("usr/sbin/update-grub", "ls \"$ROOT/boot\" | grep -c vmlinuz >> \"$ROOT/log\"");
    let before = place.guest();
    // This GRUB reads no directory.
    assert!(place.install().contains("up to GRUB_DEFAULT"));
    assert_eq!(place.log(), "usr/sbin/update-grub\n2\n");
    place.uninstall();
    assert_eq!(place.log(), "usr/sbin/update-grub\n1\n");
    assert_eq!(place.guest(), before);

    place.noting("etc/kernel/postinst.d/initramfs-tools", "echo initrd > \"$ROOT/boot/initrd.img-$1\"");
    place.noting("etc/kernel/postinst.d/zz-update-grub", "echo \"$DEB_MAINT_PARAMS\" >> \"$ROOT/log\"");
    place.noting("etc/kernel/postrm.d/zz-update-grub", "echo \"$DEB_MAINT_PARAMS\" >> \"$ROOT/log\"");
    place.noting("usr/sbin/update-initramfs", "exit 1");
    let before = place.guest();
    place.install();
    let hooks = "etc/kernel/postinst.d/initramfs-tools 7.3 /boot/vmlinuz-7.3\n\
                 etc/kernel/postinst.d/zz-update-grub 7.3 /boot/vmlinuz-7.3\nconfigure\n";
    assert_eq!(place.log(), hooks);
    place.uninstall();
    assert_eq!(place.log(), "etc/kernel/postrm.d/zz-update-grub 7.3 /boot/vmlinuz-7.3\nremove\n");
    assert_eq!(place.guest(), before);
}

#[test]
fn grub_boots_it_even_if_another_kernel_has_a_higher_version() {
    let choice = "guest/etc/default/grub.d/vmmlinux.cfg";
    let place = Place::new();
    place.file("guest/boot/grub/grub.cfg", "");
    place.file("guest/boot/vmlinuz-9.9", "higher");
    place.file("guest/etc/default/grub.d/init-select.cfg", "");
    place.file("guest/usr/sbin/grub-mkconfig", "for x in ${sysconfdir}/default/grub.d/*.cfg ; do");
    let choice_is_there =
        "[ -e \"$ROOT/etc/default/grub.d/vmmlinux.cfg\" ] && echo chosen >> \"$ROOT/log\"; :";
    place.noting("usr/sbin/update-grub", choice_is_there);
    let before = place.guest();
    assert!(place.install().contains("7.3 boots next (GRUB, by /etc/default/grub.d/vmmlinux.cfg)"));
    assert_eq!(place.log(), "usr/sbin/update-grub\nchosen\n");

    let script = place.read(choice).replace("/boot/", &format!("{}/", place.path("guest/boot").display()));
    let chosen = |settings: &str| {
        let line = format!("set -eu; {settings}\n{script}\necho \"$GRUB_DEFAULT\"");
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    let usual = "GRUB_DEFAULT=0 GRUB_DEVICE=/dev/vda1 GRUB_DEVICE_UUID=0a-1b GRUB_DISABLE_UUID= GRUB_DISABLE_SUBMENU=";
    assert_eq!(chosen(usual), "gnulinux-advanced-0a-1b>gnulinux-7.3-advanced-0a-1b");
    assert_eq!(chosen(&format!("{usual}y")), "gnulinux-7.3-advanced-0a-1b");
    let device = "gnulinux-advanced-/dev/vda1>gnulinux-7.3-advanced-/dev/vda1";
    assert_eq!(chosen(&format!("{usual}; GRUB_DEVICE_UUID=")), device);
    assert_eq!(chosen(&format!("{usual}; GRUB_DISABLE_UUID=true")), device);
    // The kernel was removed by hand.
    fs::rename(place.path("guest/boot/vmlinuz-7.3"), place.path("vmlinuz")).unwrap();
    assert_eq!(chosen(usual), "0");
    fs::rename(place.path("vmlinuz"), place.path("guest/boot/vmlinuz-7.3")).unwrap();

    place.uninstall();
    assert_eq!(place.log(), "usr/sbin/update-grub\n");
    assert_eq!(place.guest(), before);

    // Nothing is left behind where GRUB cannot be told.
    place.noting("usr/sbin/update-grub", "exit 1");
    let before = place.guest();
    let output = place.run_from(&place.path("tarball/install.sh"), &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("GRUB could not be told"), "{output:?}");
    place.log();
    assert_eq!(place.guest(), before);

    // The choice of a release which came later stays.
    place.noting("usr/sbin/update-grub", "");
    place.install();
    place.file(choice, &place.read(choice).replace("7.3", "7.4"));
    place.uninstall();
    assert!(place.read(choice).contains("gnulinux-7.4-"));
}

#[test]
fn an_image_of_ours_takes_it_by_its_own_script() {
    let place = Place::new();
    place.noting("usr/lib/vmmlinux/install-kernel", "");
    let before = place.guest();
    place.install();
    assert_eq!(place.log(), "usr/lib/vmmlinux/install-kernel 7.3 /boot/vmlinuz-7.3\n");
    place.uninstall();
    assert_eq!(place.log(), "usr/lib/vmmlinux/install-kernel --remove 7.3\n");
    assert_eq!(place.guest(), before);
}

#[test]
fn without_a_boot_loader_it_says_what_is_left_to_do() {
    let place = Place::new();
    // As where /lib is a link.
    fs::create_dir_all(place.path("guest/usr")).unwrap();
    fs::rename(place.path("guest/lib"), place.path("guest/usr/lib")).unwrap();
    std::os::unix::fs::symlink("usr/lib", place.path("guest/lib")).unwrap();
    let before = place.guest();
    assert!(place.install().contains("no boot loader was found"));
    assert_eq!(place.read("guest/usr/lib/modules/7.3/kernel/a.ko"), "module");
    place.uninstall();
    assert_eq!(place.guest(), before);
    let output = place.run_from(&place.path("tarball/install.sh"), &["--uninstall"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("7.3 is not installed"), "{output:?}");
}
