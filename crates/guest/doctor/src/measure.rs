//! Measurements: the clock against the host's, sleeps, interrupts at rest.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_getres, clock_gettime};
use vmmci_protocol::{Comparison, HostTime};
use vmmci_sysfs::{Bar, Function};
use vmmcid::status;

use crate::System;

/// Readings of the control device's time per comparison; the shortest counts. Each takes tens of microseconds.
const COMPARISONS: usize = 20;
/// The driver does that by itself; so many of its results are looked at.
const READINGS: usize = 7;

/// A clock that is wrong by less than this does not show in what is measured in tenths of milliseconds.
const WRONG: f64 = 0.001;

/// A source of the host's time.
#[derive(Debug)]
pub enum HostClock {
    /// The device's registers, which root may read.
    Registers(Bar),
    /// The kernel's driver: the directory of its files.
    Driver(String),
    /// vmmcid's status socket.
    Daemon,
}

/// How far a clock of the guest's was from the host's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// What a clock of the guest's said, in nanoseconds.
    pub at: i64,
    /// Guest − host in nanoseconds.
    pub offset: i64,
    /// Error bound in nanoseconds, either way.
    pub error: i64,
}

/// How fast the guest's CLOCK_MONOTONIC_RAW runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// ppm against the host's clock; positive: fast.
    pub ppm: f64,
    /// Error bound, either way.
    pub error: f64,
    /// Length of the measurement in seconds of the host.
    pub seconds: f64,
}

/// How long sleeps took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sleep {
    /// What was asked for, in milliseconds.
    pub wanted: u64,
    /// The median of what it took, in milliseconds.
    pub median: f64,
    /// The longest, in milliseconds.
    pub longest: f64,
}

/// Interrupts a second while this program did nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interrupts {
    /// All of them.
    pub total: f64,
    /// By name, most first.
    pub sources: Vec<(String, f64)>,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// The clock's rate, if the host's clock could be read.
    pub rate: Option<Rate>,
    /// Sleeps of 1, 10 and 50 ms.
    pub sleeps: Vec<Sleep>,
    /// Interrupts at rest, if the kernel tells them.
    pub interrupts: Option<Interrupts>,
}

impl Measured {
    /// Measures for about so many seconds of the guest's clock, three at least.
    pub fn take(system: &System, seconds: u64) -> Self {
        let start = Instant::now();
        let host = HostClock::find(system);
        let first = host.as_ref().and_then(|host| host.raw_reading(system));
        let sleeps = [(1, 15), (10, 15), (50, 7)].map(|(wanted, times)| Sleep::measure(wanted, times)).into();
        let rest = Duration::from_secs(seconds).saturating_sub(start.elapsed()).max(Duration::from_secs(2));
        let (before, since) = (interrupts(system), Instant::now());
        thread::sleep(rest);
        let (after, took) = (interrupts(system), since.elapsed());
        let last = host.as_ref().and_then(|host| host.raw_reading(system));
        let measured = Self {
            rate: first.zip(last).and_then(|(first, last)| Rate::between(first, last)),
            sleeps,
            interrupts: before.zip(after).map(|(before, after)| Interrupts::between(&before, &after, took)),
        };
        measured.in_host_time()
    }

    /// What a guest whose clock is far from right has measured by that clock, in true time.
    fn in_host_time(mut self) -> Self {
        let pace = self.rate.map_or(1.0, |rate| 1.0 + rate.ppm / 1e6);
        if (pace - 1.0).abs() < WRONG || pace <= 0.0 {
            return self;
        }
        for sleep in &mut self.sleeps {
            sleep.median /= pace;
            sleep.longest /= pace;
        }
        if let Some(interrupts) = &mut self.interrupts {
            interrupts.total *= pace;
            interrupts.sources.iter_mut().for_each(|(_, rate)| *rate *= pace);
        }
        self
    }
}

impl HostClock {
    /// Returns the most exact source that is available.
    pub fn find(system: &System) -> Option<Self> {
        let function = Function::find(&system.path(vmmci_sysfs::FUNCTIONS.trim_start_matches('/'))).ok()?;
        if let Ok(opened) = function.peek() {
            let bar = Bar::new(opened.bar);
            if bar.offset(1).is_some() {
                return Some(Self::Registers(bar));
            }
        }
        let files = format!("sys/bus/pci/devices/{}/vmmci", function.address());
        if system.exists(format!("{files}/offset_ns")) {
            return Some(Self::Driver(files));
        }
        matches!(status::ask(&socket(system)), Ok(Some(_))).then_some(Self::Daemon)
    }

    /// Name for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Registers(_) => "the control device's registers",
            Self::Driver(_) => "the kernel's vmmci driver",
            Self::Daemon => "vmmcid",
        }
    }

    /// Compares the guest's time of day with the host's.
    pub fn reading(&self, system: &System) -> Option<Reading> {
        match self {
            Self::Registers(bar) => bar.offset(COMPARISONS).map(of_offset),
            Self::Driver(files) => {
                let number = |name: &str| system.text(format!("{files}/{name}"))?.parse::<i64>().ok();
                // Each is a comparison of its own, so that the error is that of another: the middle of some is trusted.
                let one = || Some((number("offset_ns")?, number("offset_error_ns")?));
                let mut read: Vec<_> = std::iter::repeat_with(one).take(READINGS).flatten().collect();
                read.sort_unstable();
                let (offset, _) = *read.get(read.len() / 2)?;
                let error = read.iter().map(|(_, error)| *error).max()?;
                Some(Reading { at: nanos(ClockId::Realtime), offset, error })
            }
            Self::Daemon => status::ask(&socket(system)).ok()??.offset.map(of_offset),
        }
    }

    /// Compares CLOCK_MONOTONIC_RAW, which is neither set nor corrected, with the host's time.
    fn raw_reading(&self, system: &System) -> Option<Reading> {
        if let Self::Registers(bar) = self {
            let read = || HostTime::read(bar, || nanos(ClockId::MonotonicRaw)).and_then(Comparison::new);
            let best = Comparison::best(std::iter::repeat_with(read).take(COMPARISONS).flatten())?;
            // A clock that counts ticks stands still between them, so its error bound would be too small.
            let step = clock_getres(ClockId::Monotonic).tv_nsec;
            return Some(Reading { at: best.at(), offset: best.offset(), error: best.error() + step });
        }
        let reading = self.reading(system)?;
        // What the two clocks are apart changes by what NTP corrects only: that is nothing in the time in between.
        let apart = nanos(ClockId::MonotonicRaw).saturating_sub(nanos(ClockId::Realtime));
        Some(Reading {
            at: reading.at.saturating_add(apart),
            offset: reading.offset.saturating_add(apart),
            ..reading
        })
    }
}

/// vmmcid's socket.
pub(crate) fn socket(system: &System) -> std::path::PathBuf {
    system.path(status::SOCKET.trim_start_matches('/'))
}

fn of_offset(offset: vmmci_sysfs::Offset) -> Reading {
    Reading { at: offset.at, offset: offset.guest_minus_host.nanos(), error: offset.uncertainty }
}

fn nanos(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

impl Rate {
    /// From two readings; `None` if they are from the same second of the host's: vmmcid tells one for a while.
    #[allow(clippy::cast_precision_loss)]
    pub fn between(first: Reading, last: Reading) -> Option<Self> {
        let gained = last.offset.saturating_sub(first.offset);
        let host = last.at.saturating_sub(first.at).saturating_sub(gained);
        (host > 1_000_000_000).then(|| Self {
            ppm: gained as f64 / host as f64 * 1e6,
            error: first.error.saturating_add(last.error) as f64 / host as f64 * 1e6,
            seconds: host as f64 / 1e9,
        })
    }
}

impl Sleep {
    fn measure(wanted: u64, times: usize) -> Self {
        let sleep = |_| {
            let start = Instant::now();
            thread::sleep(Duration::from_millis(wanted));
            start.elapsed().as_secs_f64() * 1e3
        };
        let mut took: Vec<_> = (0..times).map(sleep).collect();
        took.sort_by(f64::total_cmp);
        Self { wanted, median: took[times / 2], longest: took[times - 1] }
    }
}

/// Interrupts since boot by name, of all processors together.
fn interrupts(system: &System) -> Option<BTreeMap<String, u64>> {
    let text = system.text("proc/interrupts")?;
    let mut lines = text.lines();
    let processors = lines.next()?.split_whitespace().count();
    let line = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        // ERR and MIS are counts of something else, and have one number only.
        let counts: Option<Vec<u64>> =
            rest.split_whitespace().take(processors).map(|word| word.parse().ok()).collect();
        let name = rest.split_whitespace().skip(processors).collect::<Vec<_>>().join(" ");
        (!name.is_empty()).then_some((format!("{} {name}", number.trim()), counts?.iter().sum()))
    };
    Some(lines.filter_map(line).collect())
}

impl Interrupts {
    #[allow(clippy::cast_precision_loss)]
    fn between(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, took: Duration) -> Self {
        let rate = |(name, count): (&String, &u64)| {
            let came = count.saturating_sub(before.get(name).copied().unwrap_or(0));
            (came > 0).then(|| (name.clone(), came as f64 / took.as_secs_f64()))
        };
        let mut sources: Vec<_> = after.iter().filter_map(rate).collect();
        sources.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        Self { total: sources.iter().map(|(_, rate)| rate).sum(), sources }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_rate_comes_of_two_offsets() {
        let first = Reading { at: 0, offset: 5_000, error: 10_000 };
        let rate =
            Rate::between(first, Reading { at: 10_000_050_000, offset: 55_000, error: 10_000 }).unwrap();
        assert!((rate.ppm - 5.0).abs() < 1e-9 && (rate.error - 2.0).abs() < 1e-9, "{rate:?}");
        // One that runs at a fifth.
        let slow = Reading { at: 2_000_000_000, offset: -8_000_000_000 + 5_000, error: 0 };
        let rate = Rate::between(first, slow).unwrap();
        assert!((rate.ppm + 800_000.0).abs() < 1e-6 && (rate.seconds - 10.0).abs() < 1e-9, "{rate:?}");
        assert_eq!(Rate::between(first, first), None);
    }

    #[test]
    fn a_clock_that_runs_at_a_fifth_does_not_measure_sleeps() {
        let rate = |ppm| Some(Rate { ppm, error: 1.0, seconds: 10.0 });
        let sleeps = vec![Sleep { wanted: 1, median: 4.0, longest: 8.0 }];
        let interrupts = Some(Interrupts { total: 250.0, sources: vec![("timer".into(), 250.0)] });
        let measured = Measured { rate: rate(-800_000.0), sleeps, interrupts }.in_host_time();
        assert!((measured.sleeps[0].median - 20.0).abs() < 1e-6);
        assert!((measured.interrupts.as_ref().unwrap().sources[0].1 - 50.0).abs() < 1e-6);
        let right = Measured { rate: rate(2.0), ..measured.clone() };
        assert_eq!(right.clone().in_host_time(), right);
    }

    #[test]
    fn interrupts_are_counted_by_name() {
        let guest = fixture::recorded();
        let before = interrupts(&guest.system()).unwrap();
        assert_eq!(before["0 XT-PIC timer"], 380);
        let mut after = before.clone();
        *after.get_mut("0 XT-PIC timer").unwrap() += 50;
        *after.get_mut("4 XT-PIC ttyS0").unwrap() += 2;
        let rates = Interrupts::between(&before, &after, Duration::from_secs(2));
        assert_eq!(rates.sources, [("0 XT-PIC timer".into(), 25.0), ("4 XT-PIC ttyS0".into(), 1.0)]);
        assert!((rates.total - 26.0).abs() < 1e-9);
    }
}
