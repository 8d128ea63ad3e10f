//! Guests in the vmd machine: our kernel from its image, and Debian's stock kernels, on every generation of vmd.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use ::bench::Baseline;
use guest_tests::{
    disk::assert_root_is_clean,
    event::Event,
    run::{Guest, Run, build, machine, vmmlinux},
};
use rstest::rstest;
use support::{cache::Cache, progress::Quiet};

/// What the shell of an image's guest is told: it writes to the disk and reads that back from there, talks to the
/// host's end of vmd's local interface (`golden/pci/k612.net.txt`) once it has an address, and says what it found out in
/// words that are not in the command itself.
const CHECK: &str = "dd if=/dev/urandom of=/root/f bs=64k count=16 2>/dev/null; sum=$(md5sum < /root/f); sync; \
    echo 3 > /proc/sys/vm/drop_caches; [ \"$sum\" = \"$(md5sum < /root/f)\" ] && echo disk-${sum:+good}; \
    until ip -o -4 addr show dev eth0 | grep -q inet; do sleep 1; done; \
    ping -c 2 100.64.1.2 > /tmp/ping && echo network-${sum:+good}; \
    poweroff\n";

/// Makes an image of our kernel in `dir`.
fn image(dir: &Path) -> PathBuf {
    let image = dir.join("guest.img");
    let made = Command::new(vmmlinux())
        .arg("image")
        .arg(build())
        .args(["--size", "512M", "--hostname", "guest", "--output"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    image
}

/// Boots an image through firmware and boot loader.
fn boot(name: &str, host: &str, image: &Path) -> Run {
    let mut command = machine(name, "10m");
    command.args(["-i", "--host", host]).arg(image);
    let run = Run::start(name, command);
    run.expect("vmmlinux: ready host=guest");
    run
}

/// Boots our image, logs in, uses disk and network, powers off.
fn our_image_on(host: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut run = boot(&format!("image-{host}"), host, &image(dir.path()));
    run.expect("guest login: ");
    run.send(b"root\n");
    run.expect("# ");
    run.send(CHECK.as_bytes());
    run.expect("disk-good");
    run.expect("network-good");
    run.end().assert_status(0).errors
}

/// 7.7 has legacy virtio; 7.8 answers the feature words 2 and 3 with all ones (golden/pci/k612.v1cfg.net.txt); 8.0 has ACPI.
#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn our_image_runs(#[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    let errors = our_image_on(host);
    if host == "8.0" {
        assert!(errors.contains("powered"), "{errors}");
    }
}

/// Two processes that write to the disk; the shell says so when both have their files open.
const WRITERS: &str = "(trap '' HUP TERM; exec sleep 10000) > /root/held & \
    (while echo line; do sleep 1; done) > /root/written & \
    until ls -l /proc/[0-9]*/fd/1 > /tmp/open 2>/dev/null; \
    grep -q /root/held /tmp/open && grep -q /root/written /tmp/open; do sleep 1; done; \
    open=$(wc -l < /tmp/open); echo writers-${open:+good}\n";

/// A process that heeds no signal but KILL holds a file open for writing, and another one a file that it goes on to write.
#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_stop_leaves_the_root_clean_whatever_writes_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let mut run = boot("image-writers", "7.8", &image);
    run.expect("guest login: ");
    run.send(b"root\n");
    run.expect("# ");
    run.send(WRITERS.as_bytes());
    run.expect("writers-good");

    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);

    assert!(ended.errors.contains("went down as asked"), "{}", ended.errors);
    assert_root_is_clean(&image);
}

fn stock(baseline: Baseline) -> Guest {
    let kernel = baseline.kernel(&Cache::user().unwrap(), &Quiet).unwrap();
    Guest::with_kernel(kernel.image, &[])
}

#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_stock_kernel_boots(#[values(Baseline::V6_1, Baseline::V6_12, Baseline::V7_3)] baseline: Baseline) {
    let (guest, version) = (stock(baseline), baseline.as_str());
    let run = guest.run_with(&format!("stock-{version}"), "poweroff", baseline.crutch(), &[]);
    let ended = run.end().assert_status(0);
    assert!(ended.has(&Event::Ready), "{}", ended.everything());
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn stock_7_3_dies_at_the_chipsets_register_as_on_a_real_vmd() {
    let ended = stock(Baseline::V7_3).run("stock-dies", "poweroff", &[]).end().assert_status(3);
    assert!(ended.errors.contains("0xfed803"), "{}", ended.everything());
    assert!(!ended.has(&Event::Ready), "{}", ended.everything());
}

/// Boots our kernel so many times in one machine, which is reset each time.
fn boots(times: usize) {
    let guest = Guest::ours();
    let run = guest.run(&format!("boots-{times}"), "reset", &[]);
    for booted in (1..=times).step_by(10).chain([times]) {
        run.expect_events(&Event::Ready, booted);
    }
    run.obey(&["stop", "-f"]);
    run.end().assert_status(4);
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn twenty_boots_in_a_row() {
    boots(20);
}

#[test]
#[ignore = "takes hours: make long-test"]
fn long_thousand_boots_in_a_row() {
    boots(env::var("VMMLINUX_TEST_BOOTS").map_or(1000, |boots| boots.parse().unwrap()));
}
