//! Our kernel on every vmd, without a word about vmd on its command line: time, and how it goes down.

use guest_tests::{
    event::Event,
    probes,
    run::{Ended, Guest, build},
};
use rstest::rstest;
use vmm::ExitReason;

/// Boots, carries `words` out and ends in order. `parameters` are all of the command line but the console.
fn run(name: &str, parameters: &str, words: &str, arguments: &[&str]) -> Ended {
    let dir = tempfile::tempdir().unwrap();
    let tscrate = dir.path().join("tscrate");
    probes::compile("tscrate", &tscrate).unwrap();
    let guest = Guest::with_files(build().join("bzImage"), &[], &[("tscrate", &tscrate)]);
    let append = format!("console=ttyS0,115200 {parameters} -- {words}");
    let ended = guest.start(name, &append, &[&["--no-reboot"], arguments].concat()).end().assert_status(0);
    assert!(ended.has(&Event::Ready), "{}", ended.everything());
    ended
}

/// The kernel did nothing that this hardware does not answer.
fn assert_quiet(ended: &Ended) {
    for complaint in ["unchecked MSR", "Unable to calibrate", "calibration failed", "WARNING:", "Call Trace"]
    {
        assert!(!ended.console().contains(complaint), "{complaint}: {}", ended.everything());
    }
}

/// The clocksource that the kernel chose, and the TSC's rate by it.
fn clock(ended: &Ended) -> (String, f64) {
    ended.one(|event| match event {
        Event::Clock { source, tsc_hz } => Some((source.clone(), *tsc_hz)),
        _ => None,
    })
}

/// The guest's clock is at most so many ppm from the host's, which counts the TSC, and goes forward only.
fn assert_right_time(ended: &Ended, host: &str, allowed_ppm: f64) {
    let (source, rate) = clock(ended);
    let ppm = (ended.statistics()["tsc_hz"].as_f64().unwrap() / rate - 1.0) * 1e6;
    println!("{host}: {ppm:+.4} ppm");
    assert_eq!(source, "tsc", "{}", ended.everything());
    assert!(ppm.abs() <= allowed_ppm, "{ppm} ppm: {}", ended.everything());
    assert!(ended.has(&Event::StepsBackwards(0)), "{}", ended.everything());
    assert_quiet(ended);
}

/// CPUID tells the rate exactly.
#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn on_amd_the_tsc_is_exact_and_a_reboot_restarts(#[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    let arguments = ["--host", host, "--cpu-vendor", "amd"];
    let ended = run(&format!("clock-amd-{host}"), "", "clock steps reset", &arguments);
    assert_right_time(&ended, host, 0.1);
    assert_eq!(ended.reason(), ExitReason::Reset);
}

#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn on_intel_the_tsc_is_refined_and_a_poweroff_ends(#[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    let arguments = ["--host", host, "--cpu-vendor", "intel"];
    let ended = run(&format!("clock-intel-{host}"), "", "clock steps poweroff", &arguments);
    assert_right_time(&ended, host, 1.0);
    let acpi = host == "8.0";
    assert_eq!(ended.reason(), if acpi { ExitReason::PoweredOff } else { ExitReason::GuestShutdown });
}

#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_halt_ends_the_guest(#[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    let ended = run(&format!("halt-{host}"), "quiet", "halt", &["--host", host]);
    assert!(matches!(ended.reason(), ExitReason::HaltedWithInterruptsOff(_)), "{}", ended.everything());
}

#[rstest]
#[case::on_7_7("7.7", "", &["--variable-tsc"])]
#[case::on_7_8("7.8", "", &["--variable-tsc"])]
#[case::on_8_0("8.0", "", &["--variable-tsc"])]
#[case::unstable_on_7_9("7.9", "tsc=unstable", &[])]
#[case::chosen_on_7_9("7.9", "clocksource=vmm-clock", &[])]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn without_a_steady_tsc_the_hosts_clock_is_read(
    #[case] host: &str,
    #[case] parameters: &str,
    #[case] arguments: &[&str],
) {
    let all = [&["--host", host], arguments].concat();
    let name = format!("no-tsc-{host}{}", parameters.len());
    let ended = run(&name, parameters, "clock steps poweroff", &all);
    assert_eq!(clock(&ended).0, "vmm-clock", "{}", ended.everything());
    assert!(ended.has(&Event::StepsBackwards(0)), "{}", ended.everything());
    assert_quiet(&ended);
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn nopv_is_heeded() {
    let ended = run("nopv", "nopv", "poweroff", &["--host", "7.8"]);
    assert!(!ended.console().contains("Hypervisor detected"), "{}", ended.everything());
}

/// Up to 7.9, no interrupt is left when the 8259s are shut down, unless the tick goes on.
#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_busy_guest_restarts_each_time() {
    const LIVES: usize = 6;
    let guest = Guest::ours();
    let run = guest.run("kernel-busy-reset", "crowd reset", &["--host", "7.7"]);
    run.expect_events(&Event::Ready, LIVES);
    run.obey(&["stop", "-f"]);
    run.end();
}

/// A host whose ticks are so long apart is busy: those of the 8254 come late, and most of them never.
#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_host_that_is_late_is_no_reason_not_to_boot() {
    let arguments = ["--host", "8.0", "--host-hz", "20", "--no-reboot"];
    let ended = Guest::ours().run("kernel-late-host", "poweroff", &arguments).end().assert_status(0);
    assert!(ended.has(&Event::Ready), "{}", ended.everything());
}
