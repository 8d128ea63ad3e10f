//! More than one processor, as 8.0 has them: our kernel starts, uses and stops them.

use std::process::Command;

use guest_tests::run::{Guest, Run, program, vmmlinux};
use regex::Regex;

/// The guest with the kernel that `make e2e` names.
fn guest() -> Guest {
    Guest::with_our_kernel(&program("guest"))
}

/// What each processor said that it did, in all lives of the guest.
fn said(run: &Run, processors: usize, lives: usize) {
    let line = Regex::new(r"guest: processor (\d+): busy (\d+) timer (\d+) sent (\d+)").unwrap();
    let console = run.console();
    let found: Vec<[u64; 4]> = line
        .captures_iter(&console)
        .map(|captures| captures.extract().1.map(|number: &str| number.parse().unwrap()))
        .collect();
    assert_eq!(found.len(), processors * lives, "{console}");
    for [processor, busy, timer, sent] in found {
        // It computed for half a second, at 100 ticks a second that a loaded host may count for itself.
        assert!(busy > 5, "processor {processor} was busy for {busy} ticks: {console}");
        assert!(timer > 5, "processor {processor} had {timer} timer interrupts: {console}");
        assert!(sent > 5, "processor {processor} was sent {sent} interrupts: {console}");
    }
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn two_processors_work_pause_reboot_and_stop() {
    let guest = guest();
    let words = "driver cpus hotplug echo reset";
    let mut run = guest.run("smp", words, &["--host", "8.0", "--cpus", "2"]);
    run.expect("guest: processor 1 went and came back");
    assert!(run.console().contains("guest: processors 0-1 are online"), "{}", run.console());
    let status: serde_json::Value = serde_json::from_str(&run.obey(&["status", "--json"])).unwrap();
    assert_eq!((&status[0]["vcpus"], &status[0]["state"]), (&2.into(), &"running".into()));
    for (order, state) in [("pause", "paused"), ("unpause", "running")] {
        run.obey(&[order]);
        assert!(run.ctl(&["status"]).1.contains(state));
    }
    run.send(b"once more\n");
    run.expect("guest: ONCE MORE");
    run.expect_times("guest: processor 1 went and came back", 2);
    said(&run, 2, 2);
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    assert!(!console.contains("guest: failed"), "{console}");
    assert!(errors.contains("went down as asked"), "{errors}");
}

/// Eight of the 64 that there can be, on a machine that has two or so: they start, one after the other.
#[test]
#[ignore = "boots a guest with many processors in the helper VM: make long-test"]
fn long_eight_processors_start() {
    let guest = guest();
    let run = guest.run("smp-many", "cpus poweroff", &["--host", "8.0", "--cpus", "8"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    assert!(console.contains("guest: processors 0-7 are online"), "{console}");
    assert!(errors.contains("powered itself off"), "{errors}");
}

#[test]
#[ignore = "needs the program: make e2e"]
fn older_hosts_have_one_processor() {
    for (host, cpus) in [("7.8", "2"), ("7.9", "64"), ("8.0", "65"), ("8.0", "0")] {
        let output = Command::new(vmmlinux())
            .args(["run", "--host", host, "--cpus", cpus, "--kernel", "/nowhere"])
            .output()
            .expect("vmmlinux starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("cannot have {cpus} processors")), "{said}");
        let remedy = if host == "8.0" { "1 to 64" } else { "--host 8.0" };
        assert!(said.contains(remedy), "{said}");
    }
}
