//! A signal ends the making of an image. This test has a process of its own: the signal is sent to the whole process.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use image::{Error, Identity, Kernel, Options, RootFs, Tools, build};
use vmd_release::DiskFormat;

/// The parts of a bzImage that are looked at.
fn kernel() -> Vec<u8> {
    let mut bytes = vec![0; 5 * 512];
    bytes[0x1f1] = 4;
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    bytes[0x20e..0x210].copy_from_slice(&0x400_u16.to_le_bytes());
    bytes[0x211] = 1;
    bytes[0x600..0x606].copy_from_slice(b"7.3.4 ");
    bytes
}

#[test]
fn a_terminated_run_ends_its_programs_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let bzimage = place.path().join("bzImage");
    fs::write(&bzimage, kernel()).unwrap();
    // The program is called by this process, which it asks to stop; then it waits to be interrupted.
    let fake = tempfile::tempdir().unwrap();
    let program = fake.path().join("fakeroot");
    fs::write(&program, "#!/bin/sh\nkill -TERM $PPID\nexec sleep 600\n").unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let system = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let directories = [fake.path()].into_iter().chain(system.map(Path::new)).map(PathBuf::from);
    let options = Options {
        kernel: Some(Kernel::from_files(&bzimage, None, None).unwrap()),
        rootfs: RootFs::Minimal,
        size: "256M".parse().unwrap(),
        hostname: "vm1".parse().unwrap(),
        root_password: None,
        ssh_keys: None,
        net: None,
        append: None,
        format: DiskFormat::Raw,
        output: place.path().join("disk.img"),
        force: false,
        busybox: None,
        packages: Vec::new(),
        mirror: None,
    };

    let tools = Tools::in_directories(directories.collect());
    let result = build(&options, &Identity::reproducible(1, "test"), &tools, &|_| {});

    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    let left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["bzImage"]);
}
