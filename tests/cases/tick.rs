//! The tick of our kernel on hosts without local APIC: short sleeps, and what an idle guest costs.

use std::collections::BTreeMap;

use guest_tests::{
    event::Event,
    marks::Marks,
    run::{Ended, Guest},
};
use rstest::rstest;

/// Microseconds that a sleep took, by what was asked for.
fn sleeps(ended: &Ended) -> BTreeMap<u64, u64> {
    let sleeps = ended.all(|event| match event {
        Event::Slept { asked, quartile, .. } => Some((*asked, *quartile)),
        _ => None,
    });
    assert_eq!(sleeps.len(), 7, "{}", ended.everything());
    sleeps.into_iter().collect()
}

/// Short sleeps take two ticks of the host. The bound lies between what a kernel with Linux's driver of the 8254 does (28 ms
/// and more with a host of 100 Hz) and what ours does (20 ms).
#[rstest]
#[case::on_7_7("7.7", 100)]
#[case::on_7_8("7.8", 100)]
#[case::on_7_9_with_1000_ticks("7.9", 1000)]
#[case::on_8_0("8.0", 100)]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn short_sleeps(#[case] host: &str, #[case] hz: u64) {
    let arguments = ["--host", host, "--host-hz", &hz.to_string()];
    let ended =
        Guest::ours().run(&format!("tick-{host}-{hz}"), "sleeps poweroff", &arguments).end().assert_status(0);
    let tick = 1_000_000 / hz;
    for (asked, took) in sleeps(&ended) {
        let late = took.checked_sub(asked).expect("no sleep is too short");
        // Two ticks of the host, the overshoot of a long sleep, and what this machine is late by.
        assert!(late <= 2 * tick + asked / 64 + 5_000, "{asked} us took {took} us\n{}", ended.everything());
    }
}

/// An idle guest leaves its host alone: at most 4 interrupts and 40 exits a second, and 23 and 172 with Linux's driver of the
/// 8254. That is when it has come to rest; right after boot it is twice as many (`docs/reference/time.md`).
#[rstest]
#[ignore = "lets a guest rest for three minutes, on a computer that does nothing else: make long-test"]
fn long_an_idle_guest_rests(#[values("7.7", "7.8", "7.9")] host: &str) {
    let arguments = ["--host", host, "--marks"];
    let ended = Guest::ours()
        .run(&format!("idle-{host}"), "sleeps settle idle poweroff", &arguments)
        .end()
        .assert_status(0);
    let interrupts = ended.one(|event| if let Event::Interrupts(came) = event { Some(*came) } else { None });
    let exits = Marks::of(&ended).exits_from(0);
    println!("{host}: {interrupts} interrupts, {exits} exits in 10 s");
    assert!(interrupts <= 40 && exits <= 400, "{interrupts}, {exits}\n{}", ended.everything());
}

/// Sleeps end and a disk is read, whichever 8253 and whichever feature words 7.9 has.
#[rstest]
#[case::with_the_corrected_8253("--corrected-pit")]
#[case::with_feature_words_of_ones("--feature-ones")]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn either_answer_of_7_9_serves(#[case] choice: &str) {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let arguments = ["--host", "7.9", choice, "--disk", disk.path().to_str().unwrap()];
    let ended = Guest::ours()
        .run(&format!("either{choice}"), "disk sleeps poweroff", &arguments)
        .end()
        .assert_status(0);
    assert!(ended.has(&Event::Done("disk".to_owned())), "{}", ended.everything());
    sleeps(&ended);
}

/// Neither jiffies nor the date are counted by ticks, half of which a host of 100 Hz loses. Jiffies are as old as the last
/// tick, which comes late on a busy computer: a tenth is allowed.
#[rstest]
#[case::oneshot("oneshot", "")]
#[case::periodic("periodic", "nohz=off highres=off")]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn jiffies_follow_the_clock(#[case] name: &str, #[case] parameters: &str) {
    let ended = Guest::ours()
        .run_with(&format!("tick-{name}"), "busy ticks poweroff", parameters, &[])
        .end()
        .assert_status(0);
    let (monotonic, realtime, jiffies) = ended.one(|event| match event {
        Event::Passed { monotonic, realtime, jiffies } => Some((*monotonic, *realtime, *jiffies)),
        _ => None,
    });
    assert!(monotonic.abs_diff(realtime) <= monotonic / 10, "{}", ended.everything());
    assert!((jiffies * 10).abs_diff(monotonic) <= monotonic / 10, "{}", ended.everything());
    // A second thread of a busy guest gets its turn whenever the host lets the guest tick: 150 times in 3 s.
    let slept = ended.one(|event| if let Event::SleptBeside(times) = event { Some(*times) } else { None });
    assert!(slept >= 75, "{}", ended.everything());
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn a_pause_does_not_stop_the_tick() {
    let guest = Guest::ours();
    let run = guest.run("tick-pause", "idle sleeps poweroff", &[]);
    run.waiting("idle");
    for order in ["pause", "unpause"] {
        run.obey(&[order]);
    }
    sleeps(&run.end().assert_status(0));
}

#[test]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn linuxs_driver_of_the_8254_takes_over_when_told_to() {
    let guest = Guest::ours();
    let ended =
        guest.run_with("tick-off", "sleeps poweroff", "openbsd_timer=off", &[]).end().assert_status(0);
    assert!(sleeps(&ended)[&10_000] > 25_000, "{}", ended.everything());
}

/// The scheduler's clock runs from the first messages on. On a real vmd 7.8, all messages between 0.30 and 0.47 s bore one
/// time with an earlier kernel. A few messages in a row may come within one microsecond.
#[rstest]
#[ignore = "boots a guest in the helper VM: make e2e"]
fn times_of_early_messages_advance(#[values("7.8", "8.0")] host: &str) {
    let ended = Guest::ours()
        .run_with(&format!("early-{host}"), "early poweroff", "loglevel=4", &["--host", host])
        .end()
        .assert_status(0);
    let times =
        ended.one(|event| if let Event::MessageTimes(times) = event { Some(times.clone()) } else { None });
    // Before the TSC's rate is known there is no clock at all.
    let running: Vec<_> = times.iter().copied().skip_while(|time| *time == 0).collect();
    let longest = running.chunk_by(|one, next| one == next).map(<[u64]>::len).max();
    println!(
        "{host}: {} messages, {} of them with a time, at most {longest:?} with one",
        times.len(),
        running.len()
    );
    assert!(running.len() >= 40, "{times:?}");
    assert!(running.is_sorted(), "{times:?}");
    assert!(longest <= Some(5), "{times:?}");
}
