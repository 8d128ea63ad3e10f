//! One machine, from its start to its guest's end.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use vmd_release::{Generation, SleepingTsc};
use vmm::Statistics;
use vmm_control::Client;

use crate::{
    Error, Kernel, Result, Runner,
    event::{Disturbance, Event},
    wire::Receiver,
};

/// RAM of the guests in MiB.
pub(crate) const RAM: u64 = 512;

/// How long a guest is paused.
const PAUSE: Duration = Duration::from_secs(3);

/// How long the host sleeps.
const NAP: Duration = Duration::from_hours(1);

/// Lines of a console that are shown when its guest died.
const LAST_LINES: usize = 12;

/// A machine that is to run, but for its kernel.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Which vmd it is.
    pub generation: Generation,
    /// The host's clock interrupts per second.
    pub host_hz: u32,
    /// What the guest does, in words of [`crate::guest`]; `boot` and `end` are done anyway.
    pub words: String,
    /// Whether it has a disk to read from.
    pub data: bool,
    /// Whether it has a network interface.
    pub net: bool,
    /// When it is ended by force.
    pub patience: Duration,
}

impl Machine {
    /// A machine with 512 MiB and a root disk.
    pub fn new(generation: Generation, words: impl Into<String>) -> Self {
        let patience = Duration::from_mins(5);
        Self { generation, host_hz: 100, words: words.into(), data: false, net: false, patience }
    }
}

/// What a machine's run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    guest: String,
    pub(crate) statistics: Statistics,
    pub(crate) events: Vec<Event>,
}

/// What happened between two marks of the guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// TSC ticks.
    pub ticks: i64,
    /// Exits.
    pub exits: i64,
    /// Exits by kind.
    pub kinds: BTreeMap<String, i64>,
    /// Exits by what was running: a loader or decompressor, the kernel, a process, nothing.
    pub phases: BTreeMap<String, i64>,
    /// Accesses by device.
    pub devices: BTreeMap<String, i64>,
    /// Interrupts that were injected.
    pub interrupts: i64,
    /// Frames for the guest that were lost in front of its network interface.
    pub failed_outputs: i64,
}

impl Window {
    fn between(start: &Statistics, end: &Statistics, ticks: i64) -> Self {
        let kinds = |s: &Statistics| s.exits.iter().map(|(kind, n)| (word(kind), *n)).collect();
        let phases = |s: &Statistics| s.phases.iter().map(|(phase, n)| (word(phase), *n)).collect();
        let devices = |s: &Statistics| s.devices.iter().map(|(name, a)| (name.clone(), a.total())).collect();
        Self {
            ticks,
            exits: end.total_exits().cast_signed() - start.total_exits().cast_signed(),
            kinds: difference(kinds(start), kinds(end)),
            phases: difference(phases(start), phases(end)),
            devices: difference(devices(start), devices(end)),
            interrupts: injected(end) - injected(start),
            failed_outputs: end.failed_outputs.cast_signed() - start.failed_outputs.cast_signed(),
        }
    }

    /// This without what is in `other`: what a mark itself costs.
    fn without(mut self, other: &Self) -> Self {
        self.exits -= other.exits;
        self.interrupts -= other.interrupts;
        for (all, some) in [
            (&mut self.kinds, &other.kinds),
            (&mut self.phases, &other.phases),
            (&mut self.devices, &other.devices),
        ] {
            for (name, count) in some {
                *all.entry(name.clone()).or_default() -= count;
            }
            all.retain(|_, count| *count != 0);
        }
        self
    }
}

/// The word that JSON has for a kind or a phase.
fn word(value: &impl Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    word.and_then(|word| Some(word.as_str()?.to_owned())).unwrap_or_default()
}

fn injected(s: &Statistics) -> i64 {
    s.interrupts.values().sum::<u64>().cast_signed()
}

fn difference(start: BTreeMap<String, u64>, mut end: BTreeMap<String, u64>) -> BTreeMap<String, i64> {
    for (name, count) in start {
        *end.entry(name).or_default() -= count;
    }
    end.into_iter().filter(|(_, count)| *count > 0).map(|(name, n)| (name, n.cast_signed())).collect()
}

impl Outcome {
    /// What the guest told of a kind.
    pub(crate) fn find<T>(&self, what: &str, f: impl Fn(&Event) -> Option<T>) -> Result<T> {
        self.events.iter().find_map(f).ok_or_else(|| self.silent(what))
    }

    fn silent(&self, what: &str) -> Error {
        Error::Silent { guest: self.guest.clone(), what: what.to_owned() }
    }

    fn mark(&self, name: &str) -> Result<&vmm::Mark> {
        let index = self.events.iter().find_map(|event| match event {
            Event::Marks(names) => names.iter().position(|mark| mark == name),
            _ => None,
        });
        index
            .and_then(|index| self.statistics.marks.get(index))
            .ok_or_else(|| self.silent(&format!("its mark `{name}`")))
    }

    /// From the guest's first instruction to a mark.
    pub(crate) fn until(&self, name: &str) -> Result<Window> {
        let mark = self.mark(name)?;
        Ok(Window::between(&Statistics::default(), &mark.statistics, mark.at.cast_signed()))
    }

    /// What a piece of work did, between `NAME-begin` and `NAME-end`, without what marks cost.
    pub(crate) fn work(&self, name: &str) -> Result<Window> {
        let [mark, begin, end] = ["mark", "begin", "end"].map(|part| self.mark(&format!("{name}-{part}")));
        let (mark, begin, end) = (mark?, begin?, end?);
        let window = |from: &vmm::Mark, to: &vmm::Mark| {
            let ticks = to.at.cast_signed() - from.at.cast_signed();
            Window::between(&from.statistics, &to.statistics, ticks)
        };
        Ok(window(begin, end).without(&window(mark, begin)))
    }

    /// TSC ticks in seconds.
    pub(crate) fn seconds(&self, ticks: i64) -> f64 {
        self.statistics.seconds(ticks.unsigned_abs()).unwrap_or(0.0)
    }
}

impl Runner {
    /// Runs a machine with this kernel to its guest's end.
    pub(crate) fn run(&self, kernel: &Kernel, machine: &Machine) -> Result<Outcome> {
        let guest = format!("{} on {}", kernel.name, machine.generation);
        let number = self.started.get() + 1;
        self.started.set(number);
        let name = format!("bench-{}-{number}", std::process::id());
        let stats = self.scratch.path().join("stats.json");
        let errors = self.scratch.path().join("errors");
        let mut command = self.command(kernel, machine, &name, &stats)?;
        self.say(&format!("{guest}: {}", machine.words));
        let said = fs::File::create(&errors).map_err(Error::io("create", &errors))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(said);
        tracing::debug!(?command, "run a machine");
        let mut child = command.spawn().map_err(Error::io("run", &self.program))?;
        let (events, console, refused) = match child.stdout.take() {
            Some(stdout) => attend(&name, stdout),
            None => Default::default(),
        };
        let exit = child.wait().map_err(Error::io("wait for", &self.program))?;
        if let Some(refused) = refused {
            return Err(refused);
        }
        let failure = events.iter().find_map(|event| match event {
            Event::Failed(why) => Some(why.clone()),
            _ => None,
        });
        // The last that a guest tells. One that panicked ends as well as any, for it resets itself.
        let finished = events.iter().any(|event| matches!(event, Event::Marks(_)));
        if !exit.success() || failure.is_some() || !finished {
            let said = fs::read_to_string(&errors).unwrap_or_default();
            let last = console.len().saturating_sub(LAST_LINES);
            return Err(Error::Died {
                guest,
                status: exit.to_string(),
                said: failure.unwrap_or_else(|| said.trim().to_owned()),
                console: console[last..].join("\n"),
                command: format!("{command:?}"),
            });
        }
        let text = fs::read(&stats).map_err(Error::io("read", &stats))?;
        let _ = fs::remove_file(&stats);
        let statistics = serde_json::from_slice::<serde_json::Value>(&text)
            .and_then(|mut all| serde_json::from_value(all["statistics"].take()))
            .map_err(|error| Error::io("read", &stats)(error.into()))?;
        Ok(Outcome { guest, statistics, events })
    }

    fn command(&self, kernel: &Kernel, machine: &Machine, name: &str, stats: &Path) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(["run", "--accel", &self.accel, "--name", name, "--no-reboot", "--marks"]);
        command.args(["--host", machine.generation.as_str(), "--host-hz", &machine.host_hz.to_string()]);
        command.arg("--timeout").arg(format!("{}s", machine.patience.as_secs()));
        command.arg("--stats").arg(stats).arg("--kernel").arg(&kernel.image);
        command.arg("--memory").arg(format!("{RAM}M")).arg("--disk").arg(&self.root);
        if machine.data {
            command.arg("--disk").arg(self.data_disk()?);
        }
        if machine.net {
            command.arg("-i");
        }
        let words = format!("boot {} end", machine.words);
        let console = "console=ttyS0,115200 quiet panic=-1";
        let (place, words) = match self.initrd(kernel, machine.net)? {
            Some(initrd) => {
                command.arg("--initrd").arg(initrd);
                ("rdinit=/init", format!("root {words}"))
            }
            None => ("root=/dev/vda rootfstype=ext4 ro init=/init", words),
        };
        command.arg("--append").arg(format!("{console} {} {place} -- {words}", kernel.append));
        Ok(command)
    }
}

/// Listens to a guest to its end and carries out the disturbances that it waits for. Returns its events, the lines of its
/// console, and the error of a disturbance that failed.
fn attend(name: &str, stdout: impl Read) -> (Vec<Event>, Vec<String>, Option<Error>) {
    let (mut events, mut console, mut refused) = (Vec::new(), Vec::new(), None);
    let mut receiver = Receiver::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line);
        // Whole: a fragment of an event may end with a blank.
        let event = receiver.line(&line).unwrap_or_else(|lost| Some(Event::Failed(lost)));
        if let Some(Event::Await(disturbance)) = event
            && let Err(error) = disturb(name, disturbance)
        {
            refused = Some(error);
        }
        events.extend(event);
        console.push(line.trim_end().to_owned());
    }
    (events, console, refused)
}

/// Disturbs a guest and waits until that is over.
fn disturb(name: &str, disturbance: Disturbance) -> Result<()> {
    let mut client = Client::connect(name)?;
    match disturbance {
        Disturbance::Pause => {
            client.call(vmm_control::Command::Pause)?;
            thread::sleep(PAUSE);
            client.call(vmm_control::Command::Unpause)?;
        }
        Disturbance::Suspend => {
            drop(client.call(vmm_control::Command::Suspend { length: NAP, tsc: SleepingTsc::Stands })?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vmm::{Accesses, ExitKind, Mark};

    use super::*;

    fn counted(exits: u64, pit: u64) -> Statistics {
        let mut s = Statistics { tsc_hz: 1_000_000_000, ..Statistics::default() };
        s.exits.insert(ExitKind::Out, exits);
        s.devices.insert("pit".to_owned(), Accesses { reads: 0, writes: pit });
        s.interrupts.insert(0x30, pit);
        s
    }

    #[test]
    fn blanks_at_the_end_of_a_fragment_are_kept() {
        let console = "vmmlinux-event 1.0+ {\"failed\":\"no \r\nvmmlinux-event 1.1 disk\"}\r\nlogin: \r\n";

        let (events, lines, refused) = attend("x", console.as_bytes());

        assert_eq!(events, [Event::Failed("no disk".to_owned())]);
        assert_eq!(lines[2], "login:");
        assert!(refused.is_none());
    }

    #[test]
    fn work_is_what_it_did_without_its_marks() {
        let marks = [(0, 100, 0), (5, 110, 1), (10, 150, 31)];
        let outcome = Outcome {
            guest: "x".to_owned(),
            statistics: Statistics {
                marks: marks
                    .iter()
                    .map(|(at, exits, pit)| Mark { at: *at, statistics: counted(*exits, *pit) })
                    .collect(),
                ..counted(200, 40)
            },
            events: vec![Event::Marks(["idle-mark", "idle-begin", "idle-end"].map(str::to_owned).to_vec())],
        };
        let work = outcome.work("idle").unwrap();
        assert_eq!((work.exits, work.interrupts, work.ticks), (30, 29, 5));
        assert_eq!(work.devices, BTreeMap::from([("pit".to_owned(), 29)]));
        assert_eq!(outcome.until("idle-begin").unwrap().exits, 110);
        assert!((outcome.seconds(500_000_000) - 0.5).abs() < 1e-9);
        let missing = outcome.work("disk").unwrap_err().to_string();
        assert!(missing.contains("disk-mark"), "{missing}");
    }
}
