//! `bench clock`: does the guest know what time it is?

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use vmd_release::Generation;

use crate::{
    Kernel, Machine, Report, Result, Runner, Spread, Table, Window,
    event::{Disturbance, Event, Reading},
    numbers::{float, number as count, quantile, slope},
    report::Plot,
    run::Outcome,
};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kernels.
    pub kernels: Vec<Kernel>,
    /// On which vmd.
    pub generations: Vec<Generation>,
    /// Clock interrupts of the host per second. Clocks are compared with the first only.
    pub host_hz: Vec<u32>,
    /// How long clocks are compared.
    pub compare: Duration,
    /// How often each sleep is slept.
    pub sleeps: u32,
    /// How long the guest is watched doing nothing.
    pub idle: Duration,
    /// Whether the guest is paused and its host sleeps.
    pub disturbances: bool,
}

const HOW: [&str; 6] = [
    "The host's time is read through vmmci's time registers, between two readings of the guest's clock; of 100 such \
     readings the one that took the least time counts, one such every 5 s.",
    "ppm: the slope of the guest's clock over the host's, less one (Theil-Sen). Positive is fast. ± is what the \
     microsecond that vmmci tells and the difference between the readings' widths can make of it over the whole length.",
    "Sleeps are timed on the host's clock and so hold the time that two readings of it take.",
    "Idle: interrupts as /proc/interrupts counts them, exits as the machine counts them, per second of the host's, of \
     a guest whose only process sleeps.",
    "To init: time from the kernel's first instruction to that of init, as a multiple of the first kernel's in the \
     table on the same vmd, with the exits on the way.",
    "Behind: how far CLOCK_REALTIME is behind the host's 5 s after a pause of 3 s or a suspend of 3,600 s. A guest \
     without a vmmci driver cannot but be behind by all of the suspend.",
];

/// The longest sleep that is called short, in microseconds.
const SHORT: u32 = 10_000;

/// One machine's clocks.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    kernel: String,
    host: Generation,
    host_hz: u32,
    /// The TSC's rate that the guest was told.
    tsc_hz: u64,
    /// What went wrong, if that is all there is to tell.
    failed: Option<String>,
    clocksource: String,
    clockevent: String,
    /// Parts per million of CLOCK_MONOTONIC_RAW and CLOCK_REALTIME against the host's, and how exact they are.
    raw_ppm: Option<f64>,
    real_ppm: Option<f64>,
    ppm_error: Option<f64>,
    readings: Vec<Reading>,
    /// Microseconds that sleeps took, by what was asked for.
    sleeps: BTreeMap<u32, Vec<u32>>,
    /// Per second of idleness.
    interrupts_per_s: f64,
    exits_per_s: f64,
    interrupts: BTreeMap<String, u64>,
    idle: Window,
    /// Until init runs.
    init_s: f64,
    init_exits: i64,
    /// Steps backwards by clock.
    backwards: BTreeMap<String, u64>,
    /// Nanoseconds that CLOCK_REALTIME is behind after each disturbance.
    behind: BTreeMap<Disturbance, i64>,
}

/// Measures clocks.
pub fn run(runner: &Runner, options: &Options) -> Result<Report> {
    let mut all = Vec::new();
    for &host in &options.generations {
        for kernel in &options.kernels {
            for (index, &host_hz) in options.host_hz.iter().enumerate() {
                all.push(measure(runner, options, kernel, host, host_hz, index == 0));
            }
        }
    }
    let mut report = Report::new("clock", &runner.accel, &HOW, &all);
    report.tables = vec![clocks(&all), sleeps(&all), idle(&all), disturbances(&all)];
    // Without a comparison of clocks there is nothing to say of them.
    report.tables.retain(|table| !table.rows.is_empty());
    report.plots = vec![drift_plot(&all)];
    for &hz in &options.host_hz {
        report.plots.extend([sleep_plot(&all, hz), lateness_plot(&all, hz)]);
    }
    Ok(report)
}

/// A kernel that dies is a result, too.
fn measure(
    runner: &Runner,
    options: &Options,
    kernel: &Kernel,
    host: Generation,
    host_hz: u32,
    compare: bool,
) -> Measured {
    let seconds = options.compare.as_secs();
    let mut words = vec![format!("idle={}", options.idle.as_secs()), format!("sleeps={}", options.sleeps)];
    if compare && seconds > 0 {
        words.push(format!("drift={seconds}"));
        if options.disturbances {
            words.push("pause suspend".to_owned());
        }
    }
    let mut machine = Machine::new(host, words.join(" "));
    machine.host_hz = host_hz;
    // A guest whose clock runs at one fifth takes five times as long for what it times itself.
    machine.patience = options.compare + Duration::from_mins(10) + 6 * options.idle;
    let mut measured = Measured {
        kernel: kernel.name.clone(),
        host,
        host_hz,
        tsc_hz: 0,
        failed: None,
        clocksource: String::new(),
        clockevent: String::new(),
        raw_ppm: None,
        real_ppm: None,
        ppm_error: None,
        readings: Vec::new(),
        sleeps: BTreeMap::new(),
        interrupts_per_s: 0.0,
        exits_per_s: 0.0,
        interrupts: BTreeMap::new(),
        idle: Window::default(),
        init_s: 0.0,
        init_exits: 0,
        backwards: BTreeMap::new(),
        behind: BTreeMap::new(),
    };
    if let Err(error) = runner.run(kernel, &machine).and_then(|outcome| measured.take(&outcome)) {
        runner.say(&error.to_string());
        measured.failed = Some(error.to_string());
    }
    measured
}

impl Measured {
    fn take(&mut self, outcome: &Outcome) -> Result<()> {
        for event in &outcome.events {
            match event.clone() {
                Event::Kernel { clocksource, clockevent, .. } => {
                    (self.clocksource, self.clockevent) = (clocksource, clockevent);
                }
                Event::Reading(reading) => self.readings.push(reading),
                Event::Slept { asked, took } => drop(self.sleeps.insert(asked, took)),
                Event::Interrupts { micros, counts } => {
                    let count: u64 = counts.values().sum();
                    self.interrupts_per_s = per_second(count, micros);
                    self.interrupts = counts;
                }
                Event::Backwards { clock, steps, .. } => *self.backwards.entry(clock).or_default() += steps,
                Event::Survived { disturbance, behind, .. } => drop(self.behind.insert(disturbance, behind)),
                _ => {}
            }
        }
        self.tsc_hz = outcome.statistics.tsc_hz;
        self.idle = outcome.work("idle")?;
        self.exits_per_s = count(self.idle.exits) / outcome.seconds(self.idle.ticks).max(1e-9);
        let init = outcome.until("init")?;
        (self.init_s, self.init_exits) = (outcome.seconds(init.ticks), init.exits);
        self.raw_ppm = ppm(&self.readings, |reading| reading.raw);
        self.real_ppm = ppm(&self.readings, |reading| reading.real);
        self.ppm_error = error(&self.readings);
        Ok(())
    }

    fn name(&self) -> [String; 2] {
        [self.host.to_string(), self.kernel.clone()]
    }

    /// Milliseconds that sleeps of up to 10 ms take on average.
    fn mean_short_sleep(&self) -> f64 {
        let took: Vec<u32> = self.sleeps.range(..=SHORT).flat_map(|(_, took)| took.clone()).collect();
        took.iter().map(|micros| f64::from(*micros)).sum::<f64>() / 1000.0 / float(took.len().max(1))
    }

    /// The row of a machine that has nothing but this to tell.
    fn failure(&self, columns: usize) -> Option<Vec<String>> {
        let failed = self.failed.as_ref()?.lines().next().unwrap_or_default().to_owned();
        let mut row = [self.name().to_vec(), vec![failed]].concat();
        row.resize(columns, String::new());
        Some(row)
    }
}

fn per_second(events: u64, micros: u64) -> f64 {
    count(events.cast_signed()) * 1e6 / count(micros.max(1).cast_signed())
}

/// How much faster a clock is than the host's.
fn ppm(readings: &[Reading], clock: impl Fn(&Reading) -> i64) -> Option<f64> {
    let first = readings.first()?;
    let points: Vec<(f64, f64)> = readings
        .iter()
        .map(|reading| {
            let host = (reading.host - first.host) * 1000;
            // The difference, for a double does not hold nanoseconds since 1970.
            (count(host), count(clock(reading) - clock(first) - host))
        })
        .collect();
    slope(&points).map(|slope| slope * 1e6)
}

/// How exact that is. The host's time is cut to the microsecond and lies somewhere in the reading; a reading that is as
/// wide as all others shifts them all alike, and only how much wider it is can bend the slope.
fn error(readings: &[Reading]) -> Option<f64> {
    let length = count((readings.last()?.host - readings.first()?.host) * 1000);
    let mut widths: Vec<f64> = readings.iter().map(|reading| count(reading.width)).collect();
    widths.sort_by(f64::total_cmp);
    let wider = quantile(&widths, 0.9) - quantile(&widths, 0.1);
    (length > 0.0).then(|| (1000.0 + wider / 2.0) / length * 1e6)
}

fn clocks(all: &[Measured]) -> Table {
    let columns = [
        "vmd",
        "kernel",
        "clocksource",
        "RAW ppm",
        "REALTIME ppm",
        "±",
        "steps backwards",
        "to init",
        "exits to init",
    ];
    let mut table = Table::new("Clocks against the host's", &columns);
    let show = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |v| format!("{v:+.3}"));
    for m in all.iter().filter(|m| m.failed.is_some() || m.raw_ppm.is_some()) {
        if let Some(row) = m.failure(columns.len()) {
            table.row(row);
            continue;
        }
        let first = all.iter().find(|other| other.host == m.host && other.failed.is_none()).unwrap_or(m);
        let [host, kernel] = m.name();
        table.row([
            host,
            kernel,
            m.clocksource.clone(),
            show(m.raw_ppm),
            show(m.real_ppm),
            m.ppm_error.map_or_else(String::new, |error| format!("{error:.3}")),
            m.backwards.values().sum::<u64>().to_string(),
            format!("{:.2}×", m.init_s / first.init_s.max(1e-9)),
            m.init_exits.to_string(),
        ]);
    }
    table
}

fn sleeps(all: &[Measured]) -> Table {
    let columns =
        ["vmd", "kernel", "host Hz", "asked ms", "took mean", "median", "90%", "max ms", "late median"];
    let mut table = Table::new("Sleeps, in milliseconds of the host's", &columns);
    for m in all {
        for (asked, took) in &m.sleeps {
            let mut took: Vec<f64> = took.iter().map(|micros| f64::from(*micros) / 1000.0).collect();
            took.sort_by(f64::total_cmp);
            let asked = f64::from(*asked) / 1000.0;
            let spread = Spread::of(took.iter().copied());
            let mean = took.iter().sum::<f64>() / float(took.len().max(1));
            let numbers =
                [asked, mean, spread.median, quantile(&took, 0.9), spread.high, spread.median - asked];
            let [host, kernel] = m.name();
            table.row(
                [host, kernel, m.host_hz.to_string()].into_iter().chain(numbers.map(|n| format!("{n:.1}"))),
            );
        }
    }
    table
}

fn idle(all: &[Measured]) -> Table {
    let columns =
        ["vmd", "kernel", "host Hz", "clockevent", "interrupts/s", "exits/s", "where the exits are"];
    let mut table = Table::new("Idle", &columns);
    for m in all.iter().filter(|m| m.failed.is_none()) {
        let mut devices: Vec<_> = m.idle.devices.iter().collect();
        devices.sort_by_key(|(_, exits)| -**exits);
        let devices: Vec<String> =
            devices.iter().take(4).map(|(name, exits)| format!("{name} {exits}")).collect();
        let [host, kernel] = m.name();
        table.row([
            host,
            kernel,
            m.host_hz.to_string(),
            m.clockevent.clone(),
            format!("{:.1}", m.interrupts_per_s),
            format!("{:.1}", m.exits_per_s),
            format!("{:.1}", m.mean_short_sleep()),
            devices.join(", "),
        ]);
    }
    table
}

fn disturbances(all: &[Measured]) -> Table {
    let columns = ["vmd", "kernel", "behind after pause ms", "behind after suspend s"];
    let mut table = Table::new("Pause and suspend", &columns);
    for m in all.iter().filter(|m| !m.behind.is_empty()) {
        let [host, kernel] = m.name();
        let behind = |disturbance, unit: f64| {
            m.behind
                .get(&disturbance)
                .map_or_else(|| "–".to_owned(), |nanos| format!("{:.3}", count(*nanos) / unit))
        };
        table.row([host, kernel, behind(Disturbance::Pause, 1e6), behind(Disturbance::Suspend, 1e9)]);
    }
    table
}

fn drift_plot(all: &[Measured]) -> Plot {
    let series = all.iter().filter_map(|m| {
        let first = m.readings.first()?;
        let points = m.readings.iter().map(|reading| {
            let host = (reading.host - first.host) * 1000;
            (count(host) / 1e9, count(reading.raw - first.raw - host) / 1000.0)
        });
        // One that is far off would make a line of all others.
        let sane = m.raw_ppm.is_some_and(|ppm| ppm.abs() < 1000.0);
        sane.then(|| (m.name().join(" "), points.collect()))
    });
    Plot::Lines {
        title: "CLOCK_MONOTONIC_RAW ahead of the host's clock".to_owned(),
        x: "seconds".to_owned(),
        y: "µs".to_owned(),
        series: series.collect(),
    }
}

/// The distribution of how late short sleeps end.
fn lateness_plot(all: &[Measured], host_hz: u32) -> Plot {
    let series = all.iter().filter(|m| m.host_hz == host_hz && !m.sleeps.is_empty()).map(|m| {
        let late = |(asked, took): (&u32, &Vec<u32>)| {
            let asked = f64::from(*asked);
            took.iter().map(move |took| (f64::from(*took) - asked) / 1000.0).collect::<Vec<_>>()
        };
        let mut late: Vec<f64> = m.sleeps.range(..=SHORT).flat_map(late).collect();
        late.sort_by(f64::total_cmp);
        let all = float(late.len());
        let points = late.iter().enumerate().map(|(index, late)| (*late, float(index + 1) / all * 100.0));
        (m.name().join(" "), points.collect())
    });
    Plot::Lines {
        title: format!("Share of sleeps of 0.1 to 10 ms that end at most so late, host at {host_hz} Hz"),
        x: "ms late".to_owned(),
        y: "%".to_owned(),
        series: series.collect(),
    }
}

fn sleep_plot(all: &[Measured], host_hz: u32) -> Plot {
    let measured = || all.iter().filter(|m| m.host_hz == host_hz && !m.sleeps.is_empty());
    let asked: Vec<u32> = measured().next().map(|m| m.sleeps.keys().copied().collect()).unwrap_or_default();
    let median = |m: &Measured, asked: &u32| {
        let took = m.sleeps.get(asked).into_iter().flatten();
        Spread::of(took.map(|micros| f64::from(*micros) / 1000.0)).median - f64::from(*asked) / 1000.0
    };
    Plot::Bars {
        title: format!("How late sleeps end (median), host at {host_hz} Hz"),
        unit: "ms".to_owned(),
        groups: asked.iter().map(|micros| format!("{} ms", f64::from(*micros) / 1000.0)).collect(),
        series: measured()
            .map(|m| (m.name().join(" "), asked.iter().map(|asked| median(m, asked)).collect()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings of a clock that is `ppm` fast, each right to the microsecond, one of them late by 5 ms.
    fn readings(ppm: i64) -> Vec<Reading> {
        let start = 1_795_348_512_000_000;
        (0..120)
            .map(|n| {
                let host = n * 5_000_000;
                let late = if n == 60 { 5_000_000 } else { 0 };
                let raw = host * 1000 + host * ppm / 1000 + late;
                Reading { raw, real: raw + start * 1000, host: start + host, width: 40_000 }
            })
            .collect()
    }

    #[test]
    fn a_clock_that_is_fast_is_found_out_to_a_hundredth() {
        for truth in [-800_000, -2, 0, 5] {
            let readings = readings(truth);
            let found = ppm(&readings, |reading| reading.raw).unwrap();
            assert!((found - count(truth)).abs() < 0.01, "{truth}: {found}");
            let found = ppm(&readings, |reading| reading.real).unwrap();
            assert!((found - count(truth)).abs() < 0.01, "{truth}: {found}");
        }
        // A microsecond in 595 s.
        assert!((error(&readings(0)).unwrap() - 0.00168).abs() < 1e-4);
        assert_eq!(ppm(&[], |reading| reading.raw), None);
    }
}
