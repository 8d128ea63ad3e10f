//! `vmmlinux run` and `vmmlinux ctl`, with guests that boot in the helper VM.

use guest_tests::run::{Guest, Run, program};

fn guest() -> Guest {
    Guest::new(&program("guest"))
}

/// The exit status, with all that was said if it is another.
fn assert_status(run: Run, expected: i32) -> (String, String) {
    let (status, console, errors) = run.end();
    assert_eq!(status, expected, "{console}\n{errors}");
    assert!(!console.contains("guest: failed"), "{console}");
    (console, errors)
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn piped_input_reaches_the_guest_and_its_end_does_not_end_it() {
    let guest = guest();
    let mut run = guest.run("e2e-echo", "echo poweroff", &[]);
    run.expect("guest: ready");
    run.send(b"hello guest\n");
    run.close_input();
    run.expect("guest: HELLO GUEST");
    let (console, errors) = assert_status(run, 0);
    assert!(console.contains("guest: ready"), "{console}");
    assert!(errors.contains("halted with interrupts disabled"), "{errors}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_guests_writes_reach_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("odd,name.img");
    let mut content = b"written by the host!".to_vec();
    content.resize(1 << 20, 0);
    std::fs::write(&image, &content).unwrap();
    let guest = guest();
    let run = guest.run("e2e-disk", "disk pci poweroff", &["-i", "-d", image.to_str().unwrap()]);
    let (console, _) = assert_status(run, 0);
    assert!(console.contains("disk begins with `written by the host!`"), "{console}");
    // vmd 7.8's network interface.
    assert!(console.contains("pci 0x1af4:0x1041"), "{console}");
    assert!(std::fs::read(&image).unwrap()[512..].starts_with(b"written by the guest"));
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_machine_obeys_its_control_socket() {
    let guest = guest();
    let run = guest.run("e2e-ctl", "wait", &[]);
    run.expect("guest: ready");
    let text = run.obey(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&status[0]["state"], &status[0]["accel"]), (&"running".into(), &"nested".into()), "{text}");
    for (order, state) in [("pause", "paused"), ("unpause", "running")] {
        run.obey(&[order]);
        assert!(run.ctl(&["status"]).1.contains(state));
    }
    run.obey(&["suspend", "--for", "3h"]);
    // No vmmci driver in this guest: vmd ends such a one at once, and so are we.
    let (status, text) = run.ctl(&["stop"]);
    assert!(status.success() && text.contains("no vmmci driver"), "{text}");
    let (_, errors) = assert_status(run, 4);
    assert!(errors.contains("vmmci"), "{errors}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn an_access_outside_ram_is_explained() {
    // The kernel is told that its early console is at an address where vmd has nothing.
    let guest = guest();
    let run = guest.run_with("e2e-mmio", "poweroff", "earlycon=uart8250,mmio32,0xfed80300", &["--no-reboot"]);
    let (_, errors) = assert_status(run, 3);
    assert!(errors.contains("0xfed803"), "{errors}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_reset_ends_the_run_if_asked_to() {
    let guest = guest();
    let (_, errors) = assert_status(guest.run("e2e-reset", "reset", &["--no-reboot"]), 0);
    assert!(errors.contains("reset itself"), "{errors}");
}

/// As in `vmmlinux run … | head`.
#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_console_that_nobody_reads_ends_the_guest_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("unread.img");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let guest = guest();
    let run = guest.run_until("disk begins", "e2e-unread", "disk wait", &["-d", image.to_str().unwrap()]);
    let (console, errors) = assert_status(run, 4);
    assert!(console.contains("guest: disk begins"), "{console}");
    assert!(!errors.contains("e2e-unread") && !errors.contains("panicked"), "{errors}");
    assert!(std::fs::read(&image).unwrap()[512..].starts_with(b"written by the guest"));
    // QEMU's command line names it.
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut lines =
        processes.filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok());
    assert_eq!(lines.find(|line| line.contains(image.to_str().unwrap())), None);
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn who_stops_a_machine_can_wait_for_its_end() {
    let guest = guest();
    let run = guest.run("e2e-stop", "wait", &[]);
    run.expect("guest: ready");
    run.obey(&["stop", "-f", "-w"]);
    let (_, errors) = assert_status(run, 4);
    assert!(errors.contains("by force"), "{errors}");
}
