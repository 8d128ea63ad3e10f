//! The kernel's own driver of the control device, from end to end.

use guest_tests::{
    daemon::Trace,
    event::{Counts, Event},
    run::{Ended, Guest},
    storm,
};
use rstest::rstest;
use vmm::ExitReason;

/// vmd's patience with a guest that was told to go down, less its rounding, in nanoseconds.
const PATIENCE: u64 = 2_900_000_000;
/// The errno of a driver's refusal.
const ENODEV: i32 = 19;

#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_stop_takes_the_guest_down_in_order(#[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    let (guest, place) = (Guest::ours(), tempfile::tempdir().unwrap());
    let trace = place.path().join("trace");
    let arguments = ["--host", host, "--trace", trace.to_str().unwrap()];
    let run = guest.run(&format!("driver-stop-{host}"), "driver foreign rebind wait", &arguments);
    run.done("rebind");

    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);

    assert_eq!(ended.reason(), ExitReason::Stopped);
    assert!(ended.has(&Event::KernelRan("reboot".to_owned())), "{}", ended.everything());
    let base = ended.one(|event| if let Event::Driver(port) = event { Some(*port) } else { None });
    let waited = Trace::at(&trace, base).acknowledged_after_interrupt(2);
    println!("{host}: acknowledged {} us after the interrupt", waited / 1000);
    assert!(waited < PATIENCE, "{waited} ns");
    // The driver refuses vmd's entropy device, whose registers differ between hosts, and says why.
    let refused =
        ended.one(|event| if let Event::ForeignRefused(errno) = event { Some(*errno) } else { None });
    assert_eq!(refused, Some(ENODEV), "{}", ended.everything());
    assert_eq!(ended.console().matches("0000:00:01.0: the device ").count(), 1, "{}", ended.everything());
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_guest_that_halts_ends_the_vm() {
    let ended = Guest::ours().run("driver-halt", "driver halt", &[]).end().assert_status(0);
    assert!(matches!(ended.reason(), ExitReason::HaltedWithInterruptsOff(_)), "{}", ended.everything());
}

#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_guest_that_reboots_comes_back(#[values("7.7", "8.0")] host: &str) {
    let guest = Guest::ours();
    let run = guest.run(&format!("driver-reset-{host}"), "driver reset", &["--host", host]);
    run.expect_events(&Event::Done("driver".to_owned()), 2);
    run.obey(&["stop", "-f"]);
    run.end();
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn without_user_space_to_ask_the_guest_goes_down_by_force() {
    let guest = Guest::ours();
    // Its `/sbin/reboot` does nothing.
    let run = guest.run_with("driver-force", "driver stay wait", "vmmci.grace=1", &[]);
    run.done("driver");
    run.obey(&["stop"]);
    assert_eq!(run.end().assert_status(0).reason(), ExitReason::Stopped);
}

#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn after_a_suspend_the_clock_is_right_again_and_a_power_off_ends_the_vm(
    #[values("7.7", "7.8", "7.9", "8.0")] host: &str,
) {
    let guest = Guest::ours();
    let run = guest.run(&format!("driver-suspend-{host}"), "driver clocks phc poweroff", &["--host", host]);
    run.waiting("clocks");

    run.obey(&["suspend", "--for", "3h"]);
    let ended = run.end().assert_status(0);

    // From 8.0 on there is ACPI for it.
    let reason = if host == "8.0" { ExitReason::PoweredOff } else { ExitReason::GuestShutdown };
    assert_eq!(ended.reason(), reason);
    let set = ended.one(|event| if let Event::ClockSet(set) = event { Some(set.clone()) } else { None });
    println!("{host}: {set:?}");
    assert!(set.behind_ms <= 2000, "{set:?}");
    assert!(set.offset_ns.abs() < 50_000_000, "{set:?}");
    assert!((10_790..10_900).contains(&set.step_s), "{set:?}");
    assert!(set.timerfd_cancelled && set.connection_lives && set.sleeper_woke, "{set:?}");
    // It slept for eight seconds of its own, not for the host's three hours.
    assert!((8_000..600_000).contains(&set.slept_ms), "{set:?}");
    let (name, distance) = ended.one(|event| {
        if let Event::Phc { name, distance } = event { Some((name.clone(), *distance)) } else { None }
    });
    println!("{host}: {name}: {distance} ns");
    assert_eq!(name, "OpenBSD vmmci");
    assert!(distance < 5_000_000, "{distance} ns");
}

/// The host sleeps twice. Its TSC, and the guest's with it, counts on for hours the first time (suspend to idle), and
/// begins anew the second time (S3): then nothing may wait until the TSC is where it was.
fn time_goes_on_after_naps(host: &str) {
    let guest = Guest::ours();
    let run = guest.run(&format!("driver-naps-{host}"), "driver naps poweroff", &["--host", host]);
    run.waiting("naps");
    for (nap, tsc) in ["runs", "resets"].into_iter().enumerate() {
        run.obey(&["suspend", "--for", "3h", "--tsc", tsc]);
        run.wait_for_events(nap + 1, |event| matches!(event, Event::Nap(_)));
    }
    let ended = run.end().assert_status(0);
    for nap in ended.all(|event| if let Event::Nap(nap) = event { Some(nap.clone()) } else { None }) {
        println!("{host}: {nap:?}");
        // Under an emulated processor it may have been put aside for a while.
        assert!(nap.used_ms >= 50, "{nap:?}");
        assert!((1000..3000).contains(&nap.slept_ms), "{nap:?}");
        assert!(nap.offset_us.abs() < 50_000, "{nap:?}");
        assert!(nap.back_ms < 50, "{nap:?}");
    }
}

#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn time_goes_on_after_a_nap_that_reset_the_tsc(#[values("7.8", "8.0")] host: &str) {
    time_goes_on_after_naps(host);
}

#[rstest]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_time_goes_on_after_a_nap(#[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    time_goes_on_after_naps(host);
}

/// Shows the guest so many commands with the driver bound, and as many while it loses the device and gets it back.
fn storm(name: &str, times: usize) {
    let guest = Guest::ours();
    let words = "driver rebind stay counts churn poweroff";
    let mut run = guest.run_with(name, words, "vmmci.grace=0 loglevel=5", &[]);
    let commands = storm::commands(times);
    run.waiting("counts");
    storm::show(name, &commands);
    storm::show(name, &storm::CALM);
    run.send(b"done\n");
    run.waiting("churn");
    storm::churn(&mut run, &commands);
    let ended = run.end().assert_status(0);
    let counts =
        ended.all(|event| if let Event::Counts(counts) = event { Some(counts.clone()) } else { None });
    let [bound, churned] = &counts[..] else { panic!("{counts:?}") };
    assert_eq!((bound.rebound.is_some(), churned.rebound.is_some()), (false, true));
    for counts in [bound, churned] {
        println!("{counts:?}");
        only_what_was_asked_was_done(counts, &commands);
    }
    let least = i64::try_from(times / storm::CHURN).unwrap();
    assert!(churned.rebound >= Some(least), "{churned:?}");
    the_log_is_short(&ended);
}

/// The guest obeyed commands that it was shown, and no others.
fn only_what_was_asked_was_done(counts: &Counts, commands: &[(u32, u32)]) {
    for (done, counter, value) in [
        (Some(counts.poweroff), "shutdown_commands", 1),
        (Some(counts.reboot), "reboot_commands", 2),
        (None, "syncrtc_commands", 3),
    ] {
        let sent = commands.iter().filter(|(shown, _)| *shown == value).count();
        // A driver that finds a command when it gets the device cannot know that another one has obeyed it.
        let most = i64::try_from(sent).unwrap() + counts.rebound.unwrap_or(0);
        let counted = counts.driver[counter];
        assert!((1..=most).contains(&counted), "{counter}: {counts:?}");
        // What a driver has counted last is lost with it.
        let asked = if counts.rebound.is_some() { most } else { counted };
        assert!(done.is_none_or(|done| done <= asked), "{counter}: {counts:?}");
    }
    assert!(counts.poweroff + counts.reboot > 0, "{counts:?}");
    // The clock was right all the time, but for what it may have been off by at boot.
    assert!(counts.step_ms < 1000, "{counts:?}");
    // KiB. A leak of one small object for each command would show in 10,000 of them.
    assert!(counts.slab_growth < 600, "{counts:?}");
}

/// The kernel wrote of unknown commands once for each binding, and nothing of errors.
fn the_log_is_short(ended: &Ended) {
    const UNKNOWN: &str = "ignored, like all that follow";
    let [counting, churning] = ["counts", "churn"].map(|word| Event::Waiting(word.to_owned()));
    let (storm, churned) = (ended.seen.after(&counting), ended.seen.after(&churning));
    let bound = &storm[..storm.len() - churned.len()];
    assert_eq!(bound.matches(UNKNOWN).count(), 1, "{}", ended.everything());
    let again = ended.all(|event| (*event == Event::Again).then_some(())).len();
    assert!(churned.matches(UNKNOWN).count() <= again + 1, "{}", ended.everything());
    assert!(!storm.contains("Call Trace") && !storm.contains("nobody cared"), "{storm}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn three_hundred_commands_in_no_order_do_no_harm() {
    storm("driver-storm", 300);
}

#[test]
#[ignore = "shows twice ten thousand commands: make long-test"]
fn long_ten_thousand_commands_in_no_order_do_no_harm() {
    storm("driver-long-storm", 10_000);
}
