//! vmmcid on Debian's stock kernels, with busybox as init, on every generation of vmd.

use debian_archive::Debian;
use guest_tests::{
    daemon::{DaemonGuest, SystemdGuest, Trace, busybox},
    run::program,
    storm,
};
use support::{cache::Cache, progress::Quiet};
use vmmci_protocol::register;

/// Debian's stock kernels, by suite, and what each needs on its command line.
const STOCK: [(&str, &str); 3] = [
    ("bookworm", ""),
    ("trixie", ""),
    // Dies on the real vmd without this, too.
    ("trixie-backports", "initcall_blacklist=print_s5_reset_status_mmio"),
];
const HOSTS: [&str; 4] = ["7.7", "7.8", "7.9", "8.0"];

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
fn a_day(suite: &str, parameters: &str, host: &str) {
    let guest = guest(suite);
    let parameters = format!("{parameters} {}", clock_parameters(host));
    let run = guest.run(&format!("day-{suite}-{host}"), host, "everything", &parameters);
    run.expect(OBEYS);
    run.expect("guest: idle no more");
    run.expect("clockwatch: on");
    run.obey(&["suspend", "--for", "3h"]);
    run.expect("clockwatch: the connection lives");
    run.expect("hook: after-resume 10");
    run.expect("guest: a sleeper woke up");
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    for expected in [
        "vmmcid: the clock was set by +10",
        "vmmcid: the host wants the guest to stop or reboot (REBOOT): acknowledged",
        "hook: before-stop reboot",
        "vmmcid: busybox init was asked to go down",
        "guest: init takes the system down",
    ] {
        assert!(console.contains(expected), "no `{expected}` in:\n{console}\n{errors}");
    }
    assert!(!console.contains("went back"), "{console}");
    let step = console.split("clockwatch: set by ").nth(1).and_then(|rest| rest.split(' ').next());
    let step: u32 = step.unwrap_or_else(|| panic!("{console}")).parse().unwrap();
    assert!((10_790..10_900).contains(&step), "{console}");
    let trace = guest.trace();
    let (rate, waited) = (trace.idle_rate(), trace.acknowledged_within(2));
    let right =
        console.split("clockwatch: right after ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
    println!(
        "{suite} on {host}: {rate:.3} exits/s, stop acknowledged within {} ms, clock right after {right}, looks until SYNCRTC {}",
        waited / 1_000_000,
        looks_until_sync(&trace),
    );
    assert!(rate <= 2.0, "{rate} exits a second");
    assert!(waited < PATIENCE, "acknowledged within {waited} ns");
    // The host sends SYNCRTC within a second or so of its own; the daemon's part are its looks until it saw it.
    assert!(looks_until_sync(&trace) <= 3);
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
    let (suite, parameters) = STOCK[1];
    a_day(suite, parameters, "7.8");
}

fn a_day_on_every_host((suite, parameters): (&str, &str)) {
    for host in HOSTS {
        a_day(suite, parameters, host);
    }
}

#[test]
#[ignore = "boots four guests: make long-test"]
fn long_a_day_on_every_host_with_6_1() {
    a_day_on_every_host(STOCK[0]);
}

#[test]
#[ignore = "boots four guests: make long-test"]
fn long_a_day_on_every_host_with_6_12() {
    a_day_on_every_host(STOCK[1]);
}

#[test]
#[ignore = "boots four guests: make long-test"]
fn long_a_day_on_every_host_with_7_3() {
    a_day_on_every_host(STOCK[2]);
}

#[test]
#[ignore = "boots twenty-four guests: make long-test"]
fn long_poweroff_in_the_guest_ends_the_vm_and_can_be_announced() {
    for (suite, parameters) in STOCK {
        let guest = guest(suite);
        for host in HOSTS {
            let name = format!("off-{suite}-{host}");
            let (status, console, errors) = guest.run(&name, host, "poweroff", parameters).end();
            assert_eq!(status, 0, "{console}\n{errors}");
            assert!(console.contains("guest: init takes the system down"), "{console}");
            let name = format!("tell-{suite}-{host}");
            let (status, console, errors) = guest.run(&name, host, "announce", parameters).end();
            assert_eq!(status, 0, "{console}\n{errors}");
            assert!(console.contains("guest: the host knows"), "{console}");
            assert!(guest.trace().position(register::COMMAND, true, |command| command == 1).is_some());
            assert!(errors.contains("announced its shutdown"), "{errors}");
            println!("{suite} on {host}: ended, and ended as announced");
        }
    }
}

#[test]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_a_busy_guest_answers_in_time() {
    let (suite, parameters) = STOCK[1];
    let guest = guest(suite);
    let run = guest.run("busy", "7.8", "busy", parameters);
    run.expect("guest: busy");
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    let waited = guest.trace().acknowledged_within(2);
    println!("busy: acknowledged within {} ms", waited / 1_000_000);
    assert!(waited < PATIENCE, "{waited}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_an_init_that_does_not_listen_is_gone_round() {
    let (suite, parameters) = STOCK[1];
    let guest = guest(suite);
    let run = guest.run(
        "stuck",
        "7.8",
        "stop",
        &format!("{parameters} vmmcid=--force-after,30s rdinit=/etc/stuck"),
    );
    run.expect(OBEYS);
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    assert!(
        console.contains("vmmcid: the system has not gone down in time: it is taken down by force"),
        "{console}"
    );
    assert!(!console.contains("guest: init takes"), "{console}");
}

#[test]
#[ignore = "boots a guest in the helper VM: make long-test"]
fn long_people_and_the_device_come_and_go() {
    let (suite, parameters) = STOCK[1];
    let guest = guest(suite);
    let run = guest.run("people", "7.8", "tell", parameters);
    run.expect("guest: told");
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    for expected in [
        "ok   device",
        "ok   registers",
        "ok   init          busybox init; powers off with",
        "commands  0 shutdown, 0 stop or reboot, 0 clock sync, 0 unknown",
        "the host, to",
        "guest: everybody may ask",
        "vmmcid is already running",
        "guest: a second one ends with 1",
        "CapPrm:\t0000000002000000",
        "CapBnd:\t0000000000000000",
        "Seccomp:\t2",
    ] {
        assert!(console.contains(expected), "no `{expected}` in:\n{console}\n{errors}");
    }

    let run = guest.run("rebind", "7.8", "rebind", parameters);
    run.expect("guest: the device is back");
    run.obey(&["stop"]);
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    assert!(console.contains("vmmcid: the device works again"), "{console}");
    assert!(console.contains("vmmcid: the device cannot be used: No such device"), "{console}");
    for once in ["unknown command 0xffffffff ignored", "vmmcid: the device is gone:"] {
        assert_eq!(console.matches(once).count(), 1, "{once}: {console}");
    }
}

#[test]
#[ignore = "boots guests in the helper VM: make long-test"]
fn long_three_thousand_commands_in_no_order_do_no_harm() {
    for (suite, parameters) in STOCK {
        let (name, parameters) =
            (format!("storm-{suite}"), format!("{parameters} vmmcid=--config,/etc/storm.toml"));
        let guest = guest(suite);
        let mut run = guest.run(&name, "7.8", "storm", &parameters);
        run.expect("guest: in the storm");
        storm::show(&name, &[(2, 1)]);
        run.expect("the host wants the guest to stop or reboot (REBOOT): acknowledged");
        for (index, commands) in storm::commands(3000).chunks(1000).enumerate() {
            storm::show(&name, commands);
            storm::show(&name, &storm::CALM);
            run.expect_times("guest: again", index + 1);
        }
        run.send(b"\n");
        let (status, console, errors) = run.end();
        assert_eq!(status, 0, "{console}\n{errors}");
        // Once, however often it was told.
        assert!(console.contains("guest: told 1 times"), "{console}");
        assert!(!console.contains("by force"), "{console}");
        // At boot the clock may be wrong by a second or two.
        assert!(console.matches("the clock was set").count() <= 1, "{console}");
        // A daemon knows what it has said until it has lost the device.
        for seldom in ["unknown command", "the host wants the guest to stop or reboot (REBOOT)"] {
            assert!((1..=4).contains(&console.matches(seldom).count()), "{seldom}: {console}");
        }
        println!("{suite}: {} lines of log", console.matches("vmmcid: ").count());
    }
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
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    assert!(console.contains("runs-2"), "{console}");
    assert!(!console.contains("FAIL "), "{console}");
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
    let (status, console, errors) = run.end();
    assert_eq!(status, 0, "{console}\n{errors}");
    assert!(errors.contains("announced its shutdown"), "{errors}");
    for expected in [
        "initrd: the file system was clean",
        "the host wants the guest to stop or reboot (REBOOT): acknowledged",
        "systemd was asked to go down: systemctl -i --no-block reboot",
        "Reached target reboot.target - System Reboot",
    ] {
        assert!(console.contains(expected), "no `{expected}` in:\n{console}\n{errors}");
    }
    assert!(
        guest.trace().position(register::COMMAND, true, |command| command == 1).is_some(),
        "the host was not told"
    );
}
