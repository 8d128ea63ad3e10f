//! What the guest tells the bench.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An event of the guest's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The kernel.
    Kernel {
        /// Its release, as `uname -r` prints it.
        release: String,
        /// The clocksource.
        clocksource: String,
        /// The clock event device of the first CPU.
        clockevent: String,
    },
    /// Memory in KiB with no process but the init.
    Memory(Memory),
    /// Sleeps of one length.
    Slept {
        /// The length asked for, in microseconds.
        asked: u32,
        /// The length of each on the host's clock, in microseconds.
        took: Vec<u32>,
    },
    /// Interrupts while nothing ran.
    Interrupts {
        /// Length of the measurement on the host's clock, in microseconds.
        micros: u64,
        /// Interrupts by line of `/proc/interrupts`.
        counts: BTreeMap<String, u64>,
    },
    /// The guest's clocks and the host's at one moment.
    Reading(Reading),
    /// The guest waits for a disturbance by the host.
    Await(Disturbance),
    /// The disturbance is over.
    Survived {
        /// The disturbance.
        disturbance: Disturbance,
        /// Jump of the host's clock in microseconds.
        host: i64,
        /// Jump of CLOCK_MONOTONIC_RAW in nanoseconds.
        raw: i64,
        /// Host's time less CLOCK_REALTIME 5 s later, less the same before the disturbance, in nanoseconds.
        behind: i64,
    },
    /// Steps backwards of a clock.
    Backwards {
        /// The clock.
        clock: String,
        /// Number of readings.
        readings: u64,
        /// Number of steps backwards.
        steps: u64,
        /// The largest step, in nanoseconds.
        largest: u64,
    },
    /// A piece of work between the last two marks.
    Worked {
        /// Its name.
        work: String,
        /// The number of operations.
        operations: u32,
    },
    /// The names of all marks, in order: the last event.
    Marks(Vec<String>),
    /// The init failed.
    Failed(String),
}

/// The guest's memory in KiB.
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

/// Several clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// CLOCK_MONOTONIC_RAW, in nanoseconds.
    pub raw: i64,
    /// CLOCK_REALTIME, in nanoseconds.
    pub real: i64,
    /// The host's clock, in microseconds.
    pub host: i64,
    /// Duration of the reading at most, in nanoseconds.
    pub width: i64,
}

/// What the host does to a guest's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disturbance {
    /// `vmctl pause` and `unpause`: the host's clocks go on.
    Pause,
    /// The host sleeps: its clocks jump and the TSC does not.
    Suspend,
}
