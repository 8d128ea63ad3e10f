//! `guests/tarball/install.sh` on guests that are directories with made-up programs.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use rstest::rstest;
use walkdir::WalkDir;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../guests/tarball");

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

/// What GRUB's program does of interest: the kernels in /boot are in its configuration.
const GRUB_MKCONFIG: &str = "ls \"$ROOT/boot\" | grep vmlinuz >\"$ROOT/boot/grub/grub.cfg\"";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, text) in [
            ("tarball/boot/vmlinuz-7.3", "kernel"),
            ("tarball/boot/config-7.3", "CONFIG_EXT4_FS=y\nCONFIG_XFS_FS=m\nCONFIG_SWAP=y\n"),
            ("tarball/boot/System.map-7.3", "map"),
            ("tarball/lib/modules/7.3/kernel/a.ko", "module"),
            ("guest/etc/hostname", "guest"),
            ("guest/boot/vmlinuz-old", "old kernel"),
            ("guest/lib/firmware/x", ""),
            ("guest/log", ""),
        ] {
            place.file(name, text);
        }
        for script in ["install.sh", "mountable.sh"] {
            let text = fs::read_to_string(Path::new(SCRIPTS).join(script)).unwrap();
            place.program(&format!("tarball/{script}"), &text);
        }
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
        self.command(script, arguments).output().unwrap()
    }

    fn command(&self, script: &Path, arguments: &[&str]) -> Command {
        let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
        let mut command = Command::new(script);
        command.args(["--root", self.path("guest").to_str().unwrap()]).args(arguments).env("PATH", path);
        command
    }

    fn install(&self) -> String {
        let output = self.run_from(&self.path("tarball/install.sh"), &[]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Has it refuse, with nothing changed, and gives what it said.
    fn refused(&self) -> String {
        let before = self.guest();
        let output = self.run_from(&self.path("tarball/install.sh"), &[]);
        assert!(!output.status.success(), "{output:?}");
        assert_eq!(self.guest(), before);
        String::from_utf8(output.stderr).unwrap()
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

/// A root on what the kernel has as modules, or not at all, without a program that makes an initial RAM disk.
#[rstest]
#[case::lvm(
    "root=/dev/vg0/lv_root",
    "",
    "root=/dev/vg0/lv_root in /boot/extlinux.conf: /dev/vg0/lv_root is an LVM volume: this kernel has no BLK_DEV_DM"
)]
#[case::luks("root=/dev/mapper/root cryptroot=UUID=1", "", "an encrypted root: this kernel has no DM_CRYPT")]
#[case::array("root=/dev/md0", "", "/dev/md0 is an array needs an initial RAM disk")]
#[case::zfs("root=ZFS=tank/root", "", "no kernel of this project has it")]
#[case::root_type(
    "root=/dev/vda3 rootfstype=xfs",
    "",
    "XFS_FS is a module of this kernel, which only an initial RAM disk can load"
)]
#[case::fstab_root(
    "root=/dev/vda3",
    "/dev/vda3 / btrfs subvol=@ 0 0",
    "/ in /etc/fstab: btrfs: this kernel has no BTRFS_FS"
)]
#[case::fstab_other(
    "root=/dev/vda3",
    "/dev/vdb /data jfs defaults 0 2",
    "/data in /etc/fstab: jfs: this kernel has no JFS_FS"
)]
#[case::fstab_swap(
    "root=/dev/vda3",
    "/dev/vg0/swap none swap sw 0 0",
    "none in /etc/fstab: /dev/vg0/swap is an LVM volume"
)]
fn what_the_kernel_cannot_mount_is_refused(#[case] append: &str, #[case] fstab: &str, #[case] why: &str) {
    let place = Place::new();
    place.file(
        "guest/boot/extlinux.conf",
        &ALPINE.replace("root=UUID=0a1b", append).replace(" rootfstype=ext4", ""),
    );
    place.file("guest/etc/fstab", &format!("# comment\n{fstab}\n"));
    let said = place.refused();
    for part in
        ["nothing was changed", why, "looked at: /etc/fstab", "the ways out:", "vmmlinux build --package"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[rstest]
#[case::nofail("/dev/vdb /data jfs defaults,nofail 0 2")]
#[case::noauto("/dev/sr0 /cdrom udf noauto 0 0")]
#[case::bind("/home /srv none bind 0 0")]
#[case::module_after_the_root("/dev/vdb /data xfs defaults 0 2")]
#[case::memory("tmpfs /tmp tmpfs size=64m 0 0")]
fn what_can_wait_is_no_reason_to_refuse(#[case] fstab: &str) {
    let place = Place::new();
    place.file("guest/boot/extlinux.conf", &ALPINE.replace("UUID=0a1b", "/dev/vda3"));
    place.file("guest/etc/fstab", &format!("/dev/vda3 / ext4 rw 0 1\n{fstab}\n"));
    let said = place.install();
    assert!(said.contains("looked at: /etc/fstab, /boot/extlinux.conf"), "{said}");
}

#[test]
fn modules_of_the_root_count_if_an_initial_ram_disk_can_be_made() {
    let place = Place::new();
    place.file("guest/boot/extlinux.conf", &ALPINE.replace("UUID=0a1b", "/dev/vg0/lv_root"));
    place.file("guest/etc/fstab", "/dev/vg0/lv_root / xfs rw 0 1\n");
    let config = "CONFIG_EXT4_FS=y\nCONFIG_XFS_FS=m\nCONFIG_BLK_DEV_DM=m\n";
    place.file("tarball/boot/config-7.3", config);
    assert!(place.refused().contains("mkinitfs (Alpine)"));
    place.noting("sbin/mkinitfs", "echo initrd > \"$ROOT$2\"");
    assert!(place.install().contains("7.3 boots next (/boot/extlinux.conf)"));
}

#[test]
fn the_running_root_is_looked_at_down_to_its_disks() {
    let place = Place::new();
    place.file("guest/boot/extlinux.conf", &ALPINE.replace("UUID=0a1b", "/dev/vda3"));
    place.noting("sbin/mkinitfs", "echo initrd > \"$ROOT$2\"");
    let mount = format!("25 1 253:0 / {} rw - ext4 /dev/dm-0 rw\n", place.path("guest").display());
    place.file("guest/proc/self/mountinfo", &mount);
    place.file("guest/sys/class/block/dm-0/dm/uuid", "LVM-x\n");
    place.file("guest/sys/class/block/dm-0/slaves/dm-1/x", "");
    place.file("guest/sys/class/block/dm-1/dm/uuid", "CRYPT-LUKS2-x\n");
    place.file("guest/sys/class/block/dm-1/slaves/md0/x", "");
    place.file("guest/sys/class/block/md0/md/level", "raid1\n");
    // The stack of a running guest is read by its device; below --root the name is all there is.
    let said = place.refused();
    assert!(
        said.contains(
            "the running root: /dev/dm-0 is a volume of the device mapper: this kernel has no BLK_DEV_DM"
        ),
        "{said}"
    );
    assert!(said.contains("the running root (ext4 on /dev/dm-0)"), "{said}");
}

#[test]
fn a_guest_can_insist() {
    let place = Place::new();
    place.file("guest/etc/fstab", "/dev/vdb /data jfs defaults 0 2\n");
    assert!(place.refused().contains("VMMLINUX_UNCHECKED=1"));
    let output = place
        .command(&place.path("tarball/install.sh"), &[])
        .env("VMMLINUX_UNCHECKED", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

const ENTRY: &str = "\
title AlmaLinux (6.12.0-1.el10.x86_64)
version 6.12.0-1.el10.x86_64
linux /vmlinuz-old
initrd /initramfs-old.img $tuned_initrd
options root=/dev/vda3 ro crashkernel=1G $tuned_params
grub_users $grub_users
grub_class almalinux
";

/// As Red Hat's family leaves it: GRUB whose configuration reads entries.
fn almalinux(place: &Place) {
    place.file("guest/boot/grub2/grub.cfg", "set default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n");
    place.file("guest/boot/grub2/grubenv", "saved_entry=0123-old\n");
    place.file("guest/boot/loader/entries/0123-old.conf", ENTRY);
    place.file("guest/boot/loader/entries/0123-rescue.conf", &ENTRY.replace("old", "rescue"));
    place.noting("usr/sbin/dracut", "echo initrd > \"$ROOT$4\"");
    let set = "case $2 in set) echo \"$3\" ;; *) : ;; esac >\"$ROOT$1\"";
    place.noting("usr/sbin/grub2-editenv", set);
}

#[test]
fn entries_of_the_boot_loader_specification_get_one_like_the_default() {
    let place = Place::new();
    almalinux(&place);
    let before = place.guest();
    let said = place.install();
    assert!(said.contains("looked at: /boot/loader/entries/0123-old.conf\n"), "{said}");
    assert!(said.contains("7.3 boots next (GRUB, by /boot/loader/entries/vmmlinux-7.3.conf)"), "{said}");
    let log = place.log();
    assert!(log.contains("usr/sbin/dracut --force --kver 7.3 /boot/initramfs-7.3.img\n"), "{log}");
    let entry = place.read("guest/boot/loader/entries/vmmlinux-7.3.conf");
    let wanted = "title Linux 7.3\nversion 7.3\nlinux /vmlinuz-7.3\ninitrd /initramfs-7.3.img\n\
                  options root=/dev/vda3 ro crashkernel=1G $tuned_params console=ttyS0,115200\n\
                  grub_users $grub_users\ngrub_class almalinux\n";
    assert!(entry.ends_with(wanted), "{entry}");
    // Twice is as good as once.
    place.install();
    assert_eq!(place.read("guest/boot/loader/entries/vmmlinux-7.3.conf"), entry);
    place.uninstall();
    place.log();
    assert_eq!(place.guest(), before);
}

#[test]
fn entries_that_cannot_be_imitated_are_refused() {
    let place = Place::new();
    almalinux(&place);
    place.file(
        "guest/boot/loader/entries/0123-old.conf",
        &ENTRY.replace("/vmlinuz-old", "/@/boot/vmlinuz-old"),
    );
    assert!(place.refused().contains("boots /@/boot/vmlinuz-old, which is neither in / nor in /boot"));
    fs::remove_file(place.path("guest/boot/loader/entries/0123-old.conf")).unwrap();
    assert!(place.refused().contains("there is no entry to make one like"));
}

#[test]
fn a_choice_that_grub_does_not_read_is_not_promised() {
    let place = Place::new();
    almalinux(&place);
    fs::remove_file(place.path("guest/usr/sbin/grub2-editenv")).unwrap();
    let said = place.install();
    assert!(
        !said.contains("boots next") && said.contains("grubby --set-default /boot/vmlinuz-7.3"),
        "{said}"
    );
}

#[test]
fn a_grub_that_makes_no_entry_is_an_error() {
    let place = Place::new();
    place.file("guest/boot/grub/grub.cfg", "");
    place.noting("usr/sbin/update-grub", "");
    let before = place.guest();
    let output = place.run_from(&place.path("tarball/install.sh"), &[]);
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("has no entry for /boot/vmlinuz-7.3"),
        "{output:?}"
    );
    place.log();
    assert_eq!(place.guest(), before);
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
    let update = format!("{GRUB_MKCONFIG}; grep -c . \"$ROOT/boot/grub/grub.cfg\" >>\"$ROOT/log\"");
    place.noting("usr/sbin/update-grub", &update);
    place.file("guest/boot/grub/grub.cfg", "vmlinuz-old\n");
    let before = place.guest();
    // This GRUB reads no directory.
    assert!(place.install().contains("up to GRUB_DEFAULT"));
    assert_eq!(place.log(), "usr/sbin/update-grub\n2\n");
    place.uninstall();
    assert_eq!(place.log(), "usr/sbin/update-grub\n1\n");
    assert_eq!(place.guest(), before);

    place.noting("etc/kernel/postinst.d/initramfs-tools", "echo initrd > \"$ROOT/boot/initrd.img-$1\"");
    let hook = format!("echo \"$DEB_MAINT_PARAMS\" >>\"$ROOT/log\"; {GRUB_MKCONFIG}");
    place.noting("etc/kernel/postinst.d/zz-update-grub", &hook);
    place.noting("etc/kernel/postrm.d/zz-update-grub", &hook);
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
    place.file("guest/boot/grub/grub.cfg", "vmlinuz-9.9\nvmlinuz-old\n");
    place.file("guest/boot/vmlinuz-9.9", "higher");
    place.file("guest/etc/default/grub.d/init-select.cfg", "");
    place.file("guest/usr/sbin/grub-mkconfig", "for x in ${sysconfdir}/default/grub.d/*.cfg ; do");
    let choice_is_there =
        "[ -e \"$ROOT/etc/default/grub.d/vmmlinux.cfg\" ] && echo chosen >> \"$ROOT/log\"; :";
    place.noting("usr/sbin/update-grub", &format!("{GRUB_MKCONFIG}; {choice_is_there}"));
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
    place.noting("usr/sbin/update-grub", GRUB_MKCONFIG);
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
