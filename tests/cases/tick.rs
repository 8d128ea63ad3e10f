//! The tick of our kernel on hosts without local APIC: short sleeps, and what an idle guest costs.

use std::collections::BTreeMap;

use guest_tests::{
    marks::Marks,
    run::{Guest, Run, program},
};
use regex::Regex;

fn guest() -> Guest {
    Guest::with_our_kernel(&program("guest"))
}

/// The numbers of each of the guest's lines that look like `pattern`.
fn numbers(console: &str, pattern: &str) -> Vec<Vec<u64>> {
    let pattern = Regex::new(pattern).unwrap();
    pattern
        .captures_iter(console)
        .map(|found| found.iter().skip(1).map(|number| number.unwrap().as_str().parse().unwrap()).collect())
        .collect()
}

/// The end of a guest that did all that it was told.
fn ended(run: Run) -> String {
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    assert!(!console.contains("guest: failed"), "{console}");
    console
}

/// Microseconds that a sleep took, by what was asked for.
fn sleeps(console: &str) -> BTreeMap<u64, u64> {
    numbers(console, r"guest: (\d+) us took (\d+) us").into_iter().map(|line| (line[0], line[1])).collect()
}

/// Short sleeps take two ticks of the host. The bound lies between what a kernel with the 8253's own driver does (28 ms and
/// more with a host of 100 Hz) and what ours does (20 ms).
fn short_sleeps(host: &str, hz: u64) {
    let arguments = ["--host", host, "--host-hz", &hz.to_string()];
    let console = ended(guest().run(&format!("tick-{host}-{hz}"), "sleeps poweroff", &arguments));
    let tick = 1_000_000 / hz;
    let took = sleeps(&console);
    assert_eq!(took.len(), 7, "{console}");
    for (asked, took) in took {
        let late = took.checked_sub(asked).expect("no sleep is too short");
        // Two ticks of the host, the overshoot of a long sleep, and what this machine is late by.
        assert!(late <= 2 * tick + asked / 64 + 5_000, "{asked} us took {took} us\n{console}");
    }
}

/// An idle guest leaves its host alone: at most 4 interrupts and 40 exits a second, and 23 and 172 with the 8253's own
/// driver. That is when it has come to rest; right after boot it is twice as many (`docs/reference/time.md`).
#[test]
#[ignore = "lets guests rest for three minutes each, on a computer that does nothing else: make long-test"]
fn long_an_idle_guest_rests() {
    let dir = tempfile::tempdir().unwrap();
    for host in ["7.7", "7.8", "7.9"] {
        let statistics = dir.path().join(host);
        let arguments = ["--host", host, "--marks", "--stats", statistics.to_str().unwrap()];
        let console = ended(guest().run(&format!("idle-{host}"), "sleeps settle idle poweroff", &arguments));
        let interrupts = numbers(&console, r"idle for 10 s, (\d+) interrupts")[0][0];
        let exits = Marks::read(&statistics).exits_from(0);
        println!("{host}: {interrupts} interrupts, {exits} exits in 10 s");
        assert!(interrupts <= 40 && exits <= 400, "{host}: {interrupts}, {exits}\n{console}");
    }
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn short_sleeps_on_7_7() {
    short_sleeps("7.7", 100);
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn short_sleeps_on_7_8() {
    short_sleeps("7.8", 100);
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn short_sleeps_on_7_9_with_1000_ticks() {
    short_sleeps("7.9", 1000);
}

/// Neither jiffies nor the date are counted by ticks, half of which a host of 100 Hz loses.
#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn jiffies_follow_the_clock_without_and_with_a_periodic_tick() {
    for (name, parameters) in [("oneshot", ""), ("periodic", "nohz=off highres=off")] {
        let guest = guest();
        let run = guest.run_with(&format!("tick-{name}"), "busy ticks poweroff", parameters, &[]);
        let console = ended(run);
        let [passed, date, jiffies] =
            numbers(&console, r"(\d+) ms passed, (\d+) ms by the date, (\d+) jiffies")[0][..]
        else {
            panic!("{console}")
        };
        assert!(passed.abs_diff(date) <= 50, "{name}: {console}");
        assert!((jiffies * 10).abs_diff(passed) <= 50, "{name}: {console}");
        // A second thread of a busy guest gets its turn whenever the host lets the guest tick: 150 times in 3 s.
        let slept = numbers(&console, r"busy, (\d+) sleeps")[0][0];
        assert!(slept >= 75, "{name}: {console}");
    }
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn a_pause_does_not_stop_the_tick() {
    let guest = guest();
    let run = guest.run("tick-pause", "idle sleeps poweroff", &[]);
    run.expect("guest: idle from now on");
    for order in ["pause", "unpause"] {
        run.obey(&[order]);
    }
    let console = ended(run);
    assert_eq!(sleeps(&console).len(), 7, "{console}");
}

#[test]
#[ignore = "boots guests in the helper VM: make e2e"]
fn the_8253s_own_driver_takes_over_when_told_to() {
    let guest = guest();
    let run = guest.run_with("tick-off", "sleeps poweroff", "openbsd_timer=off", &[]);
    let console = ended(run);
    assert!(sleeps(&console)[&10_000] > 25_000, "{console}");
}
