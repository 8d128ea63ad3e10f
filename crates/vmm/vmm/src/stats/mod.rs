//! Statistics of a guest: exits by kind and phase, accesses by port, device and MSR, interrupts,
//! and times. They are only counted here: nothing else in the VMM depends on them.

pub mod report;
pub mod trace;

use std::collections::BTreeMap;

use devices::bus::Direction;
use serde::{Deserialize, Serialize};

use crate::{device_id::DeviceId, kvm::vcpu::Exit};

/// Counts of reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accesses {
    /// INs or RDMSRs.
    pub reads: u64,
    /// OUTs or WRMSRs.
    pub writes: u64,
}

impl Accesses {
    /// Sum of both.
    pub const fn total(self) -> u64 {
        self.reads + self.writes
    }

    const fn is_none(&self) -> bool {
        self.total() == 0
    }

    const fn count(&mut self, write: bool) {
        if write {
            self.writes += 1;
        } else {
            self.reads += 1;
        }
    }
}

/// Kind of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitKind {
    /// IN.
    In,
    /// OUT.
    Out,
    /// HLT.
    Halt,
    /// The guest can take an interrupt.
    InterruptWindow,
    /// Another thread kicked the vCPU: an interrupt, a pause, an end.
    Kick,
    /// RDMSR.
    ReadMsr,
    /// WRMSR.
    WriteMsr,
    /// An access outside its memory: to a device of 8.0, otherwise the last exit of the guest.
    Mmio,
    /// A triple fault or KVM error: the last exit of the guest.
    Fatal,
}

impl ExitKind {
    pub(crate) const fn of(exit: &Exit) -> Self {
        match exit {
            Exit::Io { direction: Direction::In, .. } => Self::In,
            Exit::Io { direction: Direction::Out, .. } => Self::Out,
            Exit::Hlt => Self::Halt,
            Exit::Window => Self::InterruptWindow,
            Exit::Interrupted => Self::Kick,
            Exit::ReadMsr { .. } => Self::ReadMsr,
            Exit::WriteMsr { .. } => Self::WriteMsr,
            Exit::Mmio { .. } => Self::Mmio,
            // A hypercall that does not end the VM raises #UD under vmm.
            Exit::TripleFault | Exit::Hypercall { .. } | Exit::Broken(_) => Self::Fatal,
        }
    }
}

/// What was running at an exit, judged by RIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The firmware: in its ROM below 1 MiB or at 4 GiB, or at the end of memory, where it
    /// relocates itself, before anything else has run.
    Firmware,
    /// A boot loader, or a kernel that has not yet reached its final address.
    Loader,
    /// The kernel: the upper half of the address space.
    Kernel,
    /// A process: the lower half, after the kernel has run.
    User,
    /// Nothing: the kernel executed HLT.
    Idle,
}

impl Phase {
    /// Phase of `exit` at linear address `rip`; `self` is the phase of the exit before.
    pub(crate) fn next(self, exit: &Exit, rip: u64) -> Self {
        const ROM: std::ops::Range<u64> = 0xc_0000..0x10_0000;
        const KERNEL: u64 = 1 << 63;
        match self {
            _ if *exit == Exit::Hlt && rip >= KERNEL => Self::Idle,
            _ if rip >= KERNEL => Self::Kernel,
            Self::Kernel | Self::User | Self::Idle => Self::User,
            // A 32-bit kernel runs in the upper half of 4 GiB, which the firmware leaves before a
            // loader runs.
            _ if ROM.contains(&rip) => Self::Firmware,
            // SeaBIOS relocates its initialisation to the end of low memory and goes back to the
            // ROM to boot.
            Self::Firmware if rip >= 0x10_0000 => Self::Firmware,
            Self::Firmware | Self::Loader => Self::Loader,
        }
    }
}

/// Byte on the console with which a guest makes a [`Mark`]: ASCII's record separator.
pub const MARK: u8 = 0x1e;

/// Most marks that are kept.
const MOST_MARKS: usize = 512;

/// Most ports that are counted one by one. A Linux guest with the most devices uses about 300.
const MOST_PORTS: usize = 512;

/// Most MSRs that are counted one by one. A Linux guest uses about 40.
const MOST_MSRS: usize = 128;

/// Counts an access to `key`, which the guest chose; beyond `most` keys, under `others`.
fn count_key<K: Ord>(
    counts: &mut BTreeMap<K, Accesses>,
    others: &mut Accesses,
    most: usize,
    key: K,
    write: bool,
) {
    if counts.len() < most || counts.contains_key(&key) {
        counts.entry(key).or_default().count(write);
    } else {
        others.count(write);
    }
}

/// Statistics at the time when the guest wrote [`MARK`]. The difference between two marks is what
/// happened between them; that of two in a row is the cost of a mark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// TSC ticks since the guest's latest start.
    pub at: u64,
    /// The statistics up to then, without marks.
    pub statistics: Statistics,
}

/// Statistics of a guest since its first start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Rate of the TSC in Hz; 0 if unknown.
    pub tsc_hz: u64,
    /// TSC at the guest's latest start.
    pub started: u64,
    /// Number of starts: 1 plus one for each reset.
    pub starts: u64,
    /// TSC ticks from its latest start to the first byte on the console.
    pub first_byte: Option<u64>,
    /// TSC ticks from its latest start to the text on the console that means "ready".
    pub ready: Option<u64>,
    /// TSC ticks from its latest start to the first exit in each phase.
    pub phase_reached: BTreeMap<Phase, u64>,
    /// Exits by kind.
    pub exits: BTreeMap<ExitKind, u64>,
    /// Exits by phase.
    pub phases: BTreeMap<Phase, u64>,
    /// Port accesses by port, of the first 512 ports.
    pub ports: BTreeMap<u16, Accesses>,
    /// Accesses to all other ports.
    #[serde(default, skip_serializing_if = "Accesses::is_none")]
    pub other_ports: Accesses,
    /// Accesses by device, to ports and, in 8.0, memory.
    pub devices: BTreeMap<String, Accesses>,
    /// MSR accesses by MSR, of the first 128 MSRs.
    pub msrs: BTreeMap<u32, Accesses>,
    /// Accesses to all other MSRs.
    #[serde(default, skip_serializing_if = "Accesses::is_none")]
    pub other_msrs: Accesses,
    /// Interrupts injected, by vector.
    pub interrupts: BTreeMap<u8, u64>,
    /// Frames for the guest that were lost because the queue in front of its network interface was
    /// full, up to its latest port access: failed outputs of the host's tap.
    #[serde(default)]
    pub failed_outputs: u64,
    /// Bytes that the guest wrote to the console.
    pub console_bytes: u64,
    /// The guest's first 512 marks, if marks are enabled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
}

impl Statistics {
    /// Number of exits.
    pub fn total_exits(&self) -> u64 {
        self.exits.values().sum()
    }

    /// TSC ticks in seconds; `None` if the TSC's rate is not known.
    pub fn seconds(&self, ticks: u64) -> Option<f64> {
        #[allow(clippy::cast_precision_loss)]
        (self.tsc_hz > 0).then(|| ticks as f64 / self.tsc_hz as f64)
    }
}

/// The counters behind [`Statistics`]. Devices are counted by index; a snapshot names them.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
    statistics: Statistics,
    devices: [Accesses; DeviceId::ALL.len()],
    marks: Vec<Mark>,
}

impl Counters {
    pub(crate) fn new(tsc_hz: u64) -> Self {
        let statistics = Statistics { tsc_hz, ..Default::default() };
        Self { statistics, devices: [Accesses::default(); DeviceId::ALL.len()], marks: Vec::new() }
    }

    /// Notes a start of the guest at `tsc`.
    pub(crate) fn start(&mut self, tsc: u64) {
        let s = &mut self.statistics;
        s.started = tsc;
        s.starts += 1;
        s.first_byte = None;
        s.ready = None;
        s.phase_reached.clear();
    }

    /// Counts an exit in `phase` at `tsc`.
    pub(crate) fn exit(&mut self, exit: &Exit, phase: Phase, tsc: u64) {
        let s = &mut self.statistics;
        *s.exits.entry(ExitKind::of(exit)).or_default() += 1;
        *s.phases.entry(phase).or_default() += 1;
        s.phase_reached.entry(phase).or_insert(tsc.wrapping_sub(s.started));
        match *exit {
            Exit::ReadMsr { index } => count_key(&mut s.msrs, &mut s.other_msrs, MOST_MSRS, index, false),
            Exit::WriteMsr { index, .. } => count_key(&mut s.msrs, &mut s.other_msrs, MOST_MSRS, index, true),
            _ => {}
        }
    }

    /// Counts a port access that `device` answered.
    pub(crate) fn port(&mut self, port: u16, direction: Direction, device: DeviceId) {
        let s = &mut self.statistics;
        count_key(&mut s.ports, &mut s.other_ports, MOST_PORTS, port, direction == Direction::Out);
        self.device(direction, device);
    }

    /// Counts an access to a port or to memory that `device` answered.
    pub(crate) fn device(&mut self, direction: Direction, device: DeviceId) {
        self.devices[device as usize].count(direction == Direction::Out);
    }

    /// Counts an injected interrupt.
    pub(crate) fn interrupt(&mut self, vector: u8) {
        *self.statistics.interrupts.entry(vector).or_default() += 1;
    }

    /// Notes the number of failed outputs up to now.
    pub(crate) const fn failed_outputs(&mut self, total: u64) {
        self.statistics.failed_outputs = total;
    }

    /// Counts a byte of console output at `tsc`; `ready` if the text that means "ready" ends with
    /// it.
    pub(crate) fn console_byte(&mut self, tsc: u64, ready: bool) {
        let s = &mut self.statistics;
        s.console_bytes += 1;
        let since = tsc.wrapping_sub(s.started);
        s.first_byte.get_or_insert(since);
        if ready {
            s.ready.get_or_insert(since);
        }
    }

    /// Notes a [`MARK`] at `tsc`.
    pub(crate) fn mark(&mut self, tsc: u64) {
        if self.marks.len() < MOST_MARKS {
            let at = tsc.wrapping_sub(self.statistics.started);
            self.marks.push(Mark { at, statistics: self.counts() });
        }
    }

    fn counts(&self) -> Statistics {
        let mut statistics = self.statistics.clone();
        let devices = DeviceId::ALL.into_iter().zip(self.devices).filter(|(_, counts)| counts.total() > 0);
        statistics.devices = devices.map(|(device, counts)| (device.name().to_owned(), counts)).collect();
        statistics
    }

    /// The statistics up to now.
    pub(crate) fn snapshot(&self) -> Statistics {
        Statistics { marks: self.marks.clone(), ..self.counts() }
    }
}

#[cfg(test)]
mod tests {
    use devices::bus::Width;

    use super::*;

    const KERNEL_RIP: u64 = 0xffff_ffff_8100_0000;

    fn io(direction: Direction) -> Exit {
        Exit::Io { port: 0x3f8, width: Width::Byte, direction, count: 1 }
    }

    #[test]
    fn phases_follow_a_boot_through_firmware() {
        let exit = io(Direction::Out);
        let mut phase = Phase::Firmware;
        for (rip, expected) in [
            (0xf_fff0, Phase::Firmware),
            (0x1ffa_0000, Phase::Firmware),
            (0xf_1234, Phase::Firmware),
            (0x7c00, Phase::Loader),
            (0xe_9000, Phase::Firmware),
            (0x8_0000, Phase::Loader),
            (0x10_0200, Phase::Loader),
            (KERNEL_RIP, Phase::Kernel),
            (0x40_1000, Phase::User),
            (KERNEL_RIP, Phase::Kernel),
        ] {
            phase = phase.next(&exit, rip);
            assert_eq!(phase, expected, "{rip:#x}");
        }
        assert_eq!(phase.next(&Exit::Hlt, KERNEL_RIP), Phase::Idle);
        assert_eq!(Phase::Idle.next(&exit, 0x40_1000), Phase::User);
    }

    #[test]
    fn a_direct_boot_has_no_firmware_phase() {
        let mut counters = Counters::new(0);
        counters.start(100);
        let phase = Phase::Loader.next(&io(Direction::Out), 0x10_0200);
        counters.exit(&io(Direction::Out), phase, 150);
        let s = counters.snapshot();
        assert_eq!(s.phase_reached, BTreeMap::from([(Phase::Loader, 50)]));
    }

    #[test]
    fn exits_are_counted_by_everything() {
        let mut counters = Counters::new(1_000_000_000);
        counters.start(0);
        counters.exit(&io(Direction::Out), Phase::Kernel, 10);
        counters.port(0x3f8, Direction::Out, DeviceId::Uart);
        counters.exit(&io(Direction::In), Phase::Kernel, 20);
        counters.port(0x3fd, Direction::In, DeviceId::Uart);
        counters.exit(&Exit::ReadMsr { index: 0x277 }, Phase::Kernel, 30);
        counters.exit(&Exit::Hlt, Phase::Idle, 40);
        counters.interrupt(0x30);
        let s = counters.snapshot();
        assert_eq!(s.total_exits(), 4);
        assert_eq!(s.devices["uart"], Accesses { reads: 1, writes: 1 });
        assert_eq!(s.ports[&0x3fd].reads, 1);
        assert_eq!(s.msrs[&0x277].reads, 1);
        assert_eq!((s.phases[&Phase::Kernel], s.phases[&Phase::Idle]), (3, 1));
        assert_eq!(s.interrupts[&0x30], 1);
        assert_eq!(s.seconds(500_000_000), Some(0.5));
    }

    #[test]
    fn a_guest_cannot_make_the_statistics_grow() {
        let mut counters = Counters::new(0);
        for index in 0..300_000 {
            counters.exit(&Exit::ReadMsr { index }, Phase::Kernel, 0);
            counters.exit(&Exit::WriteMsr { index, value: 0 }, Phase::Kernel, 0);
        }
        for port in 0..=u16::MAX {
            counters.port(port, Direction::In, DeviceId::Unclaimed);
        }
        let s = counters.snapshot();
        assert_eq!((s.msrs.len(), s.other_msrs), (128, Accesses { reads: 299_872, writes: 299_872 }));
        assert_eq!((s.ports.len(), s.other_ports), (512, Accesses { reads: 65_024, writes: 0 }));
    }

    #[test]
    fn a_restart_keeps_the_counts_and_forgets_the_times() {
        let mut counters = Counters::new(0);
        counters.start(0);
        counters.exit(&Exit::TripleFault, Phase::Firmware, 1);
        counters.console_byte(5, true);
        assert_eq!(counters.snapshot().ready, Some(5));
        counters.start(1000);
        counters.console_byte(1007, false);
        let s = counters.snapshot();
        assert_eq!((s.starts, s.exits[&ExitKind::Fatal], s.first_byte, s.ready), (2, 1, Some(7), None));
    }

    #[test]
    fn between_two_marks_is_what_happened_between_them() {
        let mut counters = Counters::new(0);
        counters.start(1000);
        counters.exit(&io(Direction::Out), Phase::Kernel, 1010);
        counters.mark(1011);
        counters.exit(&Exit::Hlt, Phase::Idle, 1020);
        counters.port(0x40, Direction::In, DeviceId::Pit);
        counters.mark(1030);
        let s = counters.snapshot();
        let [first, second] = &s.marks[..] else { panic!("{s:?}") };
        assert_eq!((first.at, second.at), (11, 30));
        assert_eq!(second.statistics.total_exits() - first.statistics.total_exits(), 1);
        assert_eq!(second.statistics.devices["pit"].reads, 1);
        assert!(second.statistics.marks.is_empty());
        (0..1000).for_each(|n| counters.mark(n));
        assert_eq!(counters.snapshot().marks.len(), MOST_MARKS);
    }

    #[test]
    fn statistics_survive_a_round_trip_through_json() {
        let mut counters = Counters::new(7);
        counters.start(0);
        counters.exit(&io(Direction::In), Phase::Kernel, 1);
        counters.port(0x61, Direction::In, DeviceId::Pit);
        counters.mark(2);
        let s = counters.snapshot();
        let text = serde_json::to_string(&s).unwrap();
        assert_eq!(serde_json::from_str::<Statistics>(&text).unwrap(), s);
    }
}
