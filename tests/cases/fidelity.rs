//! The machine against recordings from a real vmd 7.8: the same kernel, the same probes, field by field.

use std::{path::Path, process::Command};

use debian_archive::Debian;
use guest_tests::{
    fidelity, probes,
    run::{Run, vmmlinux},
};
use support::{cache::Cache, progress::Quiet};

/// The command line of the recordings; without the blacklist, stock 7.3 dies on vmd on an AMD host.
const COMMAND_LINE: &str =
    "earlyprintk=serial,ttyS0,115200 ignore_loglevel initcall_blacklist=print_s5_reset_status_mmio";

#[test]
#[ignore = "boots Debian's kernel in the helper VM: make e2e"]
fn a_guest_finds_what_it_finds_on_a_real_vmd() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::user().unwrap();
    // Of this suite were the kernels in the recordings.
    let kernel = Debian::new(&cache, "trixie-backports", &Quiet).kernel("linux-image-amd64").unwrap();
    let busybox = Debian::new(&cache, "trixie", &Quiet).package("busybox-static").unwrap();
    let msr = dir.path().join("msr.ko");
    decompress(&kernel.modules.join("kernel/arch/x86/kernel/msr.ko.xz"), &msr);
    let initrd = dir.path().join("initrd");
    probes::initramfs(&initrd, &busybox.join("usr/bin/busybox"), &[msr]).unwrap();

    let image = dir.path().join("probes.img");
    let made = Command::new(vmmlinux())
        .args(["image", "--size", "256M", "--append", COMMAND_LINE, "--kernel"])
        .arg(&kernel.vmlinuz)
        .arg("--initrd")
        .arg(&initrd)
        .arg("--output")
        .arg(&image)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let mut run = Command::new(vmmlinux());
    run.args(["run", "--accel", "nested", "--name", "fidelity", "--no-reboot", "--timeout", "15m"])
        .arg(&image);
    let ended = Run::start("fidelity", run).end();
    let sections =
        probes::sections(ended.console()).unwrap_or_else(|problem| panic!("{problem}\n{}", ended.errors));
    let report = fidelity::report(&sections);
    println!("{report}");
    assert!(report.is_faithful(), "{report}");
}

fn decompress(from: &Path, to: &Path) {
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(from).output().unwrap();
    assert!(output.status.success(), "{}: {}", from.display(), String::from_utf8_lossy(&output.stderr));
    std::fs::write(to, output.stdout).unwrap();
}
