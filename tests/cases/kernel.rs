//! Our kernel on every vmd, without a word about vmd on its command line: time, and how it goes down.

use std::fs;

use guest_tests::run::{Guest, program};

const HOSTS: [&str; 4] = ["7.7", "7.8", "7.9", "8.0"];

fn guest() -> Guest {
    Guest::with_our_kernel(&program("guest"))
}

/// A guest that has gone down.
struct Gone {
    console: String,
    errors: String,
    statistics: serde_json::Value,
}

/// Boots, carries `words` out and ends in order. `kernel` is all of the command line but the console.
fn run(name: &str, kernel: &str, words: &str, arguments: &[&str]) -> Gone {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("statistics");
    let append = format!("console=ttyS0,115200 {kernel} -- {words}");
    let all = [&["--no-reboot", "--stats", file.to_str().unwrap()], arguments].concat();
    let guest = guest();
    let (status, console, errors) = guest.start(name, &append, &all).end();
    assert_eq!(status, 0, "{name}: {console}\n{errors}");
    assert!(console.contains("guest: ready"), "{name}: {console}\n{errors}");
    assert!(!console.contains("guest: failed"), "{name}: {console}");
    let statistics = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    Gone { console, errors, statistics }
}

impl Gone {
    /// What follows `before` on its line.
    fn said(&self, before: &str) -> &str {
        let (_, rest) =
            self.console.split_once(before).unwrap_or_else(|| panic!("no {before}: {}", self.console));
        rest.lines().next().unwrap().trim()
    }

    /// How far the guest's clock is from the host's, which counts the TSC, in ppm.
    fn ppm(&self) -> f64 {
        let rate: f64 = self.said("tsc rate: ").trim_end_matches(" Hz").parse().unwrap();
        let host = self.statistics["statistics"]["tsc_hz"].as_f64().unwrap();
        (host / rate - 1.0) * 1e6
    }

    /// The kernel did nothing that this hardware does not answer.
    fn assert_quiet(&self) {
        for complaint in
            ["unchecked MSR", "Unable to calibrate", "calibration failed", "WARNING:", "Call Trace"]
        {
            assert!(!self.console.contains(complaint), "{complaint}: {}", self.console);
        }
    }
}

/// The rate is exact where CPUID tells it, else within 1 ppm; then the guest goes down by `end`.
fn right_time(vendor: &str, allowed_ppm: f64, end: &str, ended: &str) {
    for host in HOSTS {
        let name = format!("clock-{vendor}-{host}");
        let words = format!("clock steps {end}");
        let gone = run(&name, "", &words, &["--host", host, "--cpu-vendor", vendor]);
        assert_eq!(gone.said("guest: clocksource "), "tsc", "{host}: {}", gone.console);
        println!("{vendor} {host}: {:+.4} ppm", gone.ppm());
        assert!(gone.ppm().abs() <= allowed_ppm, "{host}: {} ppm, {}", gone.ppm(), gone.console);
        assert!(gone.console.contains("guest: 0 steps backwards"), "{host}: {}", gone.console);
        gone.assert_quiet();
        let acpi = host == "8.0" && end == "poweroff";
        let ended = if acpi { "powered itself off" } else { ended };
        assert!(gone.errors.contains(ended), "{host}: {}", gone.errors);
    }
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn on_amd_the_tsc_is_exact_and_a_reboot_restarts() {
    right_time("amd", 0.1, "reset", "the guest reset itself");
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn on_intel_the_tsc_is_refined_and_a_poweroff_ends() {
    right_time("intel", 1.0, "poweroff", "announced its shutdown through vmmci");
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn a_halt_ends_the_guest() {
    for host in HOSTS {
        let gone = run(&format!("halt-{host}"), "quiet", "halt", &["--host", host]);
        assert!(gone.errors.contains("halted with interrupts disabled"), "{host}: {}", gone.errors);
    }
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn without_a_steady_tsc_the_hosts_clock_is_read() {
    for (host, kernel, arguments) in [
        ("7.7", "", ["--variable-tsc"].as_slice()),
        ("7.8", "", &["--variable-tsc"]),
        ("8.0", "", &["--variable-tsc"]),
        ("7.9", "tsc=unstable", &[]),
        ("7.9", "clocksource=vmm-clock", &[]),
    ] {
        let all = [&["--host", host], arguments].concat();
        let gone = run(&format!("no-tsc-{host}"), kernel, "clock steps poweroff", &all);
        assert_eq!(gone.said("guest: clocksource "), "vmm-clock", "{host}: {}", gone.console);
        assert!(gone.console.contains("guest: 0 steps backwards"), "{host}: {}", gone.console);
        gone.assert_quiet();
    }
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn nopv_is_heeded() {
    let gone = run("nopv", "nopv", "poweroff", &["--host", "7.8"]);
    assert!(!gone.console.contains("Hypervisor detected"), "{}", gone.console);
}

/// Up to 7.9, no interrupt is left when the 8259s are shut down, unless the tick goes on.
#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_busy_guest_restarts_each_time() {
    const LIVES: usize = 6;
    let guest = guest();
    let run = guest.run("kernel-busy-reset", "crowd reset", &["--host", "7.7"]);
    run.expect_times("guest: ready", LIVES);
    run.obey(&["stop", "-f"]);
    run.end();
}

/// A host whose ticks are so long apart is busy: those of the 8254 come late, and most of them never.
#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_host_that_is_late_is_no_reason_not_to_boot() {
    let guest = guest();
    let run = guest.run("kernel-late-host", "poweroff", &["--host", "8.0", "--host-hz", "20", "--no-reboot"]);
    let (status, console, errors) = run.end();
    assert!(console.contains("guest: ready"), "{console}\n{errors}");
    assert_eq!(status, 0, "{console}\n{errors}");
}
