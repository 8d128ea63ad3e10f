//! More than one CPU, as 8.0 has them: our kernel starts, uses and stops them.

use std::process::Command;

use guest_tests::{
    event::{Cpu, Event},
    run::{Ended, Guest, vmmlinux},
};
use rstest::rstest;

/// What each CPU did, in all lives of the guest.
fn cpus(ended: &Ended) -> Vec<Cpu> {
    ended.all(|event| if let Event::Cpu(cpu) = event { Some(*cpu) } else { None })
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn two_processors_work_pause_reboot_and_stop() {
    let guest = Guest::ours();
    let mut run = guest.run("smp", "driver cpus hotplug echo reset", &["--host", "8.0", "--cpus", "2"]);
    let hotplug = Event::Done("hotplug".to_owned());
    run.expect_events(&hotplug, 1);
    let status = run.status();
    assert_eq!((&status["vcpus"], &status["state"]), (&2.into(), &"running".into()));
    for (order, state) in [("pause", "paused"), ("unpause", "running")] {
        run.obey(&[order]);
        assert_eq!(run.status()["state"], state);
    }
    run.send(b"once more\n");
    run.expect("ONCE MORE");
    run.expect_events(&hotplug, 2);
    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);

    assert_eq!(ended.reason(), vmm::ExitReason::Stopped);
    let online = ended.all(|event| if let Event::Online(list) = event { Some(list.clone()) } else { None });
    assert_eq!(online, ["0-1", "0-1"]);
    let cpus = cpus(&ended);
    assert_eq!(cpus.iter().map(|cpu| cpu.number).collect::<Vec<_>>(), [0, 1, 0, 1]);
    for cpu in cpus {
        // It computed for half a second, at 100 ticks a second that a loaded host may count for itself.
        assert!(cpu.busy > 5 && cpu.timer > 5 && cpu.sent > 5, "{cpu:?}");
    }
}

/// Eight of the 64 that there can be, on a machine that has two or so: they start, one after the other.
#[test]
#[ignore = "boots a guest with many CPUs in the helper VM: make long-test"]
fn long_eight_processors_start() {
    let guest = Guest::ours();
    let run = guest.run("smp-many", "cpus poweroff", &["--host", "8.0", "--cpus", "8"]);
    let ended = run.end().assert_status(0);
    assert!(ended.has(&Event::Online("0-7".to_owned())), "{}", ended.everything());
    assert_eq!(ended.reason(), vmm::ExitReason::PoweredOff);
}

#[rstest]
#[case("7.8", "2")]
#[case("7.9", "64")]
#[ignore = "needs the program: make e2e"]
fn a_number_of_processors_that_the_host_does_not_have_is_refused(#[case] host: &str, #[case] cpus: &str) {
    let output = Command::new(vmmlinux())
        .args(["run", "--host", host, "--cpus", cpus, "--kernel", "/nowhere"])
        .output()
        .expect("vmmlinux starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("cannot have {cpus} processors")), "{said}");
    assert!(said.contains("--host 8.0"), "{said}");
}
