//! vmmcid on Debian's stock kernels, with busybox as init, on every generation of vmd.

use debian_archive::Debian;
use guest_tests::{
    daemon::{DaemonGuest, SystemdGuest, Trace, busybox},
    event::Event,
    run::{Ended, program},
    storm,
};
use rstest::rstest;
use support::{cache::Cache, progress::Quiet};
use vmmci_protocol::register;

/// Debian's stock kernels, by suite, and what each needs on its command line.
const STOCK: [(&str, &str); 3] = [
    ("bookworm", ""),
    ("trixie", ""),
    // Dies on the real vmd without this, too.
    ("trixie-backports", "initcall_blacklist=print_s5_reset_status_mmio"),
];

const OBEYS: &str = "DRIVER_OK is set: the host sends commands";
/// The least that vmd gives a guest for its answer, less the host's rounding of it.
const PATIENCE: u64 = 2_900_000_000;

fn guest(suite: &str) -> DaemonGuest {
    let cache = Cache::user().unwrap();
    let kernel = Debian::new(&cache, suite, &Quiet).kernel("linux-image-cloud-amd64").unwrap();
    DaemonGuest::new(kernel.vmlinuz, &busybox(&cache), &program("clockwatch"))
}

/// What a stock kernel has to be told to have a clock at all: up to 7.7 nothing else says how fast the TSC is, and of the
/// ticks that are counted then most are lost. docs/reference/troubleshooting.md has this remedy.
fn clock_parameters(host: &str) -> String {
    match host {
        "7.7" => {
            let hz = vmm::host_tsc_hz().expect("the TSC of this host is invariant");
            format!("clocksource=tsc tsc=reliable tsc_early_khz={}", hz.get() / 1000)
        }
        _ => String::new(),
    }
}

/// Idle, a host that sleeps for three hours, and a stop: what a laptop's guest sees in a day.
fn a_day((suite, parameters): (&str, &str), host: &str) {
    let guest = guest(suite);
    let parameters = format!("{parameters} {}", clock_parameters(host));
    let run = guest.run(&format!("day-{suite}-{host}"), host, "everything", &parameters);
    run.expect(OBEYS);
    run.done("idle");
    run.waiting("clockwatch");
    run.obey(&["suspend", "--for", "3h"]);
    run.expect_events(&Event::ConnectionLives, 1);
    run.expect("hook: after-resume 10");
    run.done("sleep");
    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);
    assert_log(
        &ended,
        &[
            "vmmcid: the clock was set by +10",
            "vmmcid: the host wants the guest to stop or reboot (REBOOT): acknowledged",
            "hook: before-stop reboot",
            "vmmcid: busybox init was asked to go down",
        ],
    );
    assert!(ended.has(&shutdown()), "{}", ended.everything());
    let steps = ended.all(|event| if let Event::SetBy(seconds) = event { Some(*seconds) } else { None });
    assert!(steps.first().is_some_and(|step| (10_790..10_900).contains(step)), "{}", ended.everything());
    let back = ended.all(|event| if let Event::WentBack(nanos) = event { Some(*nanos) } else { None });
    assert_eq!(back, [0; 0], "{}", ended.everything());
    let right = ended.all(|event| match event {
        Event::Right { after_ms, off_us } => Some((*after_ms, *off_us)),
        _ => None,
    });
    let trace = guest.trace();
    let (rate, waited) = (trace.idle_rate(), trace.acknowledged_within(2));
    println!(
        "{suite} on {host}: {rate:.3} exits/s, stop acknowledged within {} ms, clock right after ms and off by us {right:?}, \
         looks until SYNCRTC {}",
        waited / 1_000_000,
        looks_until_sync(&trace),
    );
    assert!(!right.is_empty(), "{}", ended.everything());
    assert!(rate <= 2.0, "{rate} exits a second");
    assert!(waited < PATIENCE, "acknowledged within {waited} ns");
    // The host sends SYNCRTC within a second or so of its own; the daemon's part are its looks until it saw it.
    assert!(looks_until_sync(&trace) <= 3);
}

/// The event of an init that takes the system down.
fn shutdown() -> Event {
    Event::Waiting("shutdown".to_owned())
}

/// Checks that the log of the daemon and its hooks has these texts.
#[track_caller]
fn assert_log(ended: &Ended, texts: &[&str]) {
    for text in texts {
        assert!(ended.console().contains(text), "no `{text}` in:\n{}", ended.everything());
    }
}

/// How often the daemon found no command after the host's clock had jumped, until it found SYNCRTC.
fn looks_until_sync(trace: &Trace) -> usize {
    let first = trace.position(register::SECONDS, false, |_| true).unwrap();
    let before = trace.0[first].value;
    let jumped = trace.position(register::SECONDS, false, |seconds| seconds > before + 10_000).unwrap();
    let synced = trace.position(register::COMMAND, false, |command| command == 3).unwrap();
    let looks = trace.0.get(jumped..synced).unwrap_or_default();
    looks.iter().filter(|access| access.register == register::COMMAND).count()
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_day_on_7_8() {
    a_day(STOCK[1], "7.8");
}

#[rstest]
#[case::with_6_1(STOCK[0])]
#[case::with_6_12(STOCK[1])]
#[case::with_7_3(STOCK[2])]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_a_day(#[case] kernel: (&str, &str), #[values("7.7", "7.8", "7.9", "8.0")] host: &str) {
    a_day(kernel, host);
}

#[rstest]
#[case::with_6_1(STOCK[0])]
#[case::with_6_12(STOCK[1])]
#[case::with_7_3(STOCK[2])]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_poweroff_in_the_guest_ends_the_vm(
    #[case] kernel: (&str, &str),
    #[values("7.7", "7.8", "7.9", "8.0")] host: &str,
) {
    let (suite, parameters) = kernel;
    let guest = guest(suite);
    let ended =
        guest.run(&format!("off-{suite}-{host}"), host, "poweroff", parameters).end().assert_status(0);
    assert!(ended.has(&shutdown()), "{}", ended.everything());
}

#[rstest]
#[case::with_6_1(STOCK[0])]
#[case::with_6_12(STOCK[1])]
#[case::with_7_3(STOCK[2])]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_poweroff_in_the_guest_can_be_announced(
    #[case] kernel: (&str, &str),
    #[values("7.7", "7.8", "7.9", "8.0")] host: &str,
) {
    let (suite, parameters) = kernel;
    let guest = guest(suite);
    let ended =
        guest.run(&format!("tell-{suite}-{host}"), host, "announce", parameters).end().assert_status(0);
    assert!(ended.has(&Event::Done("powering-off".to_owned())), "{}", ended.everything());
    assert!(guest.trace().position(register::COMMAND, true, |command| command == 1).is_some());
    assert!(ended.errors.contains("announced its shutdown"), "{}", ended.errors);
}

#[test]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_a_busy_guest_answers_in_time() {
    let (suite, parameters) = STOCK[1];
    let guest = guest(suite);
    let run = guest.run("busy", "7.8", "busy", parameters);
    run.waiting("busy");
    run.obey(&["stop"]);
    run.end().assert_status(0);
    let waited = guest.trace().acknowledged_within(2);
    println!("busy: acknowledged within {} ms", waited / 1_000_000);
    assert!(waited < PATIENCE, "{waited}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_an_init_that_does_not_listen_is_gone_round() {
    let (suite, parameters) = STOCK[1];
    let guest = guest(suite);
    let parameters = format!("{parameters} vmmcid=--force-after,30s rdinit=/etc/stuck");
    let run = guest.run("stuck", "7.8", "stop", &parameters);
    run.expect(OBEYS);
    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);
    assert_log(&ended, &["vmmcid: the system has not gone down in time: it is taken down by force"]);
    assert!(!ended.has(&shutdown()), "{}", ended.everything());
}

#[test]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_people_may_ask_the_daemon_and_it_has_few_rights() {
    let (suite, parameters) = STOCK[1];
    let guest = guest(suite);
    let run = guest.run("people", "7.8", "tell", parameters);
    run.waiting("tell");
    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);
    for event in ["status for a user", "a second daemon: 1"] {
        assert!(ended.has(&Event::Done(event.to_owned())), "{event}: {}", ended.everything());
    }
    assert_log(
        &ended,
        &[
            "ok   device",
            "ok   registers",
            "ok   init          busybox init; powers off with",
            "commands  0 shutdown, 0 stop or reboot, 0 clock sync, 0 unknown",
            "the host, to",
            "vmmcid is already running",
            "Uid:\t65521\t65521\t65521\t65521",
            "CapPrm:\t0000000002000000",
            "CapBnd:\t0000000000000000",
            "Seccomp:\t2",
        ],
    );
}

#[test]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_the_device_goes_and_comes_back() {
    let (suite, parameters) = STOCK[1];
    let guest = guest(suite);
    let run = guest.run("rebind", "7.8", "rebind", parameters);
    run.done("rebind");
    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);
    assert_log(
        &ended,
        &["vmmcid: the device works again", "vmmcid: the device cannot be used: No such device"],
    );
    for once in ["unknown command 0xffffffff ignored", "vmmcid: the device is gone:"] {
        assert_eq!(ended.console().matches(once).count(), 1, "{once}: {}", ended.everything());
    }
}

#[rstest]
#[case::with_6_1(STOCK[0])]
#[case::with_6_12(STOCK[1])]
#[case::with_7_3(STOCK[2])]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_three_thousand_commands_in_no_order_do_no_harm(#[case] kernel: (&str, &str)) {
    let (suite, parameters) = kernel;
    let name = format!("storm-{suite}");
    let parameters = format!("{parameters} vmmcid=--config,/etc/storm.toml");
    let guest = guest(suite);
    let mut run = guest.run(&name, "7.8", "storm", &parameters);
    run.waiting("storm");
    storm::show(&name, &[(2, 1)]);
    run.expect("the host wants the guest to stop or reboot (REBOOT): acknowledged");
    for (index, commands) in storm::commands(3000).chunks(1000).enumerate() {
        storm::show(&name, commands);
        storm::show(&name, &storm::CALM);
        run.expect_events(&Event::Again, index + 1);
    }
    run.send(b"\n");
    let ended = run.end().assert_status(0);
    let log = ended.console();
    // Once, however often it was told.
    assert!(ended.has(&Event::Done("told: 1".to_owned())), "{}", ended.everything());
    assert!(!log.contains("by force"), "{}", ended.everything());
    // At boot the clock may be wrong by a second or two.
    assert!(log.matches("the clock was set").count() <= 1, "{}", ended.everything());
    // A daemon knows what it has said until it has lost the device.
    for seldom in ["unknown command", "the host wants the guest to stop or reboot (REBOOT)"] {
        assert!((1..=4).contains(&log.matches(seldom).count()), "{seldom}: {}", ended.everything());
    }
    println!("{suite}: {} lines of log", log.matches("vmmcid: ").count());
}

/// Types a command into a root shell on the console.
fn type_in(run: &mut guest_tests::run::Run, command: &str) {
    run.send(command.as_bytes());
    run.send(b"\n");
}

#[test]
#[ignore = "makes and boots a Debian with systemd: make long-test"]
fn long_systemd_goes_down_in_order_and_its_journal_shows_it() {
    let cache = Cache::user().unwrap();
    let kernel = Debian::new(&cache, "trixie", &Quiet).kernel("linux-image-cloud-amd64").unwrap();
    let guest = SystemdGuest::new("trixie", &kernel, &busybox(&cache));
    let mut run = guest.run("systemd-stop", "7.8");
    run.expect("initrd: the package is installed");
    run.expect("guest login: ");
    type_in(&mut run, "root");
    run.expect("# ");
    type_in(
        &mut run,
        "systemctl is-active --quiet vmmcid && echo runs-$((1+1)); vmmcid status; vmmcid test; echo told-$((1+1))",
    );
    run.expect("told-2");
    run.obey(&["stop"]);
    let ended = run.end().assert_status(0);
    assert_log(&ended, &["runs-2"]);
    assert!(!ended.console().contains("FAIL "), "{}", ended.everything());
    println!("systemd: acknowledged within {} ms", guest.trace().acknowledged_within(2) / 1_000_000);

    let mut run = guest.run("systemd-off", "7.8");
    run.expect("guest login: ");
    type_in(&mut run, "root");
    run.expect("# ");
    type_in(
        &mut run,
        "journalctl --no-pager -o cat -b -1 -n 60; journalctl --no-pager -o cat -b -1 -u vmmcid; echo told-$((1+1))",
    );
    run.expect("told-2");
    type_in(&mut run, "poweroff");
    let ended = run.end().assert_status(0);
    assert!(ended.errors.contains("announced its shutdown"), "{}", ended.errors);
    assert_log(
        &ended,
        &[
            "initrd: the file system was clean",
            "the host wants the guest to stop or reboot (REBOOT): acknowledged",
            "systemd was asked to go down: systemctl -i --no-block reboot",
            "Reached target reboot.target - System Reboot",
        ],
    );
    assert!(
        guest.trace().position(register::COMMAND, true, |command| command == 1).is_some(),
        "the host was not told"
    );
}
