//! An hour of work and twenty sleeps of the host, watched by a kernel that looks for lockups and stalls.

use std::{env, fs, fs::File, path::Path, thread, time::Duration};

use guest_tests::{event::Event, kernels, run::Guest};

/// How often the host sleeps, for how long, and what its TSC does meanwhile.
const NAPS: u32 = 20;
const LENGTHS: [&str; 5] = ["20s", "5m", "3h", "40m", "16h"];
const TSC: [&str; 3] = ["stands", "runs", "resets"];

/// What the kernel says when something is wrong with its time.
const COMPLAINTS: [&str; 10] = [
    "lockup",
    "stall",
    "starved",
    "unstable",
    "hung_task",
    "blocked for more than",
    "BUG",
    "WARNING",
    "Call Trace",
    "TSC warp",
];

/// One life of an hour (or `VMMLINUX_TEST_MINUTES`).
fn soak(host: &str) {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("out");
    let built = kernels::build("soak", &["core", "debug"], &out, |command| command);
    let config = fs::read_to_string(built.join("config")).unwrap();
    for needed in ["SOFTLOCKUP_DETECTOR", "DETECT_HUNG_TASK", "CLOCKSOURCE_WATCHDOG"] {
        assert!(config.contains(&format!("CONFIG_{needed}=y")), "{needed}");
    }

    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let guest = Guest::with_init("soak", built.join("bzImage"), &[], &[]);
    let minutes = env::var("VMMLINUX_TEST_MINUTES").map_or(60, |minutes| minutes.parse().unwrap());
    // What the driver did is shown, too.
    let mut run = guest.run_with(
        &format!("soak-{host}"),
        "",
        "loglevel=7",
        &["--host", host, "--disk", disk.to_str().unwrap()],
    );
    run.ready();
    let pause = Duration::from_secs(minutes * 60) / (NAPS + 1);
    for nap in 0..NAPS as usize {
        thread::sleep(pause);
        run.obey(&["suspend", "--for", LENGTHS[nap % LENGTHS.len()], "--tsc", TSC[nap % TSC.len()]]);
    }
    thread::sleep(pause);
    run.send(b"over\n");
    let ended = run.end().assert_status(0);
    println!("{host}: {}", ended.console());
    let life = ended.seen.after(&Event::Ready);
    for complaint in COMPLAINTS {
        assert!(!life.contains(complaint), "{host}: {complaint}");
    }
    let (syncrtc, offset) = ended.one(|event| match event {
        Event::Worked { syncrtc_commands, offset_ns, .. } => Some((*syncrtc_commands, *offset_ns)),
        _ => None,
    });
    assert!(syncrtc >= NAPS.into(), "{host}: the guest was not told of each sleep: {syncrtc}");
    assert!(offset.abs() < 50_000_000, "{host}: its clock is wrong by {offset} ns");
}

#[test]
#[ignore = "compiles a kernel and lets it work for an hour: make long-test"]
fn long_an_hour_of_work_and_twenty_sleeps_on_7_8() {
    soak("7.8");
}
