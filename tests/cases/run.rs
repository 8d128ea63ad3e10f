//! `vmmlinux run` and `vmmlinux ctl`, with guests that boot in the helper VM.

use std::fs;

use guest_tests::{event::Event, run::Guest};
use vmm::ExitReason;

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn piped_input_reaches_the_guest_and_its_end_does_not_end_it() {
    let guest = Guest::debian();
    let mut run = guest.run("e2e-echo", "echo poweroff", &[]);
    run.ready();
    run.send(b"hello guest\n");
    run.close_input();
    run.expect("HELLO GUEST");
    let ended = run.end().assert_status(0);
    assert!(matches!(ended.reason(), ExitReason::HaltedWithInterruptsOff(_)), "{}", ended.everything());
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_guests_writes_reach_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("odd,name.img");
    let mut content = b"written by the host!".to_vec();
    content.resize(1 << 20, 0);
    fs::write(&image, &content).unwrap();
    let guest = Guest::debian();
    let ended = guest
        .run("e2e-disk", "disk pci poweroff", &["-i", "-d", image.to_str().unwrap()])
        .end()
        .assert_status(0);
    assert!(ended.has(&Event::Disk("written by the host!".to_owned())), "{}", ended.everything());
    let functions = ended.one(|event| if let Event::Pci(ids) = event { Some(ids.clone()) } else { None });
    // vmd 7.8's network interface.
    assert!(functions.contains(&["0x1af4", "0x1041"].map(str::to_owned)), "{functions:?}");
    assert!(fs::read(&image).unwrap()[512..].starts_with(b"written by the guest"));
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_machine_obeys_its_control_socket() {
    let guest = Guest::debian();
    let run = guest.run("e2e-ctl", "wait", &[]);
    run.ready();
    let status = run.status();
    assert_eq!((&status["state"], &status["accel"]), (&"running".into(), &"nested".into()), "{status}");
    for (order, state) in [("pause", "paused"), ("unpause", "running")] {
        run.obey(&[order]);
        assert_eq!(run.status()["state"], state);
    }
    run.obey(&["suspend", "--for", "3h"]);
    // No vmmci driver in this guest: vmd ends such a one at once, and so do we.
    let (status, text) = run.ctl(&["stop"]);
    assert!(status.success() && text.contains("no vmmci driver"), "{text}");
    assert_eq!(run.end().assert_status(4).reason(), ExitReason::NoDriver);
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn an_access_outside_ram_is_explained() {
    // The kernel is told that its early console is at an address where vmd has nothing.
    let guest = Guest::debian();
    let parameters = "earlycon=uart8250,mmio32,0xfed80300";
    let ended = guest.run_with("e2e-mmio", "poweroff", parameters, &["--no-reboot"]).end().assert_status(3);
    assert!(ended.errors.contains("0xfed803"), "{}", ended.everything());
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_reset_ends_the_run_if_asked_to() {
    let ended = Guest::debian().run("e2e-reset", "reset", &["--no-reboot"]).end().assert_status(0);
    assert_eq!(ended.reason(), ExitReason::Reset);
}

/// As in `vmmlinux run … | head`.
#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn an_unread_console_ends_the_guest_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("unread.img");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let guest = Guest::debian();
    let run = guest.run_until("\"disk\":", "e2e-unread", "disk wait", &["-d", image.to_str().unwrap()]);
    let ended = run.end().assert_status(4);
    ended.one(|event| if let Event::Disk(_) = event { Some(()) } else { None });
    assert!(!ended.errors.contains("e2e-unread") && !ended.errors.contains("panicked"), "{}", ended.errors);
    assert!(fs::read(&image).unwrap()[512..].starts_with(b"written by the guest"));
    // QEMU's command line names it.
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
    assert_eq!(lines.find(|line| line.contains(image.to_str().unwrap())), None);
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn who_stops_a_machine_can_wait_for_its_end() {
    let guest = Guest::debian();
    let run = guest.run("e2e-stop", "wait", &[]);
    run.ready();
    run.obey(&["stop", "-f", "-w"]);
    assert_eq!(run.end().assert_status(4).reason(), ExitReason::Killed);
}
