//! `vmmlinux-doctor` in guests: our kernel on every vmd, and a stock kernel, whose troubles it has to find.

use std::fs;

use debian_archive::Debian;
use guest_tests::run::{Guest, build, program, stripped};
use serde_json::Value;
use support::{cache::Cache, progress::Quiet};

/// What the doctor said in a guest.
struct Examined {
    /// To root, who measures.
    root: (Value, i32),
    /// To nobody, who does not.
    nobody: (Value, i32),
}

/// Boots a guest with a disk on a vmd, and has it examined.
fn examine(guest: &Guest, name: &str, host: &str, kernel: &str) -> Examined {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let append = format!("console=ttyS0,115200 quiet {kernel} -- doctor poweroff");
    let run = guest.start(name, &append, &["--host", host, "-i", "-d", disk.to_str().unwrap()]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    let said = |user: &str| {
        let parts = console.split_once(&format!("guest: {user} begins")).and_then(|(_, rest)| {
            let (json, rest) = rest.split_once(&format!("guest: {user} ends with "))?;
            Some((serde_json::from_str(json).ok()?, rest.lines().next()?.trim().parse().ok()?))
        });
        parts.unwrap_or_else(|| panic!("{console}\n{errors}"))
    };
    let examined = Examined { root: said("root"), nobody: said("nobody") };
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

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn with_our_kernel_all_is_well_on_every_host() {
    let dir = tempfile::tempdir().unwrap();
    let doctor = dir.path().join("doctor");
    stripped("vmmlinux-doctor", &doctor);
    let guest = Guest::with_files(
        &program("guest"),
        build().join("bzImage"),
        &[],
        &[("vmmlinux-doctor", doctor.as_path())],
    );
    for host in ["7.7", "7.8", "7.9", "8.0"] {
        let Examined { root, nobody } = examine(&guest, &format!("doctor-{host}"), host, "");
        for (report, status) in [&root, &nobody] {
            assert_eq!(report["host"]["vmd"], serde_json::json!([host]), "{report:#}");
            assert_eq!(*status, 0, "{host}: {report:#}");
            saying(report, "control device", "the kernel's driver handles the host's commands");
            saying(report, "clock", "clocksource tsc");
            assert_eq!(saying(report, "virtio", "disk")["severity"], "ok");
            let configuration = topic(report, "kernel configuration").next().unwrap();
            assert!(configuration["evidence"][0].as_str().unwrap().contains("/proc/config.gz"), "{report:#}");
        }
        // A driver's files are everybody's; what the bound of its error allows for is what the machine was slow by.
        for (report, _) in [&root, &nobody] {
            let (_, offset) = figure(report, "offset_seconds");
            let (_, error) = figure(report, "offset_error_seconds");
            assert!(offset.abs() < 1.0 + error, "{host}: {report:#}");
        }
        let (_, ppm) = figure(&root.0, "rate_ppm");
        let (rate, error) = figure(&root.0, "rate_error_ppm");
        println!("{host}: {}", rate["what"].as_str().unwrap());
        assert!(ppm.abs() <= error + 2.0, "{host}: {rate:#}");
        assert!(
            nobody.0["findings"]
                .as_array()
                .unwrap()
                .iter()
                .all(|finding| finding["figures"]["rate_ppm"].is_null())
        );
    }
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
    Guest::with_files(&program("guest"), kernel.vmlinuz, &modules, &files)
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_stock_kernels_troubles_are_found() {
    let Examined { root, nobody } = examine(&stock("trixie"), "doctor-stock", "7.8", "");
    for (report, status) in [&root, &nobody] {
        assert_eq!(report["host"]["vmd"], serde_json::json!(["7.8"]), "{report:#}");
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
    saying(&nobody.0, "clock", "could not be held against the host's");
}

#[test]
#[ignore = "boots eight guests: make long-test"]
fn long_stock_kernels_are_examined_on_every_host() {
    for (suite, kernel) in
        [("trixie", ""), ("trixie-backports", "initcall_blacklist=print_s5_reset_status_mmio")]
    {
        let guest = stock(suite);
        for host in ["7.7", "7.8", "7.9", "8.0"] {
            let name = format!("doctor-{suite}-{host}");
            let Examined { root, .. } = examine(&guest, &name, host, kernel);
            assert_eq!(root.0["host"]["vmd"], serde_json::json!([host]), "{:#}", root.0);
            assert_eq!(root.1, 2, "{:#}", root.0);
            if host == "7.7" {
                // Ticks are all that it counts.
                assert_eq!(figure(&root.0, "rate_ppm").0["severity"], "warning", "{:#}", root.0);
            }
        }
    }
}
