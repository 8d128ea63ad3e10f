//! The kernel's own driver of the control device, from end to end.

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use guest_tests::run::{Guest, vmmlinux};

const HOSTS: [&str; 4] = ["7.7", "7.8", "7.9", "8.0"];

/// The guest with the kernel that `make e2e` names.
fn guest() -> Guest {
    Guest::with_our_kernel(Path::new(env!("CARGO_BIN_EXE_guest")))
}

/// The number after `name` and before the next space.
fn number(text: &str, name: &str) -> i64 {
    let (_, rest) = text.split_once(name).unwrap_or_else(|| panic!("no `{name}` in:\n{text}"));
    rest.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("{name}: {rest}"))
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn a_stop_takes_the_guest_down_in_order_on_every_host() {
    let guest = guest();
    for host in HOSTS {
        let run = guest.run(&format!("driver-stop-{host}"), "driver rebind wait", &["--host", host]);
        run.expect("guest: rebound");
        run.obey(&["stop"]);
        let (status, console, errors) = run.end();
        assert_eq!(status, 0, "{host}: {console}\n{errors}");
        assert!(console.contains("guest: the kernel says reboot"), "{host}: {console}\n{errors}");
        assert!(errors.contains("went down as asked"), "{host}: {errors}");
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

/// A few numbers that look random: xorshift.
fn numbers(mut state: u32) -> impl Iterator<Item = u32> {
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}

/// Shows commands to the guest, one after the other: value and number of interrupts.
fn show(name: &str, commands: &[(u32, u32)]) {
    let mut ctl = Command::new(vmmlinux())
        .args(["ctl", name, "show-commands"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("vmmlinux starts");
    let mut stdin = ctl.stdin.take().expect("piped");
    for (value, interrupts) in commands {
        writeln!(stdin, "{value} {interrupts}").expect("vmmlinux reads");
    }
    drop(stdin);
    assert!(ctl.wait().expect("vmmlinux ends").success());
}

/// So many commands, known and unknown, some without an interrupt, some with two. The guest counts what it does.
fn storm(name: &str, times: usize) {
    let guest = guest();
    let mut run =
        guest.run_with(name, "driver rebind stay counts rebind poweroff", "vmmci.grace=0 loglevel=5", &[]);
    run.expect("guest: counting");
    let values = [0, 1, 2, 3, 3, 4, 0x8000_0000, u32::MAX];
    let commands: Vec<(u32, u32)> = numbers(0x1234_5678)
        .take(times)
        .map(|n| (values[n as usize % values.len()], n >> 8 & 0xff))
        .map(|(value, n)| (value, [0, 1, 1, 1, 2][n as usize % 5]))
        .collect();
    show(name, &commands);
    // The last words: nothing more to do, said with an interrupt.
    show(name, &[(0, 1)]);
    run.send(b"done\n");
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    let line =
        console.lines().find(|line| line.contains("guest: counts: ")).unwrap_or_else(|| panic!("{console}"));
    println!("{line}");
    let counts: BTreeMap<&str, i64> = line
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(name, count)| (name, count.parse().unwrap()))
        .collect();
    let sent = |value: u32| commands.iter().filter(|(shown, _)| *shown == value).count();
    for (name, value) in [("shutdown_commands", 1), ("reboot_commands", 2), ("syncrtc_commands", 3)] {
        let seen = usize::try_from(counts[name]).unwrap();
        assert!((1..=sent(value)).contains(&seen), "{name}: {line}");
    }
    // Nothing was done that was not asked for, and the clock was right all the time.
    assert!(counts["poweroff"] <= counts["shutdown_commands"], "{line}");
    assert!(counts["reboot"] <= counts["reboot_commands"], "{line}");
    assert!(counts["poweroff"] + counts["reboot"] > 0, "{line}");
    // Kilobytes. A leak of one small object for each command would show in 10,000 of them.
    assert!(counts["slab_after"] - counts["slab_before"] < 600, "{line}");
    assert!(console.contains("guest: rebound"), "{console}");
    assert_eq!(console.matches("none that is known").count(), 1, "{console}");
    let (_, storm) = console.split_once("guest: counting").unwrap();
    assert!(!storm.contains("Call Trace") && !storm.contains("nobody cared"), "{storm}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn three_hundred_commands_in_no_order_do_no_harm() {
    storm("driver-storm", 300);
}

#[test]
#[ignore = "ten thousand commands: make long-test"]
fn long_ten_thousand_commands_in_no_order_do_no_harm() {
    storm("driver-long-storm", 10_000);
}
