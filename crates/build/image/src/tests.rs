//! Whole images, read back by the programs and libraries that others read them with.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use fatfs::{FileSystem, FsOptions};
use fscommon::StreamSlice;
use mbrman::MBR;
use rstest::rstest;
use tempfile::TempDir;
use vmconf::SshKeys;

use super::*;
use crate::kernel::tests::header_only;

/// A directory to make images in, with a kernel that has a header and the driver for vmmci, and nothing else.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("bzImage"), header_only("7.3.4")).unwrap();
        fs::write(directory.path().join("config"), "CONFIG_OPENBSD_VMMCI=y\n").unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn options(&self) -> Options {
        Options {
            kernel: Some(Kernel::from_build(self.directory.path()).unwrap()),
            rootfs: RootFs::Minimal,
            size: "256M".parse().unwrap(),
            hostname: "vm1".parse().unwrap(),
            root_password: None,
            ssh_keys: None,
            net: None,
            append: None,
            format: DiskFormat::Raw,
            output: self.path("disk.img"),
            force: false,
            busybox: None,
            packages: Vec::new(),
            mirror: None,
        }
    }

    /// Everything in the directory but the kernel and its configuration.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "bzImage" && name != "config")
            .collect();
        names.sort();
        names
    }
}

fn make(options: &Options) -> Result<Image> {
    build(options, &Identity::reproducible(1_700_000_000, "test"), &Tools::default(), &|_| {})
}

fn debugfs(image: &Path, start: u64, request: &str) -> String {
    let place = format!("{}?offset={start}", image.display());
    let output = Command::new("/usr/sbin/debugfs").args(["-R", request, &place]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn partitions(image: &Path) -> MBR {
    MBR::read_from(&mut File::open(image).unwrap(), 512).unwrap()
}

#[test]
fn a_minimal_image_reads_back() {
    let place = Place::new();
    let image = make(&Options { append: Some("debug".parse().unwrap()), ..place.options() }).unwrap();
    assert_eq!(place.files(), ["disk.img"]);
    assert_eq!(fs::metadata(&image.path).unwrap().len(), 256 << 20);
    assert!(image.allocated < 32 << 20, "{} bytes", image.allocated);

    // The partition table, and the boot code of syslinux's package.
    let mbr = partitions(&image.path);
    assert_eq!(mbr.header.bootstrap_code, disk::boot_code().unwrap());
    assert_eq!((mbr[1].boot, mbr[1].sys), (0x80, 0x0e));
    assert_eq!((mbr[2].boot, mbr[2].sys), (0x00, 0x83));
    assert!(mbr[3].is_unused() && mbr[4].is_unused());
    let signature = u32::from_le_bytes(mbr.header.disk_signature);

    // The boot partition: a boot sector that says where it lies, and the files.
    let start = u64::from(mbr[1].starting_lba) * 512;
    let length = u64::from(mbr[1].sectors) * 512;
    let bytes = fs::read(&image.path).unwrap();
    let sector = &bytes[usize::try_from(start).unwrap()..][..512];
    assert_eq!(&sector[3..11], b"SYSLINUX");
    assert_eq!(sector[28..32], mbr[1].starting_lba.to_le_bytes());
    let slice = StreamSlice::new(std::io::Cursor::new(bytes), start, start + length).unwrap();
    let volume = FileSystem::new(slice, FsOptions::new()).unwrap();
    let mut names: Vec<_> = volume.root_dir().iter().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["ldlinux.c32", "ldlinux.sys", "syslinux.cfg", "vmlinuz"]);
    let read = |name: &str| {
        let mut content = Vec::new();
        volume.root_dir().open_file(name).unwrap().read_to_end(&mut content).unwrap();
        content
    };
    assert_eq!(read("vmlinuz"), header_only("7.3.4"));
    let config = String::from_utf8(read("syslinux.cfg")).unwrap();
    let root = format!("root=PARTUUID={signature:08x}-02 ");
    assert!(config.contains(&root), "{config}");
    assert!(config.contains("console=ttyS0,115200 ") && config.trim_end().ends_with(" debug"), "{config}");
    assert!(config.contains(&image.command_line));

    // The root partition: sound, and what is in it belongs to root.
    let start = u64::from(mbr[2].starting_lba) * 512;
    let check = Command::new("/usr/sbin/e2fsck")
        .args(["-fn", &format!("{}?offset={start}", image.path.display())])
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    assert_eq!(debugfs(&image.path, start, "cat /etc/hostname"), "vm1\n");
    assert!(debugfs(&image.path, start, "cat /etc/shadow").starts_with("root::"));
    assert!(debugfs(&image.path, start, "stat /etc/shadow").contains("Mode:  0600"));
    assert!(debugfs(&image.path, start, "stat /tmp").contains("Mode:  01777"));
    let console = debugfs(&image.path, start, "stat /dev/console");
    assert!(console.contains("Type: character special") && console.contains("number: 05:01"), "{console}");
    let busybox = debugfs(&image.path, start, "stat /usr/bin/busybox");
    assert!(busybox.contains("Mode:  0755") && busybox.contains("User:     0   Group:     0"), "{busybox}");
    assert!(debugfs(&image.path, start, "stat /usr/bin/init").contains("Fast link dest: \"busybox\""));
    for program in ["sfdisk", "partx", "resize2fs"] {
        assert!(debugfs(&image.path, start, &format!("stat /usr/bin/{program}")).contains("Type: regular"));
    }
}

#[test]
fn the_same_inputs_make_the_same_image() {
    let place = Place::new();
    let password = Some("secret".to_owned());
    let first = Options { root_password: password.clone(), ..place.options() };
    let second = Options { output: place.path("other.img"), root_password: password, ..place.options() };
    make(&first).unwrap();
    // The clock moves on and the scratch directory has another name; neither may show.
    make(&second).unwrap();
    assert!(fs::read(&first.output).unwrap() == fs::read(&second.output).unwrap());
}

#[test]
fn settings_reach_the_guest() {
    let place = Place::new();
    let modules = place.path("modules/lib/modules/7.3.4");
    fs::create_dir_all(modules.join("kernel")).unwrap();
    fs::write(modules.join("modules.dep"), "kernel/x.ko:\n").unwrap();
    fs::write(modules.join("kernel/x.ko"), "module").unwrap();
    let image = make(&Options {
        root_password: Some("secret".into()),
        net: Some("10.0.0.5/24,10.0.0.1".parse().unwrap()),
        hostname: "vm2.example.com".parse().unwrap(),
        ..place.options()
    })
    .unwrap();
    let start = u64::from(partitions(&image.path)[2].starting_lba) * 512;
    let shadow = debugfs(&image.path, start, "cat /etc/shadow");
    let hash = shadow.split(':').nth(1).unwrap();
    assert!(hash.starts_with("$6$"), "{shadow}");
    sha_crypt::PasswordVerifier::verify_password(&sha_crypt::ShaCrypt::SHA512, b"secret", hash).unwrap();
    assert!(debugfs(&image.path, start, "cat /etc/vmmlinux/network").contains("ADDRESS=10.0.0.5/24\n"));
    assert!(debugfs(&image.path, start, "cat /etc/hosts").contains("127.0.1.1\tvm2.example.com vm2\n"));
    assert_eq!(debugfs(&image.path, start, "cat /usr/lib/modules/7.3.4/kernel/x.ko"), "module");
}

#[test]
fn an_existing_file_is_kept_unless_forced() {
    let place = Place::new();
    let options = place.options();
    fs::write(&options.output, "precious").unwrap();
    assert!(matches!(make(&options), Err(Error::OutputExists { .. })));
    assert_eq!(fs::read_to_string(&options.output).unwrap(), "precious");
    assert_eq!(place.files(), ["disk.img"]);
    make(&Options { force: true, ..options.clone() }).unwrap();
    assert_eq!(fs::metadata(&options.output).unwrap().len(), 256 << 20);
}

#[test]
fn a_file_that_appears_meanwhile_is_kept_too() {
    let place = Place::new();
    let options = place.options();
    let appear = |step: &str| {
        if step == "disk" {
            fs::write(&options.output, "precious").unwrap();
        }
    };
    let result = build(&options, &Identity::reproducible(1, "test"), &Tools::default(), &appear);
    assert!(matches!(result, Err(Error::OutputExists { .. })));
    assert_eq!(fs::read_to_string(&options.output).unwrap(), "precious");
    assert_eq!(place.files(), ["disk.img"]);
}

#[test]
fn failures_leave_nothing_behind() {
    let place = Place::new();
    let options = place.options();

    let small = Options { size: "80M".parse().unwrap(), ..options.clone() };
    let Err(Error::TooSmall { needed, .. }) = make(&small) else { panic!("fits") };
    assert!(needed > small.size);
    assert!(place.files().is_empty(), "{:?}", place.files());

    let dynamic = Options { busybox: Some("/bin/sh".into()), ..options.clone() };
    assert!(matches!(make(&dynamic), Err(Error::NotStatic { .. })));

    let key = place.path("key.pub");
    fs::write(&key, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGB4fYfCEpGuvzTPVrFgjvQ4qM6qyYTT2rTe9JQpTbIL me\n")
        .unwrap();
    let keys = Some(SshKeys::read(&key).unwrap());
    fs::remove_file(&key).unwrap();
    assert!(matches!(make(&Options { ssh_keys: keys, ..options.clone() }), Err(Error::NoSshServer)));

    let lost = Options { output: place.path("nowhere/disk.img"), ..options.clone() };
    assert!(matches!(make(&lost), Err(Error::Io { .. })));
    assert!(place.files().is_empty(), "{:?}", place.files());

    // The smallest that was named does.
    make(&Options { size: needed, ..options }).unwrap();
}

#[test]
fn a_program_that_fails_leaves_nothing_behind() {
    let place = Place::new();
    let fake = tempfile::tempdir().unwrap();
    for (name, said) in [("mke2fs", "mke2fs: No space left on device"), ("syslinux", "syslinux: no")] {
        let program = fake.path().join(name);
        fs::write(&program, format!("#!/bin/sh\necho '{said}' >&2\nexit 1\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode).unwrap();
        let directories = [fake.path(), Path::new("/usr/bin"), Path::new("/usr/sbin")];
        let tools = Tools::in_directories(directories.map(PathBuf::from).to_vec());
        let result = build(&place.options(), &Identity::reproducible(1, "test"), &tools, &|_| {});
        match (name, result) {
            ("mke2fs", Err(Error::NoSpace { .. })) | ("syslinux", Err(Error::ToolFailed { .. })) => {}
            (_, other) => panic!("{name}: {other:?}"),
        }
        assert!(place.files().is_empty(), "{name}: {:?}", place.files());
        fs::remove_file(&program).unwrap();
    }
}

#[test]
fn each_missing_program_is_named_before_anything_is_made() {
    let place = Place::new();
    let options = Options { format: DiskFormat::Qcow2, ..place.options() };
    for missing in
        ["debugfs", "fakeroot", "mattrib", "mke2fs", "syslinux", "tar", "ldd", "qemu-img", "sfdisk"]
    {
        let directory = tempfile::tempdir().unwrap();
        let present = Tools::default();
        for name in [
            "debugfs",
            "fakeroot",
            "mattrib",
            "mke2fs",
            "syslinux",
            "tar",
            "ldd",
            "sfdisk",
            "partx",
            "resize2fs",
            "qemu-img",
        ] {
            if name != missing {
                std::os::unix::fs::symlink(present.find(name).unwrap(), directory.path().join(name)).unwrap();
            }
        }
        let tools = Tools::in_directories(vec![directory.path().into()]);
        match build(&options, &Identity::reproducible(1, "test"), &tools, &|_| {}) {
            Err(Error::MissingTools { tools }) => {
                assert_eq!(tools.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [missing]);
            }
            other => panic!("{missing}: {other:?}"),
        }
        assert!(place.files().is_empty());
    }
}

/// Characters that mean something to a shell, tar, e2fsprogs or QEMU, and a byte that is not UTF-8, in the names of
/// directories and inputs.
#[test]
fn odd_names_of_directories_and_inputs_work() {
    let place = Place::new();
    let directory = place.directory.path().join(OsStr::from_bytes(b"a 'b'; touch x?y:z\\ \xff"));
    fs::create_dir(&directory).unwrap();
    let busybox = directory.join("busybox");
    fs::copy(Tools::default().find("busybox").unwrap(), &busybox).unwrap();
    let options = Options { busybox: Some(busybox), format: DiskFormat::Qcow2, ..place.options() };
    let scratch = directory.join("scratch");
    fs::create_dir(&scratch).unwrap();

    let identity = Identity::reproducible(1, "test");
    let made = assemble(&options, &identity, &Tools::default(), &|_| {}, &scratch).unwrap();

    assert_eq!(fs::read(&made.file).unwrap()[..4], *b"QFI\xfb");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
}

#[rstest]
#[case::not_utf8(b"disk-\xff.img", "not UTF-8")]
#[case::newline(b"disk\n.img", "control characters")]
#[case::escape(b"disk\x1b[2J.img", "control characters")]
fn an_output_that_vm_conf_cannot_name_is_refused(#[case] name: &[u8], #[case] why: &str) {
    let place = Place::new();
    let output = place.directory.path().join(OsStr::from_bytes(name));

    let refused = make(&Options { output, ..place.options() }).unwrap_err().to_string();

    assert!(refused.contains(why) && !refused.contains(char::is_control), "{refused:?}");
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[test]
fn what_a_killed_run_left_is_removed_and_what_another_one_has_is_kept() {
    let place = Place::new();
    fs::create_dir_all(place.path(".vmmlinux-image-killed/tree")).unwrap();
    let running = temp_dir(place.directory.path(), SCRATCH).unwrap();

    make(&place.options()).unwrap();

    let kept = running.path().file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(place.files(), [kept, "disk.img".to_owned()]);
}

#[test]
fn qcow2_has_the_same_contents() {
    let place = Place::new();
    let raw = make(&place.options()).unwrap();
    let qcow2 =
        make(&Options { format: DiskFormat::Qcow2, output: place.path("disk.qcow2"), ..place.options() })
            .unwrap();
    for (image, format) in [(&raw, DiskFormat::Raw), (&qcow2, DiskFormat::Qcow2)] {
        let verdict = disk_image::judge(&image.path, Some(format), true).unwrap();
        assert_eq!(verdict.findings, []);
    }
    assert_eq!(&fs::read(&qcow2.path).unwrap()[..4], b"QFI\xfb");
    let compared = Command::new("qemu-img").arg("compare").args([&raw.path, &qcow2.path]).output().unwrap();
    assert!(compared.status.success(), "{compared:?}");
    assert!(qcow2.instructions().contains("disk \"/var/vmm/disk.qcow2\" format qcow2\n"));
}

/// Runs itself once more for each of some sizes, in a mount namespace of its own where a tmpfs of that size is the
/// output's file system. Small ones run out early, larger ones late.
#[test]
fn a_full_file_system_is_told_and_left_empty() {
    const SMALL: &str = "VMMLINUX_TEST_SMALL_FILE_SYSTEM";
    if let Some(output) = std::env::var_os(SMALL) {
        let place = Place::new();
        let directory = Path::new(&output);
        let result = make(&Options { output: directory.join("disk.img"), ..place.options() });
        assert!(matches!(result, Err(Error::NoSpace { .. })), "{result:?}");
        assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
        return;
    }
    for mebibytes in [1, 5, 8, 11, 15, 18] {
        let directory = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=$1m tmpfs \"$2\" && shift 2 && exec \"$@\"";
        let test = ["--exact", "tests::a_full_file_system_is_told_and_left_empty"];
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", &mebibytes.to_string()])
            .arg(directory.path())
            .arg(std::env::current_exe().unwrap())
            .args(test)
            .env(SMALL, directory.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{mebibytes} MiB: {output:?}");
    }
}

#[test]
fn the_instructions_agree_with_the_image() {
    let instructions = |format: DiskFormat, net: &str| {
        let path = format!("out/7.3/minimal.{}", format.extension()).into();
        let (size, net) = ("4G".parse().unwrap(), net.parse().unwrap());
        let (release, command_line) = (String::new(), String::new());
        let remarks = Vec::new();
        let vm = "vm1".into();
        let answers_stop = true;
        Image { path, format, size, allocated: 0, release, command_line, remarks, vm, answers_stop, net }
            .instructions()
    };
    let raw = instructions(DiskFormat::Raw, "dhcp");
    assert!(raw.contains("\tdisk \"/var/vmm/minimal.img\" format raw\n\tlocal interface\n}\n"), "{raw}");
    let qcow2 = instructions(DiskFormat::Qcow2, "10.0.0.5/24,10.0.0.1");
    assert!(
        qcow2.contains(
            "\tdisk \"/var/vmm/minimal.qcow2\" format qcow2\n\tinterface { switch \"uplink\" }\n}\n"
        ),
        "{qcow2}"
    );
    let alone = instructions(DiskFormat::Raw, "none");
    assert!(!alone.contains("interface") && !alone.contains("pf.conf"), "{alone}");
}

/// Of the kernel's configuration, and of the root file system.
#[rstest]
#[case("", &[], false)]
#[case("# CONFIG_OPENBSD_VMMCI is not set\n", &[], false)]
#[case("CONFIG_OPENBSD_VMMCI=y\n", &[], true)]
#[case("", &[("usr/sbin/vmmcid", "program")], true)]
#[case("", &[("boot/config-7.3.4", "CONFIG_OPENBSD_VMMCI=m\n")], true)]
#[case("", &[("boot/config-6.12.118", "CONFIG_OPENBSD_VMMCI=m\n")], false)]
fn an_image_whose_guest_does_not_answer_a_stop_says_so(
    #[case] configuration: &str,
    #[case] files: &[(&str, &str)],
    #[case] answers: bool,
) {
    let place = Place::new();
    fs::write(place.path("config"), configuration).unwrap();
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).chain(SYSVINIT).collect();
    let rootfs = archive(&place, "a.tar", "--format=ustar", &files);

    let image = make(&Options { rootfs, ..place.options() }).unwrap();

    assert_eq!(!image.remarks.iter().any(|remark| remark.contains("`vmctl stop` kills")), answers);
    assert_eq!(image.instructions().contains("To stop the guest in order:\nvmctl stop vm1\n"), answers);
    assert_eq!(image.instructions().contains("this kills it:\nvmctl stop vm1\n"), !answers);
}

/// A root file system of a user's own with these files, packed by libarchive with the option `compress`.
fn archive(place: &Place, name: &str, compress: &str, files: &[(&str, &[u8])]) -> RootFs {
    let root = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let path = place.path(name);
    let mut packed = Command::new("bsdtar");
    packed.arg(compress).arg("-cf").arg(&path).arg("-C").arg(root.path()).arg(".");
    assert!(packed.status().unwrap().success());
    RootFs::Archive { path }
}

/// What a guest with sysvinit has at least, and a getty on the first terminal of a PC.
const SYSVINIT: [(&str, &[u8]); 6] = [
    ("etc/hostname", b"theirs"),
    ("etc/issue", b"hello"),
    ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/shadow", b"root:*:19000:0:99999:7:::\n"),
    ("etc/inittab", b"id:2:initdefault:\n1:2345:respawn:/sbin/getty 38400 tty1\n"),
    ("sbin/init", b"init"),
];

#[rstest]
#[case::plain("a.tar", "--format=ustar")]
#[case::gzip("a.tar.gz", "--gzip")]
#[case::bzip2("a.tar.bz2", "--bzip2")]
#[case::xz("a.tar.xz", "--xz")]
#[case::lzma("a.tar.lzma", "--lzma")]
#[case::zstd("a.tar.zst", "--zstd")]
#[case::lz4("a.tar.lz4", "--lz4")]
fn a_users_root_file_system_boots_by_its_own_kernel(#[case] name: &str, #[case] compress: &str) {
    let place = Place::new();
    let kernel = header_only("6.12.1");
    let boot = [("boot/vmlinuz-6.12.1", &kernel[..]), ("boot/initrd.img-6.12.1", b"initrd")];
    let rootfs = archive(&place, name, compress, &[&SYSVINIT[..], &boot].concat());

    let image = make(&Options { rootfs, kernel: None, ..place.options() }).unwrap();

    assert_eq!(image.release, "6.12.1");
    let start = u64::from(partitions(&image.path)[2].starting_lba) * 512;
    assert_eq!(debugfs(&image.path, start, "cat /etc/hostname"), "vm1\n");
    assert_eq!(debugfs(&image.path, start, "cat /etc/issue"), "hello");
    assert!(debugfs(&image.path, start, "cat /etc/fstab").contains("PARTUUID="));
    assert!(debugfs(&image.path, start, "stat /usr/lib/vmmlinux/install-kernel").contains("Mode:  0755"));
}

/// Where /lib is no link, modules are not in /usr.
#[test]
fn a_users_root_file_system_boots_by_our_kernel() {
    let place = Place::new();
    let modules = place.path("modules/lib/modules/7.3.4");
    fs::create_dir_all(&modules).unwrap();
    fs::write(modules.join("modules.dep"), "").unwrap();
    let files = [&SYSVINIT[..], &[("lib/modules/6.12.1/modules.dep", &b""[..])]].concat();
    let rootfs = archive(&place, "a.tar", "--format=ustar", &files);

    let image = make(&Options { rootfs, ..place.options() }).unwrap();

    assert_eq!(image.release, "7.3.4");
    let start = u64::from(partitions(&image.path)[2].starting_lba) * 512;
    assert!(debugfs(&image.path, start, "stat /lib/modules/7.3.4/modules.dep").contains("Type: regular"));
}

#[test]
fn what_a_users_root_file_system_lacks_is_added_or_told() {
    let place = Place::new();
    let more: [(&str, &[u8]); 2] = [("sbin/getty", b"getty"), ("etc/securetty", b"tty1")];
    let rootfs = archive(&place, "a.tar", "--format=ustar", &[&SYSVINIT[..], &more].concat());

    let image = make(&Options { rootfs, net: Some(Net::Dhcp), ..place.options() }).unwrap();

    let start = u64::from(partitions(&image.path)[2].starting_lba) * 512;
    let inittab = debugfs(&image.path, start, "cat /etc/inittab");
    assert!(inittab.ends_with("\nvmS0:2345:respawn:/sbin/getty -L 115200 ttyS0 vt100\n"), "{inittab}");
    assert_eq!(debugfs(&image.path, start, "cat /etc/securetty"), "tty1\nttyS0\n");
    let told = ["/etc/inittab", "/etc/securetty", "password is locked", "nothing in it reads --net"];
    assert_eq!(image.remarks.len(), told.len(), "{:?}", image.remarks);
    for (remark, told) in image.remarks.iter().zip(told) {
        assert!(remark.contains(told), "{remark}");
    }
}

#[test]
fn a_password_and_a_network_reach_a_users_root_file_system() {
    let place = Place::new();
    let more: [(&str, &[u8]); 3] = [
        ("sbin/getty", b"getty"),
        ("etc/runlevels/boot/networking", b""),
        ("usr/lib/udev/rules.d/80-net-setup-link.rules", b""),
    ];
    let rootfs = archive(&place, "a.tar", "--format=ustar", &[&SYSVINIT[..], &more].concat());

    let image = make(&Options {
        rootfs,
        root_password: Some("secret".to_owned()),
        net: Some("10.0.0.5/24,10.0.0.1".parse().unwrap()),
        append: Some("quiet".parse().unwrap()),
        ..place.options()
    })
    .unwrap();

    let start = u64::from(partitions(&image.path)[2].starting_lba) * 512;
    let shadow = debugfs(&image.path, start, "cat /etc/shadow");
    assert!(shadow.starts_with("root:$6$") && shadow.ends_with(":19000:0:99999:7:::\n"), "{shadow}");
    assert!(debugfs(&image.path, start, "cat /etc/network/interfaces").contains("\taddress 10.0.0.5\n"));
    assert_eq!(debugfs(&image.path, start, "cat /etc/resolv.conf"), "nameserver 10.0.0.1\n");
    assert!(image.command_line.ends_with(" net.ifnames=0 quiet"), "{}", image.command_line);
}

/// Refuses to make the image, and leaves nothing.
fn refused(place: &Place, options: Options) -> String {
    let error = make(&Options { output: place.path("x.img"), ..options }).unwrap_err();
    assert!(!place.path("x.img").exists());
    error.to_string()
}

#[test]
fn what_a_root_file_system_cannot_hold_is_told() {
    let place = Place::new();
    let no_kernel = Options { kernel: None, ..place.options() };
    assert!(refused(&place, no_kernel.clone()).contains("a kernel of its own"));
    assert!(
        refused(&place, Options { packages: vec!["x.deb".into()], ..place.options() }).contains("packages")
    );
    let rootfs = archive(&place, "bare.tar", "--format=ustar", &SYSVINIT);
    assert!(refused(&place, Options { rootfs, ..no_kernel }).contains("0 kernels"));
}

#[rstest]
#[case::no_init(&[("etc/passwd", &b""[..])], "no init")]
#[case::no_root(&[("root/etc/passwd", &b""[..])], "no etc at its top")]
#[case::containers(&[("manifest.json", &b"[]"[..])], "an image of containers")]
fn an_archive_without_a_guest_in_it_is_refused(#[case] files: &[(&str, &[u8])], #[case] why: &str) {
    let place = Place::new();
    let rootfs = archive(&place, "a.tar", "--format=ustar", files);

    let said = refused(&place, Options { rootfs, ..place.options() });

    assert!(said.contains(why), "{said}");
}

#[test]
fn an_init_of_the_users_choice_is_enough() {
    let place = Place::new();
    let files: [(&str, &[u8]); 2] = [("etc/passwd", b"root::0:0::/:/bin/sh\n"), ("opt/init", b"")];
    let rootfs = archive(&place, "a.tar", "--format=ustar", &files);
    let with = |append: &str| Options {
        rootfs: rootfs.clone(),
        append: Some(append.parse().unwrap()),
        ..place.options()
    };

    assert!(refused(&place, with("init=/opt/other")).contains("no init"));
    assert!(make(&with("init=/opt/init")).is_ok());
}

#[rstest]
#[case::text(b"no archive")]
#[case::disk(b"QFI\xfb\0\0\0\x03")]
#[case::cut_off(&[0x1f, 0x8b, 0, 0])]
#[case::cut_off_xz(b"\xfd7zXZ\0\0\x04")]
fn what_is_not_an_archive_is_refused(#[case] content: &[u8]) {
    let place = Place::new();
    fs::write(place.path("broken.tar"), content).unwrap();
    let rootfs = RootFs::Archive { path: place.path("broken.tar") };

    let said = refused(&place, Options { rootfs, ..place.options() });

    assert!(said.contains("broken.tar") || said.contains("bsdcat"), "{said}");
}

/// A disk of 1 MiB with a boot sector, as qemu-img's arguments pack it.
fn cloud_image(place: &Place, boots: bool, arguments: &str) -> PathBuf {
    let mut disk = vec![b'x'; 1 << 20];
    disk[..510].fill(if boots { 0x90 } else { 0 });
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(place.path("raw.img"), disk).unwrap();
    let mut qemu_img = Command::new("qemu-img");
    qemu_img.args(arguments.split(' ')).current_dir(place.directory.path());
    assert!(qemu_img.status().unwrap().success());
    place.path("cloud.img")
}

fn adoption(place: &Place, image: PathBuf) -> Adoption {
    Adoption {
        image,
        output: place.path("vm1.qcow2"),
        format: DiskFormat::Qcow2,
        size: None,
        hostname: "vm1.example.com".parse().unwrap(),
        ssh_keys: None,
        user_data: None,
        packages: Vec::new(),
        force: false,
    }
}

fn adopt_it(adoption: &Adoption) -> Result<Adopted> {
    adopt(adoption, &Identity::reproducible(1_700_000_000, "test"), &Tools::default(), &|_| {})
}

/// A file of a seed.
fn on_seed(seed: &Path, name: &str) -> String {
    let output = Command::new("bsdtar").arg("-xOf").args([seed.as_os_str(), name.as_ref()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[rstest]
#[case::compressed("convert -c -O qcow2 raw.img cloud.img")]
#[case::version_2("convert -O qcow2 -o compat=0.10 raw.img cloud.img")]
#[case::raw("convert -O raw raw.img cloud.img")]
fn a_cloud_image_becomes_a_disk_that_vmd_takes(#[case] arguments: &str) {
    let place = Place::new();
    let image = cloud_image(&place, true, arguments);

    let adopted = adopt_it(&adoption(&place, image)).unwrap();

    let verdict = disk_image::judge(&adopted.disk, Some(DiskFormat::Qcow2), true).unwrap();
    assert_eq!(verdict.findings, []);
    let disks = ["compare", "raw.img", "vm1.qcow2"];
    let compared = Command::new("qemu-img").args(disks).current_dir(place.directory.path()).output().unwrap();
    assert!(compared.status.success(), "{compared:?}");
    assert_eq!(place.files(), ["cloud.img", "raw.img", "vm1-seed.iso", "vm1.qcow2"]);
    let instructions = adopted.instructions();
    assert!(instructions.contains("cdrom \"/var/vmm/vm1-seed.iso\""), "{instructions}");
}

#[rstest]
#[case::with_its_own_kernel(&[], "this kills it:\nvmctl stop vm1.example.com\n")]
#[case::with_the_daemon(&["vmmcid.deb"], "in order:\nvmctl stop vm1.example.com\n")]
fn what_a_stop_does_to_an_adopted_guest_is_told(#[case] packages: &[&str], #[case] told: &str) {
    let place = Place::new();
    let image = cloud_image(&place, true, "convert -O qcow2 raw.img cloud.img");
    fs::write(place.path("vmmcid.deb"), "!<arch>\npackage").unwrap();
    let packages = packages.iter().map(|name| place.path(name)).collect();

    let adopted = adopt_it(&Adoption { packages, ..adoption(&place, image) }).unwrap();

    assert!(adopted.instructions().contains(told), "{}", adopted.instructions());
}

#[test]
fn a_disk_may_be_raw_and_larger() {
    let place = Place::new();
    let image = cloud_image(&place, true, "convert -c -O qcow2 raw.img cloud.img");
    let (format, size) = (DiskFormat::Raw, Some("4M".parse().unwrap()));

    let adopted =
        adopt_it(&Adoption { format, size, output: place.path("vm1.img"), ..adoption(&place, image) })
            .unwrap();

    assert_eq!(fs::metadata(&adopted.disk).unwrap().len(), 4 << 20);
}

#[test]
fn a_seed_has_what_the_user_chose() {
    let place = Place::new();
    let image = cloud_image(&place, true, "convert -O qcow2 raw.img cloud.img");
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGB4fYfCEpGuvzTPVrFgjvQ4qM6qyYTT2rTe9JQpTbIL me \"x\"";
    fs::write(place.path("key.pub"), format!("# mine\n{key}\n")).unwrap();
    fs::write(place.path("user"), "#cloud-config\npackages: [vim]\n").unwrap();
    fs::write(place.path("a;b.deb"), "!<arch>\npackage").unwrap();
    fs::write(place.path("c.tar.xz"), b"\xfd7zXZ\0archive").unwrap();

    let adopted = adopt_it(&Adoption {
        ssh_keys: Some(SshKeys::read(&place.path("key.pub")).unwrap()),
        user_data: Some(place.path("user")),
        packages: vec![place.path("a;b.deb"), place.path("c.tar.xz")],
        ..adoption(&place, image)
    })
    .unwrap();

    let metadata: serde_json::Value = serde_json::from_str(&on_seed(&adopted.seed, "meta-data")).unwrap();
    assert_eq!(metadata["local-hostname"], "vm1.example.com");
    assert_eq!(metadata["public-keys"], serde_json::json!([key]));
    assert!(metadata["instance-id"].as_str().unwrap().starts_with("vmmlinux-"));
    assert_eq!(on_seed(&adopted.seed, "user-data"), "#cloud-config\npackages: [vim]\n");
    assert!(on_seed(&adopted.seed, "vendor-data").starts_with("#!/bin/sh\n"));
    assert_eq!(on_seed(&adopted.seed, "packages/package-0.deb"), "!<arch>\npackage");
    assert!(on_seed(&adopted.seed, "packages/package-1.tar").ends_with("archive"));
    // The label that cloud-init looks for.
    let iso = fs::read(&adopted.seed).unwrap();
    assert_eq!(&iso[0x8000 + 40..][..7], b"CIDATA ");
}

#[rstest]
#[case::without_boot_code(false, "convert -c -O qcow2 raw.img cloud.img", "does not boot")]
#[case::base(true, "create -f qcow2 -F raw -b raw.img cloud.img", "has a base image")]
#[case::data_file(
    true,
    "convert -O qcow2 -o data_file=data raw.img cloud.img",
    "has a base image or a data file"
)]
#[case::other_program(true, "convert -O vmdk raw.img cloud.img", "neither raw nor qcow2")]
fn an_image_that_cannot_be_adopted_is_refused(
    #[case] boots: bool,
    #[case] arguments: &str,
    #[case] why: &str,
) {
    let place = Place::new();
    let image = cloud_image(&place, boots, arguments);
    let before = place.files();

    let error = adopt_it(&adoption(&place, image)).unwrap_err();

    assert!(matches!(&error, Error::Disk { .. }) && error.to_string().contains(why), "{error}");
    assert_eq!(place.files(), before);
}

#[test]
fn neither_a_disk_nor_a_seed_is_replaced() {
    let place = Place::new();
    let image = cloud_image(&place, true, "convert -O qcow2 raw.img cloud.img");
    fs::write(place.path("vm1-seed.iso"), "precious").unwrap();

    let refused = adopt_it(&adoption(&place, image)).unwrap_err();

    assert!(matches!(refused, Error::OutputExists { .. }), "{refused}");
    assert_eq!(fs::read_to_string(place.path("vm1-seed.iso")).unwrap(), "precious");
}

#[test]
fn user_data_that_cloud_init_would_ignore_is_refused() {
    let place = Place::new();
    let image = cloud_image(&place, true, "convert -O qcow2 raw.img cloud.img");
    fs::write(place.path("user"), "packages: [vim]\n").unwrap();

    let refused = adopt_it(&Adoption { user_data: Some(place.path("user")), ..adoption(&place, image) });

    assert!(refused.unwrap_err().to_string().contains("cloud-init ignores it"));
}
