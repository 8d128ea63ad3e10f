//! How near chrony keeps a guest's clock to the host's, with the kernel's driver and with vmmcid.

use std::{path::PathBuf, time::Duration};

use debian_archive::Debian;
use guest_tests::{
    chrony,
    daemon::{DaemonGuest, busybox},
    run::{build, number, program},
};
use support::{cache::Cache, progress::Quiet};

/// What the manuals, vmmci(4) and vmmcid(8), tell to write into chrony.conf.
const PHC: &str = "refclock PHC /dev/ptp0 poll 3";
const SOCK: &str = "refclock SOCK /run/chrony.vmmci.sock refid VMMC poll 4";

/// Has chrony keep the guest's clock by `refclock`, and compares that with the host's once a second for ten minutes.
fn ten_minutes(name: &str, kernel: PathBuf, host: &str, refclock: &str, parameters: &str) {
    let cache = Cache::user().unwrap();
    let place = tempfile::tempdir().unwrap();
    let conf = place.path().join("chrony.conf");
    std::fs::write(&conf, format!("{refclock}\nmakestep 0.1 3\ndriftfile /var/lib/chrony/drift\n")).unwrap();
    let mut files = chrony::files(&cache);
    files.push(("etc/chrony.conf".to_owned(), conf));
    let guest = DaemonGuest::with_files(kernel, &busybox(&cache), &program("clockwatch"), &files);
    let run = guest.run(&format!("chrony-{name}-{host}"), host, "chrony", parameters);
    run.expect("guest: chrony has the time");
    run.expect_within(Duration::from_mins(25), "guest: measured");
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    let line = console.lines().find(|line| line.contains("offsets: ")).unwrap_or_else(|| panic!("{console}"));
    println!("{name} on {host}: {line}");
    for expected in ["System clock was stepped", "Frequency", "Skew"] {
        println!("{}", console.lines().find(|line| line.contains(expected)).unwrap_or_default());
    }
    assert!(number(line, "size ") < 500_000, "{line}");
    assert!(number(line, "p99 ") < 5_000_000, "{line}");
}

fn by_the_driver(host: &str) {
    ten_minutes("driver", build().join("bzImage"), host, PHC, "");
}

fn by_vmmcid(host: &str) {
    let cache = Cache::user().unwrap();
    let kernel = Debian::new(&cache, "trixie", &Quiet).kernel("linux-image-cloud-amd64").unwrap();
    ten_minutes("vmmcid", kernel.vmlinuz, host, SOCK, "vmmcid=--chrony,/run/chrony.vmmci.sock");
}

#[test]
#[ignore = "watches clocks for ten minutes: make long-test"]
fn long_chrony_keeps_the_guest_exact_by_the_driver_on_7_7() {
    by_the_driver("7.7");
}

#[test]
#[ignore = "watches clocks for ten minutes: make long-test"]
fn long_chrony_keeps_the_guest_exact_by_the_driver_on_7_8() {
    by_the_driver("7.8");
}

#[test]
#[ignore = "watches clocks for ten minutes: make long-test"]
fn long_chrony_keeps_the_guest_exact_by_the_driver_on_7_9() {
    by_the_driver("7.9");
}

#[test]
#[ignore = "watches clocks for ten minutes: make long-test"]
fn long_chrony_keeps_the_guest_exact_by_the_driver_on_8_0() {
    by_the_driver("8.0");
}

#[test]
#[ignore = "watches clocks for ten minutes: make long-test"]
fn long_chrony_keeps_the_guest_exact_by_vmmcid_on_7_8() {
    by_vmmcid("7.8");
}

#[test]
#[ignore = "watches clocks for ten minutes: make long-test"]
fn long_chrony_keeps_the_guest_exact_by_vmmcid_on_8_0() {
    by_vmmcid("8.0");
}
