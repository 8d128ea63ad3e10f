//! `bench idle`: what a guest costs that does nothing.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use vmd_release::Generation;

use crate::{
    Kernel, Machine, Report, Result, Runner, Table, Window, event::Event, numbers::number, report::Plot,
    rounds::Rounds,
};

const HOW: [&str; 3] = [
    "A guest whose only process sleeps, and has slept for a while before it is watched; kernels take turns. Exits \
     are counted by the machine between two marks of the guest's, less what a mark costs; interrupts as /proc/interrupts counts them.",
    "Until a guest has been up for two minutes, Linux renews the key of its random numbers more often than once a minute.",
    "Per second of the host's. Medians with the range of all rounds; devices of the first round.",
];

/// One idle guest.
#[derive(Clone, Debug, Serialize)]
struct Idle {
    window: Window,
    seconds: f64,
    interrupts: BTreeMap<String, u64>,
}

/// How long guests do nothing.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Before they are watched.
    pub settle: Duration,
    /// While they are watched.
    pub watch: Duration,
}

/// Lets each kernel idle `rounds` times.
pub fn run(
    runner: &Runner,
    kernels: &[Kernel],
    host: Generation,
    rounds: u32,
    times: Times,
) -> Result<Report> {
    let Times { settle, watch } = times;
    let mut machine = Machine::new(host, format!("settle={} idle={}", settle.as_secs(), watch.as_secs()));
    machine.patience += 6 * (settle + watch);
    let idles = Rounds::run(runner, kernels, rounds, &machine, |outcome| {
        let window = outcome.work("idle")?;
        Ok(Idle {
            seconds: outcome.seconds(window.ticks).max(1e-9),
            window,
            interrupts: outcome.find("its interrupts", |event| match event {
                Event::Interrupts { counts, .. } => Some(counts.clone()),
                _ => None,
            })?,
        })
    })?;
    let reference = format!("of {}", idles.reference());
    let columns = ["kernel", "exits/s", &reference, "interrupts/s", "interrupts", "accesses by device"];
    let mut table =
        Table::new(format!("Idle on vmd {host}, {} s after {}", watch.as_secs(), settle.as_secs()), &columns);
    let exits = |idle: &Idle| number(idle.window.exits) / idle.seconds;
    let interrupts = |idle: &Idle| number(idle.interrupts.values().sum::<u64>().cast_signed()) / idle.seconds;
    for (index, kernel) in idles.kernels.iter().enumerate() {
        let first = idles.first(index);
        table.row([
            kernel.clone(),
            idles.spread(index, exits).show(1),
            idles.ratio(index, exits).show(3),
            idles.spread(index, interrupts).show(1),
            list(first.interrupts.iter().map(|(name, count)| (name, count.cast_signed()))),
            list(first.window.devices.iter().map(|(name, count)| (name, *count))),
        ]);
    }
    let mut report = Report::new("idle", &runner.accel, &HOW, &idles.data());
    report.tables = vec![table];
    report.plots = vec![Plot::Bars {
        title: "Exits per second of an idle guest".to_owned(),
        unit: "exits/s".to_owned(),
        groups: vec![format!("vmd {host}")],
        series: (0..idles.kernels.len())
            .map(|index| (idles.kernels[index].clone(), vec![idles.spread(index, exits).median]))
            .collect(),
    }];
    Ok(report)
}

fn list<'a>(counts: impl Iterator<Item = (&'a String, i64)>) -> String {
    let mut counts: Vec<_> = counts.collect();
    counts.sort_by_key(|(_, count)| -count);
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name}: {count}")).collect();
    counts.join(", ")
}
