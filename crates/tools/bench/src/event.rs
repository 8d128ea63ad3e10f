//! What the guest tells the bench, one line of the console each.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What each of the lines begins with; JSON follows.
const PREFIX: &str = "bench: ";

/// What the guest tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// What it is.
    Kernel {
        /// As `uname -r` says it.
        release: String,
        /// What it keeps time with.
        clocksource: String,
        /// What ticks.
        clockevent: String,
    },
    /// Memory in KiB, when there was nothing but the kernel and this.
    Memory(Memory),
    /// It slept.
    Slept {
        /// Microseconds that it asked for.
        asked: u32,
        /// Microseconds that it took on the host's clock, each time.
        took: Vec<u32>,
    },
    /// Interrupts while nothing ran.
    Interrupts {
        /// Microseconds on the host's clock.
        micros: u64,
        /// By line of `/proc/interrupts`.
        counts: BTreeMap<String, u64>,
    },
    /// What its clocks and the host's showed at one moment.
    Reading(Reading),
    /// It waits for this to be done to it.
    Await(Disturbance),
    /// It was done.
    Survived {
        /// What.
        ordeal: Disturbance,
        /// Microseconds by which the host's clock jumped.
        host: i64,
        /// Nanoseconds by which CLOCK_MONOTONIC_RAW jumped.
        raw: i64,
        /// Nanoseconds by which CLOCK_REALTIME is behind the host's 5 s later, compared to before.
        behind: i64,
    },
    /// How often a clock went back, of how many readings, and by how many nanoseconds at most.
    Backwards {
        /// The clock.
        clock: String,
        /// Readings.
        readings: u64,
        /// Steps backwards.
        steps: u64,
        /// The largest, in nanoseconds.
        largest: u64,
    },
    /// It did a piece of work between its last two marks.
    Worked {
        /// Which.
        work: String,
        /// How many operations it was.
        operations: u32,
    },
    /// All its marks, in order, by name.
    Marks(Vec<String>),
    /// It could not do what it was told.
    Failed(String),
}

/// What memory there is, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// MemTotal.
    pub total: u64,
    /// MemAvailable.
    pub available: u64,
    /// Kernel code, as `/proc/iomem` has it.
    pub code: u64,
    /// Kernel data, read-only data and bss.
    pub data: u64,
}

/// Clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// CLOCK_MONOTONIC_RAW, in nanoseconds.
    pub raw: i64,
    /// CLOCK_REALTIME, in nanoseconds.
    pub real: i64,
    /// The host's clock, in microseconds.
    pub host: i64,
    /// How long the reading took at most, in nanoseconds.
    pub width: i64,
}

/// What happens to a guest's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disturbance {
    /// `vmctl pause` and `unpause`: the host's clocks go on.
    Pause,
    /// The host sleeps: its clocks jump and the TSC does not.
    Suspend,
}

impl Event {
    /// The line.
    pub fn to_line(&self) -> String {
        format!("{PREFIX}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// The event in a line, if there is one. Kernel messages may stand before it.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, json) = line.split_once(PREFIX)?;
        serde_json::from_str(json.trim_end()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_console() {
        let event = Event::Reading(Reading { raw: 1, real: -2, host: 3, width: 4 });
        let line = format!("[    1.0] usb 1-1: {}\r\n", event.to_line());
        assert_eq!(Event::parse(&line), Some(event));
        assert_eq!(Event::parse("bench: {\"fly\":1}"), None);
        assert_eq!(Event::parse("login:"), None);
    }
}
