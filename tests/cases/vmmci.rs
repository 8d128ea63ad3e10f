//! The control device from end to end: `vmmlinux ctl` on the host's side, the protocol crate's driver in the guest.

use guest_tests::run::{Guest, program};

const ON: &str = "guest: the control device is on";

fn guest() -> Guest {
    Guest::new(&program("guest"))
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_stop_is_acknowledged_and_the_guest_goes_down_by_itself() {
    let guest = guest();
    let run = guest.run("vmmci-stop", "vmmci poweroff", &[]);
    run.expect(ON);
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    assert!(console.contains("guest: told to go down"), "{console}\n{errors}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_stop_that_nobody_acknowledges_ends_by_force() {
    let guest = guest();
    let run = guest.run("vmmci-deaf", "deaf wait", &[]);
    run.expect(ON);
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 4, "{console}\n{errors}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn after_a_suspend_the_guest_is_told_that_it_is_behind() {
    let guest = guest();
    let run = guest.run("vmmci-suspend", "vmmci poweroff", &[]);
    run.expect(ON);
    run.obey(&["suspend", "--for", "3h"]);
    run.expect("guest: behind by");
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    let behind = console.split_once("guest: behind by ").and_then(|(_, rest)| rest.split_once(" s"));
    let behind: i64 = behind.unwrap().0.parse().unwrap();
    assert!((10_800..10_900).contains(&behind), "{behind}");
}
