//! What the agent (`src/agent`) and other programs of the tests send from a guest. The channel is [`bench::wire`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An event in a guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The guest has booted, and the agent begins with the words of its command line.
    Ready,
    /// The agent has begun with this word and waits for the host.
    Waiting(String),
    /// The agent has carried this word out.
    Done(String),
    /// The agent cannot carry its words out.
    Failed(String),
    /// The text at the beginning of the first disk.
    Disk(String),
    /// Vendor and device IDs of the PCI functions, as sysfs has them.
    Pci(Vec<[String; 2]>),
    /// The host asked the agent's own driver of the control device to go down.
    ToldToGoDown,
    /// Host's time less the guest's when the host asked to set the clock, in seconds.
    Behind(i64),
    /// The first I/O port of the control device's registers. The kernel's driver is bound to it.
    Driver(u16),
    /// The errno with which the kernel's driver refused another device, if it did.
    ForeignRefused(Option<i32>),
    /// The clock was set by the kernel's driver.
    ClockSet(ClockSet),
    /// The clocks after a sleep of the host.
    Nap(Nap),
    /// The PTP clock.
    Phc {
        /// Its name.
        name: String,
        /// Distance from the host's time by the driver's offset, the smallest of a hundred, in nanoseconds.
        distance: i64,
    },
    /// What a storm of commands did.
    Counts(Counts),
    /// The driver has lost the device and got it back once more.
    Again,
    /// Objects that kmemleak found.
    Leaks(usize),
    /// Sleeps of one length.
    Slept {
        /// The length asked for, in microseconds.
        asked: u64,
        /// The lower quartile of the lengths, in microseconds.
        quartile: u64,
        /// The longest, in microseconds.
        longest: u64,
    },
    /// Interrupts in ten seconds of doing nothing, or in three seconds of computing.
    Interrupts(u64),
    /// Sleeps of 1 ms beside a thread that computes, in three seconds.
    SleptBeside(u64),
    /// The CPUs that are online, as sysfs lists them.
    Online(String),
    /// What a CPU did.
    Cpu(Cpu),
    /// What passed, by three counts.
    Passed {
        /// By CLOCK_MONOTONIC, in milliseconds.
        monotonic: u64,
        /// By CLOCK_REALTIME, in milliseconds.
        realtime: u64,
        /// In jiffies of 10 ms.
        jiffies: u64,
    },
    /// Times of the kernel's messages from its first to the agent's first, in microseconds.
    MessageTimes(Vec<u64>),
    /// The clocksource, and the TSC's rate by it.
    Clock {
        /// Its name.
        source: String,
        /// Hz.
        tsc_hz: f64,
    },
    /// Steps backwards of any clock.
    StepsBackwards(usize),
    /// What the doctor found.
    Examined {
        /// For whom it ran.
        user: String,
        /// Its report.
        report: Value,
        /// Its exit status.
        status: i32,
    },
    /// What the program of `src/soak.rs` did.
    Worked {
        /// How often it did what.
        done: BTreeMap<String, u64>,
        /// Requests of the host to set the clock, as the driver counts them.
        syncrtc_commands: i64,
        /// Guest's time less the host's, in nanoseconds.
        offset_ns: i64,
    },
    /// The program of `src/clockwatch.rs` saw CLOCK_REALTIME set, by so many seconds.
    SetBy(i64),
    /// It saw CLOCK_REALTIME right after that.
    Right {
        /// How long it had seen the clock wrong, in milliseconds.
        after_ms: i64,
        /// Guest's time less the host's, in microseconds.
        off_us: i64,
    },
    /// It sent a byte over a TCP connection that is older than the step.
    ConnectionLives,
    /// It saw CLOCK_MONOTONIC go back by so many nanoseconds.
    WentBack(i64),
    /// It compared the clocks for a while.
    Offsets(Offsets),
    /// The kernel ran `/sbin/reboot` or `/sbin/poweroff`: this is the name.
    KernelRan(String),
}

/// The clock before and after the kernel's driver set it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockSet {
    /// How long it was seen to be more than an hour behind, in milliseconds.
    pub behind_ms: i64,
    /// Guest's time less the host's now, in nanoseconds.
    pub offset_ns: i64,
    /// Bound of that offset's error, in nanoseconds.
    pub offset_error_ns: i64,
    /// The step by which it was set, in seconds.
    pub step_s: i64,
    /// A timerfd with TFD_TIMER_CANCEL_ON_SET was cancelled.
    pub timerfd_cancelled: bool,
    /// A TCP connection over the loopback device still carries bytes.
    pub connection_lives: bool,
    /// A process that slept for eight seconds ended well.
    pub sleeper_woke: bool,
    /// Time by CLOCK_MONOTONIC from that process's start to its end, in milliseconds.
    pub slept_ms: i64,
}

/// The clocks and the scheduler after a sleep of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nap {
    /// CPU time that a process had in 200 ms of computing, in milliseconds.
    pub used_ms: i64,
    /// Length of a sleep of 1 s by CLOCK_MONOTONIC, in milliseconds.
    pub slept_ms: i64,
    /// Guest's time less the host's, in microseconds.
    pub offset_us: i64,
    /// The largest step backwards of CLOCK_MONOTONIC, in milliseconds.
    pub back_ms: i64,
}

/// What was counted in a storm of commands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// The driver's counters, by name.
    pub driver: BTreeMap<String, i64>,
    /// The driver's largest step of the clock, in milliseconds.
    pub step_ms: i64,
    /// How often the driver got the device back, if it lost it.
    pub rebound: Option<i64>,
    /// How often the kernel ran `/sbin/poweroff`.
    pub poweroff: i64,
    /// How often the kernel ran `/sbin/reboot`.
    pub reboot: i64,
    /// Memory in slabs that cannot be reclaimed, after less before, in KiB.
    pub slab_growth: i64,
}

/// What a CPU did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Its number.
    pub number: usize,
    /// Ticks in which it ran processes or the kernel for them.
    pub busy: u64,
    /// Interrupts of its own timer.
    pub timer: u64,
    /// Interrupts from other CPUs.
    pub sent: u64,
}

/// Guest's time less the host's, compared once a second, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    /// Number of comparisons.
    pub times: usize,
    /// The median, with its sign.
    pub median: i64,
    /// The median of the sizes.
    pub size: i64,
    /// The 99th percentile of the sizes.
    pub p99: i64,
    /// The largest size.
    pub worst: i64,
    /// The median of the errors' bounds.
    pub error: i64,
}
