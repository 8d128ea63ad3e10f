//! `bench boot`: what it takes until init runs and the guest is ready.

use std::collections::BTreeMap;

use serde::Serialize;
use vmd_release::Generation;

use crate::{
    Kernel, Machine, Report, Result, Runner, Table, Window,
    event::{Event, Memory},
    numbers::number,
    report::Plot,
    rounds::Rounds,
    run::RAM,
};

const HOW: [&str; 4] = [
    "Each kernel is loaded directly and starts init from an ext4 file system on a virtio disk, with a quiet console; \
     Debian's loads its virtio drivers from an initramfs. Kernels take turns.",
    "Counts are medians with the range of all rounds. Times are TSC ticks of the guest and given only as ratios to the \
     last kernel in the same round.",
    "Ready: init runs, and /dev, /proc and /sys are mounted. Memory used is MemTotal − MemAvailable then; reserved is \
     what of 512 MiB the kernel does not even count in MemTotal.",
    "Exits by kind and phase and accesses by device are those of the first round.",
];

/// One boot.
#[derive(Clone, Debug, Serialize)]
struct Boot {
    init: Window,
    ready: Window,
    memory: Memory,
    release: String,
}

/// Boots each kernel `rounds` times.
pub fn run(runner: &Runner, kernels: &[Kernel], host: Generation, rounds: u32) -> Result<Report> {
    let machine = Machine::new(host, "");
    let boots = Rounds::run(runner, kernels, rounds, &machine, |outcome| {
        Ok(Boot {
            init: outcome.until("init")?,
            ready: outcome.until("ready")?,
            memory: outcome.find("its memory", |event| match event {
                Event::Memory(memory) => Some(*memory),
                _ => None,
            })?,
            release: outcome.find("its kernel's release", |event| match event {
                Event::Kernel { release, .. } => Some(release.clone()),
                _ => None,
            })?,
        })
    })?;
    let mut report = Report::new("boot", &runner.accel, &HOW, &boots.data());
    report.tables = vec![
        summary(&boots, host),
        memory(&boots),
        counts(&boots, "Exits until init runs", "by kind", |boot| &boot.init.kinds),
        counts(&boots, "Exits until the guest is ready", "while running", |boot| &boot.ready.phases),
        counts(&boots, "Accesses until init runs", "device", |boot| &boot.init.devices),
    ];
    report.plots = vec![device_plot(&boots)];
    Ok(report)
}

fn summary(boots: &Rounds<Boot>, host: Generation) -> Table {
    let reference = format!("of {}", boots.reference());
    let columns = [
        "kernel",
        "release",
        "exits to init",
        &reference,
        "to ready",
        &reference,
        "time to init",
        "time to ready",
    ];
    let mut table = Table::new(format!("Boot on vmd {host}"), &columns);
    for (index, kernel) in boots.kernels.iter().enumerate() {
        let exits = |what: fn(&Boot) -> &Window| {
            let exits = move |boot: &Boot| number(what(boot).exits);
            [boots.spread(index, exits).show(0), boots.ratio(index, exits).show(3)]
        };
        let time =
            |what: fn(&Boot) -> &Window| boots.ratio(index, |boot| number(what(boot).ticks)).show(2) + "×";
        let [init, init_ratio] = exits(|boot| &boot.init);
        let [ready, ready_ratio] = exits(|boot| &boot.ready);
        let times = [time(|boot| &boot.init), time(|boot| &boot.ready)];
        let release = boots.first(index).release.clone();
        table.row([kernel.clone(), release, init, init_ratio, ready, ready_ratio].into_iter().chain(times));
    }
    table
}

fn memory(boots: &Rounds<Boot>) -> Table {
    let reference = format!("used, of {}", boots.reference());
    let columns = ["kernel", "used KiB", &reference, "reserved KiB", "both", "kernel code", "kernel data"];
    let mut table = Table::new("Memory when ready, of 512 MiB", &columns);
    let used = |boot: &Boot| number(boot.memory.total.saturating_sub(boot.memory.available).cast_signed());
    let reserved = |boot: &Boot| number((RAM << 10).saturating_sub(boot.memory.total).cast_signed());
    for (index, kernel) in boots.kernels.iter().enumerate() {
        let show = |what: &dyn Fn(&Boot) -> f64| boots.spread(index, what).show(0);
        table.row([
            kernel.clone(),
            show(&used),
            boots.ratio(index, used).show(2),
            show(&reserved),
            show(&|boot| used(boot) + reserved(boot)),
            show(&|boot| number(boot.memory.code.cast_signed())),
            show(&|boot| number(boot.memory.data.cast_signed())),
        ]);
    }
    table
}

type Counts = BTreeMap<String, i64>;

/// What was counted in the first round, the most frequent in any kernel first.
fn busiest(boots: &Rounds<Boot>, of: fn(&Boot) -> &Counts) -> Vec<String> {
    let mut most = Counts::new();
    for index in 0..boots.kernels.len() {
        for (name, count) in of(boots.first(index)) {
            let entry = most.entry(name.clone()).or_default();
            *entry = (*entry).max(*count);
        }
    }
    let mut most: Vec<_> = most.into_iter().collect();
    most.sort_by_key(|(_, count)| -count);
    most.into_iter().map(|(name, _)| name).collect()
}

fn counts(boots: &Rounds<Boot>, title: &str, head: &str, of: fn(&Boot) -> &Counts) -> Table {
    let columns: Vec<&str> = [head].into_iter().chain(boots.kernels.iter().map(String::as_str)).collect();
    let mut table = Table::new(title, &columns);
    for name in busiest(boots, of) {
        let counts = (0..boots.kernels.len())
            .map(|index| of(boots.first(index)).get(&name).copied().unwrap_or(0).to_string());
        table.row([name.clone()].into_iter().chain(counts));
    }
    table
}

fn device_plot(boots: &Rounds<Boot>) -> Plot {
    let devices: Vec<String> = busiest(boots, |boot| &boot.init.devices).into_iter().take(8).collect();
    let series = boots.kernels.iter().enumerate().map(|(index, kernel)| {
        let counts = &boots.first(index).init.devices;
        (kernel.clone(), devices.iter().map(|name| number(counts.get(name).copied().unwrap_or(0))).collect())
    });
    Plot::Bars {
        title: "Accesses until init runs".to_owned(),
        unit: "accesses".to_owned(),
        series: series.collect(),
        groups: devices,
    }
}
