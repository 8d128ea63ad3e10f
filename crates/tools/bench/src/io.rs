//! `bench disk` and `bench net`: exits for a piece of I/O.

use serde::Serialize;
use vmd_release::Generation;

use crate::{
    Kernel, Machine, Report, Result, Runner, Table, Window, event::Event, numbers::number, report::Plot,
    rounds::Rounds,
};

const DISK: [&str; 2] = [
    "256 random reads of 4 KiB past the page cache (O_DIRECT), one after the other; then 32 sequential reads of 1 MiB \
     through it, with the kernel's own read-ahead; of a raw virtio disk.",
    "Exits between two marks of the guest's, less what a mark costs, per read. Medians with the range of all rounds.",
];
const NET: [&str; 2] = [
    "200 requests of 64 bytes over one TCP connection to the echo service of vmd's local interface, each after the \
     answer to the one before; then 16 MiB from its generator, and 16 MiB to its discard service, over one connection each.",
    "Exits between two marks of the guest's, less what a mark costs, per request with its answer or per MiB. Medians \
     with the range of all rounds. Failed outputs are frames lost because the queue of the host's tap, 256 frames, was \
     full.",
];

/// A piece of work.
#[derive(Clone, Debug, Serialize)]
struct Work {
    name: String,
    operations: f64,
    window: Window,
}

impl Work {
    fn per_operation(&self, count: i64) -> f64 {
        number(count) / self.operations
    }
}

/// Reads a disk.
pub fn disk(runner: &Runner, kernels: &[Kernel], host: Generation, rounds: u32) -> Result<Report> {
    let works = [("read-4k", "4 KiB random read"), ("read-1m", "1 MiB sequential read")];
    let machine = Machine { data: true, ..Machine::new(host, "disk=/dev/vdb") };
    run(runner, kernels, rounds, &machine, "disk", &works, &DISK)
}

/// Talks over TCP.
pub fn net(runner: &Runner, kernels: &[Kernel], host: Generation, rounds: u32) -> Result<Report> {
    let machine = Machine { net: true, ..Machine::new(host, "net") };
    let works = [
        ("tcp-rr", "TCP request and response"),
        ("tcp-receive", "MiB received by TCP"),
        ("tcp-send", "MiB sent by TCP"),
    ];
    run(runner, kernels, rounds, &machine, "net", &works, &NET)
}

fn run(
    runner: &Runner,
    kernels: &[Kernel],
    rounds: u32,
    machine: &Machine,
    bench: &str,
    works: &[(&str, &str)],
    how: &[&str],
) -> Result<Report> {
    let found = Rounds::run(runner, kernels, rounds, machine, |outcome| {
        let work = |&(name, _): &(&str, &str)| {
            let operations = outcome.find(&format!("how much `{name}` was"), |event| match event {
                Event::Worked { work, operations } if work == name => Some(f64::from(*operations)),
                _ => None,
            })?;
            Ok(Work { name: name.to_owned(), operations, window: outcome.work(name)? })
        };
        works.iter().map(work).collect::<Result<Vec<_>>>()
    })?;
    let reference = format!("of {}", found.reference());
    let columns =
        ["work", "kernel", "exits", &reference, "interrupts", "accesses by device", "failed outputs"];
    let mut table = Table::new(format!("Exits per operation on vmd {}", machine.generation), &columns);
    for (place, (_, title)) in works.iter().enumerate() {
        for (index, kernel) in found.kernels.iter().enumerate() {
            let exits = |works: &Vec<Work>| works[place].per_operation(works[place].window.exits);
            let interrupts = |works: &Vec<Work>| works[place].per_operation(works[place].window.interrupts);
            let failed = |works: &Vec<Work>| number(works[place].window.failed_outputs);
            let first = &found.first(index)[place];
            let mut devices: Vec<_> = first.window.devices.iter().collect();
            devices.sort_by_key(|(_, count)| -**count);
            let devices: Vec<String> = devices
                .iter()
                .map(|(name, count)| format!("{name} {:.1}", first.per_operation(**count)))
                .collect();
            table.row([
                (*title).to_owned(),
                kernel.clone(),
                found.spread(index, exits).show(1),
                found.ratio(index, exits).show(2),
                found.spread(index, interrupts).show(1),
                devices.join(", "),
                found.spread(index, failed).show(0),
            ]);
        }
    }
    let mut report = Report::new(bench, &runner.accel, how, &found.data());
    report.tables = vec![table];
    let series = found.kernels.iter().enumerate().map(|(index, kernel)| {
        let exits = (0..works.len()).map(|place| {
            found.spread(index, |works| works[place].per_operation(works[place].window.exits)).median
        });
        (kernel.clone(), exits.collect())
    });
    report.plots = vec![Plot::Bars {
        title: "Exits per operation".to_owned(),
        unit: "exits".to_owned(),
        groups: works.iter().map(|(_, title)| (*title).to_owned()).collect(),
        series: series.collect(),
    }];
    Ok(report)
}
