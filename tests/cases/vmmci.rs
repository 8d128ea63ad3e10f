//! The control device from end to end: `vmmlinux ctl` on the host's side, the protocol crate's driver in the guest.

use guest_tests::{event::Event, run::Guest};

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_stop_is_acknowledged_and_the_guest_goes_down_by_itself() {
    let guest = Guest::debian();
    let run = guest.run("vmmci-stop", "vmmci poweroff", &[]);
    run.waiting("vmmci");
    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);
    assert!(ended.has(&Event::ToldToGoDown), "{}", ended.everything());
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn an_unacknowledged_stop_ends_by_force() {
    let guest = Guest::debian();
    let run = guest.run("vmmci-deaf", "deaf wait", &[]);
    run.done("deaf");
    run.obey(&["stop"]);
    run.end().assert_status(4);
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn after_a_suspend_the_guest_is_told_that_it_is_behind() {
    let guest = Guest::debian();
    let run = guest.run("vmmci-suspend", "vmmci poweroff", &[]);
    run.waiting("vmmci");
    run.obey(&["suspend", "--for", "3h"]);
    run.wait_for_events(1, |event| matches!(event, Event::Behind(_)));
    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);
    let behind = ended.all(|event| if let Event::Behind(seconds) = event { Some(*seconds) } else { None });
    assert!((10_800..10_900).contains(&behind[0]), "{behind:?}");
}
