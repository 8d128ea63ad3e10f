//! The kernel's own driver of the control device, from end to end.

use std::collections::BTreeMap;

use guest_tests::{
    daemon::Trace,
    run::{Guest, number, program},
    storm,
};

const HOSTS: [&str; 4] = ["7.7", "7.8", "7.9", "8.0"];

/// The guest with the kernel that `make e2e` names.
fn guest() -> Guest {
    Guest::with_our_kernel(&program("guest"))
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn a_stop_takes_the_guest_down_in_order_on_every_host() {
    let (guest, place) = (guest(), tempfile::tempdir().unwrap());
    for host in HOSTS {
        let trace = place.path().join(host);
        let arguments = ["--host", host, "--trace", trace.to_str().unwrap()];
        let run = guest.run(&format!("driver-stop-{host}"), "driver foreign rebind wait", &arguments);
        run.expect("guest: rebound");
        run.obey(&["stop"]);
        let (status, console, errors) = run.end();
        assert_eq!(status, 0, "{host}: {console}\n{errors}");
        assert!(console.contains("guest: a foreign device is refused: true"), "{host}: {console}");
        // Its registers are others on each host: it takes no features, or offers none.
        assert_eq!(console.matches("0000:00:01.0: the device ").count(), 1, "{host}: {console}");
        assert!(console.contains("guest: the kernel says reboot"), "{host}: {console}\n{errors}");
        assert!(errors.contains("went down as asked"), "{host}: {errors}");
        let base = console.split("registers at 0x").nth(1).and_then(|rest| rest.lines().next());
        let base = u16::from_str_radix(base.unwrap().trim().trim_start_matches('0'), 16).unwrap();
        let waited = Trace::at(&trace, base).acknowledged_after_interrupt(2);
        println!("{host}: acknowledged {} us after the interrupt", waited / 1000);
        // vmd's patience, less its rounding.
        assert!(waited < 2_900_000_000, "{host}: {waited}");
    }
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn a_guest_that_halts_ends_the_vm_and_one_that_reboots_comes_back() {
    let guest = guest();
    let (status, console, errors) = guest.run("driver-halt", "driver halt", &[]).end();
    assert_eq!(status, 0, "{console}\n{errors}");
    for host in ["7.7", "8.0"] {
        let run = guest.run(&format!("driver-reset-{host}"), "driver reset", &["--host", host]);
        run.expect_times("has a driver", 2);
        run.obey(&["stop", "-f"]);
        run.end();
    }
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn without_user_space_to_ask_the_guest_goes_down_by_force() {
    let guest = guest();
    // Its `/sbin/reboot` does nothing.
    let run = guest.run_with("driver-force", "driver stay wait", "vmmci.grace=1", &[]);
    run.expect("has a driver");
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    assert!(errors.contains("went down as asked"), "{errors}");
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn after_a_suspend_the_clock_is_right_again_and_a_power_off_ends_the_vm() {
    let guest = guest();
    for host in HOSTS {
        let run =
            guest.run(&format!("driver-suspend-{host}"), "driver clocks phc poweroff", &["--host", host]);
        run.expect("watching the clocks");
        run.obey(&["suspend", "--for", "3h"]);
        let (status, console, errors) = run.end();
        assert_eq!(status, 0, "{host}: {console}\n{errors}");
        let line = console
            .lines()
            .find(|line| line.contains("guest: clocks: "))
            .unwrap_or_else(|| panic!("{console}"));
        println!("{host}: {line}");
        // From 8.0 on there is ACPI for it.
        let how = if host == "8.0" { "powered" } else { "announced its shutdown" };
        assert!(errors.contains(how), "{host}: {errors}");
        assert!(number(line, "behind for ") <= 2000, "{host}: {line}");
        assert!(number(line, "then ").abs() < 50_000_000, "{host}: {line}");
        assert!((10_790..10_900).contains(&number(line, "step ")), "{host}: {line}");
        assert!(line.contains("timerfd true"), "{host}: {line}");
        assert!(line.contains("the connection lives"), "{host}: {line}");
        // It slept for eight seconds of its own, not for the host's three hours.
        assert!((8_000..600_000).contains(&number(line, "sleeper true after ")), "{host}: {line}");
        let phc =
            console.lines().find(|line| line.contains("guest: phc: ")).unwrap_or_else(|| panic!("{console}"));
        println!("{host}: {phc}");
        assert!(number(phc, "OpenBSD vmmci, ") < 5_000_000, "{host}: {phc}");
    }
}

/// The host sleeps twice. Its TSC, and the guest's with it, counts on for hours the first time (suspend to idle), and
/// begins anew the second time (S3): then nothing may wait until the TSC is where it was.
fn naps_on(host: &str) {
    let guest = guest();
    let run = guest.run(&format!("driver-naps-{host}"), "driver naps poweroff", &["--host", host]);
    run.expect("waiting for a nap");
    for (nap, tsc) in ["runs", "resets"].into_iter().enumerate() {
        run.obey(&["suspend", "--for", "3h", "--tsc", tsc]);
        run.expect_times("guest: after a nap", nap + 1);
    }
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{host}: {console}\n{errors}");
    let lines: Vec<_> = console.lines().filter(|line| line.contains("guest: after a nap")).collect();
    for line in lines {
        println!("{host}: {line}");
        // Under an emulated processor it may have been put aside for a while.
        assert!(number(line, "used ") >= 50, "{host}: {console}");
        assert!((1000..3000).contains(&number(line, "slept ")), "{host}: {line}");
        assert!(number(line, "off by ").abs() < 50_000, "{host}: {line}");
        assert!(number(line, "back by ") < 50, "{host}: {line}");
    }
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn time_goes_on_after_a_nap_that_reset_the_tsc_of_7_8() {
    naps_on("7.8");
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn time_goes_on_after_a_nap_that_reset_the_tsc_of_8_0() {
    naps_on("8.0");
}

#[test]
#[ignore = "boots guests in the helper VM: make long-test"]
fn long_time_goes_on_after_a_nap_on_every_host() {
    for host in HOSTS {
        naps_on(host);
    }
}

/// So many commands with the driver bound, and so many while it loses the device and gets it back all the time. The guest
/// counts what it does.
fn storm(name: &str, times: usize) {
    let guest = guest();
    let words = "driver rebind stay counts churn poweroff";
    let mut run = guest.run_with(name, words, "vmmci.grace=0 loglevel=5", &[]);
    let commands = storm::commands(times);
    run.expect("guest: counting");
    storm::show(name, &commands);
    storm::show(name, &storm::CALM);
    run.send(b"done\n");
    run.expect_times("guest: counting", 2);
    storm::churn(&mut run, &commands);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    let lines: Vec<_> = console.lines().filter(|line| line.contains("guest: counts: ")).collect();
    assert_eq!(lines.len(), 2, "{console}");
    for line in lines {
        println!("{line}");
        let counts: BTreeMap<&str, i64> = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .map(|(name, count)| (name, count.parse().unwrap()))
            .collect();
        let rebound = counts.get("rebound").copied();
        for (program, counter, value) in [
            ("poweroff", "shutdown_commands", 1),
            ("reboot", "reboot_commands", 2),
            ("", "syncrtc_commands", 3),
        ] {
            let sent = commands.iter().filter(|(shown, _)| *shown == value).count();
            // A driver that finds a command when it gets the device cannot know that another one has obeyed it.
            let most = i64::try_from(sent).unwrap() + rebound.unwrap_or(0);
            assert!((1..=most).contains(&counts[counter]), "{counter}: {line}");
            // Nothing was done that was not asked for. What a driver has counted last is lost with it.
            let asked = if rebound.is_some() { most } else { counts[counter] };
            assert!(counts.get(program).is_none_or(|done| *done <= asked), "{program}: {line}");
        }
        assert!(counts["poweroff"] + counts["reboot"] > 0, "{line}");
        // The clock was right all the time, but for what it may have been off by at boot.
        assert!(counts["step_ms"] < 1000, "{line}");
        let least = i64::try_from(times / storm::CHURN).unwrap();
        assert!(rebound.is_none_or(|rebound| rebound >= least), "{line}");
        // Kilobytes. A leak of one small object for each command would show in 10,000 of them.
        assert!(counts["slab_after"] - counts["slab_before"] < 600, "{line}");
    }
    assert!(console.contains("guest: rebound"), "{console}");
    let (_, storm) = console.split_once("guest: counting").unwrap();
    let (bound, churned) = storm.split_once("guest: counting").unwrap();
    assert_eq!(bound.matches("none that is known").count(), 1, "{console}");
    assert!(
        churned.matches("none that is known").count() <= churned.matches("guest: again").count() + 1,
        "{console}"
    );
    assert!(!storm.contains("Call Trace") && !storm.contains("nobody cared"), "{storm}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn three_hundred_commands_in_no_order_do_no_harm() {
    storm("driver-storm", 300);
}

#[test]
#[ignore = "twice ten thousand commands: make long-test"]
fn long_ten_thousand_commands_in_no_order_do_no_harm() {
    storm("driver-long-storm", 10_000);
}
