//! `vmmlinux-doctor` in guests: our kernel on every vmd, and a stock kernel, whose troubles it has to find.

use std::fs;

use debian_archive::Debian;
use guest_tests::{
    event::Event,
    run::{Guest, build, stripped},
};
use rstest::rstest;
use serde_json::Value;
use support::{cache::Cache, progress::Quiet};

/// The doctor's reports and exit statuses in a guest.
struct Examined {
    /// For root, who measures.
    root: (Value, i32),
    /// As the user nobody, without privileges.
    user: (Value, i32),
}

/// Boots a guest with a disk on a vmd, and has it examined.
fn examine(guest: &Guest, name: &str, host: &str, kernel: &str) -> Examined {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let append = format!("console=ttyS0,115200 quiet {kernel} -- doctor poweroff");
    let run = guest.start(name, &append, &["--host", host, "-i", "-d", disk.to_str().unwrap()]);
    let ended = run.end().assert_status(0);
    let found_for = |whom: &str| {
        ended.one(|event| match event {
            Event::Examined { user, report, status } if user == whom => Some((report.clone(), *status)),
            _ => None,
        })
    };
    let examined = Examined { root: found_for("root"), user: found_for("nobody") };
    println!("{name}:");
    for finding in examined.root.0["findings"].as_array().unwrap() {
        println!("  {} {}", finding["severity"], finding["what"]);
        if finding["severity"] != "ok" {
            println!("    {} {}", finding["evidence"], finding["remedy"]);
        }
    }
    examined
}

/// The findings of a topic.
fn topic<'a>(report: &'a Value, topic: &'a str) -> impl Iterator<Item = &'a Value> {
    report["findings"].as_array().unwrap().iter().filter(move |finding| finding["topic"] == topic)
}

/// The finding that has a figure, and the figure.
fn figure<'a>(report: &'a Value, name: &str) -> (&'a Value, f64) {
    let mut findings = report["findings"].as_array().unwrap().iter();
    findings
        .find_map(|finding| Some((finding, finding["figures"][name].as_f64()?)))
        .unwrap_or_else(|| panic!("no {name}: {report:#}"))
}

/// The finding of a topic that says so.
fn saying<'a>(report: &'a Value, of: &'a str, what: &str) -> &'a Value {
    topic(report, of)
        .find(|finding| finding["what"].as_str().unwrap().contains(what))
        .unwrap_or_else(|| panic!("{of}: nothing says {what}: {report:#}"))
}

/// Root knows the host. The memory map, which tells 7.9 from 7.8, may be root's: without it a report names both.
fn assert_recognised(root: &Value, user: &Value, host: &str) {
    assert_eq!(root["host"]["vmd"], serde_json::json!([host]), "{root:#}");
    let known = user["host"]["vmd"].as_array().unwrap();
    assert!(known.contains(&host.into()) && known.len() <= 2, "{user:#}");
}

#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn with_our_kernel_all_is_well(#[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    let dir = tempfile::tempdir().unwrap();
    let doctor = dir.path().join("doctor");
    stripped("vmmlinux-doctor", &doctor);
    let guest = Guest::with_files(build().join("bzImage"), &[], &[("vmmlinux-doctor", &doctor)]);
    let Examined { root, user } = examine(&guest, &format!("doctor-{host}"), host, "");
    assert_recognised(&root.0, &user.0, host);
    for (report, status) in [&root, &user] {
        assert_eq!(*status, 0, "{host}: {report:#}");
        saying(report, "control device", "the kernel's driver handles the host's commands");
        saying(report, "clock", "clocksource tsc");
        assert_eq!(saying(report, "virtio", "disk")["severity"], "ok");
        let configuration = topic(report, "kernel configuration").next().unwrap();
        assert!(configuration["evidence"][0].as_str().unwrap().contains("/proc/config.gz"), "{report:#}");
    }
    // A driver's files are everybody's; what the bound of its error allows for is what the machine was slow by.
    for (report, _) in [&root, &user] {
        let (_, offset) = figure(report, "offset_seconds");
        let (_, error) = figure(report, "offset_error_seconds");
        assert!(offset.abs() < 1.0 + error, "{host}: {report:#}");
    }
    let (_, ppm) = figure(&root.0, "rate_ppm");
    let (rate, error) = figure(&root.0, "rate_error_ppm");
    println!("{host}: {}", rate["what"].as_str().unwrap());
    assert!(ppm.abs() <= error + 2.0, "{host}: {rate:#}");
    assert!(
        user.0["findings"].as_array().unwrap().iter().all(|finding| finding["figures"]["rate_ppm"].is_null())
    );
}

/// A guest with Debian's kernel, its configuration, and a driver for the disk.
fn stock(suite: &str) -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let doctor = dir.path().join("doctor");
    stripped("vmmlinux-doctor", &doctor);
    let cache = Cache::user().unwrap();
    let kernel = Debian::new(&cache, suite, &Quiet).kernel("linux-image-cloud-amd64").unwrap();
    let modules: Vec<_> = kernel
        .modules_for(&["virtio_pci", "virtio_blk"])
        .unwrap()
        .into_iter()
        .enumerate()
        .map(|(index, (name, content))| {
            let path = dir.path().join(format!("{index:02}-{name}.ko"));
            fs::write(&path, content).unwrap();
            path
        })
        .collect();
    let config = format!("boot/config-{}", kernel.release);
    let files = [("vmmlinux-doctor", doctor.as_path()), (config.as_str(), kernel.config.as_path())];
    Guest::with_files(kernel.vmlinuz, &modules, &files)
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_stock_kernels_troubles_are_found() {
    let Examined { root, user } = examine(&stock("trixie"), "doctor-stock", "7.8", "");
    assert_recognised(&root.0, &user.0, "7.8");
    for (report, status) in [&root, &user] {
        assert_eq!(*status, 2, "{report:#}");
        for (of, what) in [
            ("control device", "no driver for vmmci"),
            ("tick", "clock event device pit"),
            ("reboot and power-off", "a reboot hangs"),
        ] {
            let finding = saying(report, of, what);
            assert_eq!(finding["severity"], "warning", "{finding:#}");
            assert!(finding["remedy"].is_string(), "{finding:#}");
        }
        // Debian's choices cost something, and none of them does harm.
        let configuration = saying(report, "kernel configuration", "nothing in the kernel's configuration");
        assert!(configuration["evidence"].to_string().contains("ptp_kvm is a module"), "{configuration:#}");
        let network = saying(report, "virtio", "network interface (");
        assert!(network["remedy"].as_str().unwrap().contains("virtio_net"), "{network:#}");
    }
    // Without a driver only root reads the host's clock.
    let (rate, ppm) = figure(&root.0, "rate_ppm");
    let (_, error) = figure(&root.0, "rate_error_ppm");
    assert!(ppm.abs() <= error + 20.0, "{rate:#}");
    saying(&user.0, "clock", "could not be held against the host's");
}

#[rstest]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_stock_kernels_are_examined(
    #[values(("trixie", ""), ("trixie-backports", "initcall_blacklist=print_s5_reset_status_mmio"))]
    stock_kernel: (&str, &str),
    #[values("7.7", "7.8", "7.9", "8.0")] host: &str,
) {
    let (suite, parameters) = stock_kernel;
    let Examined { root: (report, status), .. } =
        examine(&stock(suite), &format!("doctor-{suite}-{host}"), host, parameters);
    assert_eq!(report["host"]["vmd"], serde_json::json!([host]), "{report:#}");
    assert_eq!(status, 2, "{report:#}");
    if host == "7.7" {
        // Ticks are all that it counts.
        assert_eq!(figure(&report, "rate_ppm").0["severity"], "warning", "{report:#}");
    }
}
