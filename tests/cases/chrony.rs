//! How near chrony keeps a guest's clock to the host's, with the kernel's driver and with vmmcid.

use std::path::PathBuf;

use debian_archive::Debian;
use guest_tests::{
    chrony,
    daemon::{DaemonGuest, busybox},
    event::Event,
    run::{build, program},
};
use rstest::rstest;
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
    run.done("waitsync");
    let ended = run.end().assert_status(0);
    let offsets = ended.one(|event| if let Event::Offsets(offsets) = event { Some(*offsets) } else { None });
    println!("{name} on {host}: {offsets:?}");
    for expected in ["System clock was stepped", "Frequency", "Skew"] {
        println!("{}", ended.console().lines().find(|line| line.contains(expected)).unwrap_or_default());
    }
    assert!(offsets.size < 500_000, "{offsets:?}");
    assert!(offsets.p99 < 5_000_000, "{offsets:?}");
}

#[rstest]
#[ignore = "watches clocks for ten minutes: make long-test"]
fn long_chrony_keeps_the_guest_exact_by_the_driver(#[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    ten_minutes("driver", build().join("bzImage"), host, PHC, "");
}

#[rstest]
#[ignore = "watches clocks for ten minutes: make long-test"]
fn long_chrony_keeps_the_guest_exact_by_vmmcid(#[values("7.8", "8.0")] host: &str) {
    let cache = Cache::user().unwrap();
    let kernel = Debian::new(&cache, "trixie", &Quiet).kernel("linux-image-cloud-amd64").unwrap();
    ten_minutes("vmmcid", kernel.vmlinuz, host, SOCK, "vmmcid=--chrony,/run/chrony.vmmci.sock");
}
