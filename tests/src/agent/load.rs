//! The words that work, or do nothing, on one CPU or on all.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use guest_tests::event::{Cpu, Event};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::{mark, send};

/// Number of reads of the disk, at places a mebibyte apart.
const READS: u64 = 100;

/// The interrupts since boot.
fn interrupts() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("intr "));
    let total = line.and_then(|line| line.split(' ').next()?.parse().ok());
    total.ok_or_else(|| io::Error::other(format!("no interrupts in {stat}")))
}

pub(crate) fn idle() -> io::Result<()> {
    // What was started at boot comes to rest.
    send(&Event::Waiting("idle".to_owned()));
    thread::sleep(Duration::from_secs(10));
    mark()?;
    thread::sleep(Duration::from_millis(500));
    let before = interrupts()?;
    thread::sleep(Duration::from_secs(10));
    let came = interrupts()? - before;
    mark()?;
    send(&Event::Interrupts(came));
    Ok(())
}

pub(crate) fn compute() -> io::Result<()> {
    mark()?;
    let before = interrupts()?;
    compute_until(Instant::now() + Duration::from_secs(3));
    let came = interrupts()? - before;
    mark()?;
    send(&Event::Interrupts(came));
    Ok(())
}

fn compute_until(end: Instant) {
    let mut rounds = 0_u64;
    while Instant::now() < end {
        rounds = std::hint::black_box(rounds + 1);
    }
}

/// Reads one place after the other, each so far from the others that nothing is read ahead for it.
pub(crate) fn reads(path: &Path) -> io::Result<()> {
    let disk = File::open(path)?;
    mark()?;
    for place in 0..READS {
        disk.read_exact_at(&mut [0; 4096], (place * 7 % READS) << 20)?;
    }
    mark()
}

/// Starts more threads that compute for ever than there are CPUs.
pub(crate) fn crowd() {
    for _ in 0..4 {
        thread::spawn(|| {
            loop {
                std::hint::black_box(0);
            }
        });
    }
}

pub(crate) fn busy() -> io::Result<()> {
    let end = Instant::now() + Duration::from_secs(3);
    let sleeper = thread::spawn(move || {
        let mut times = 0;
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
            times += 1;
        }
        times
    });
    compute_until(end);
    let times = sleeper.join().map_err(|_| io::Error::other("the thread that sleeps panicked"))?;
    send(&Event::SleptBeside(times));
    Ok(())
}

/// Counters of all CPUs since boot, by CPU.
struct Counters {
    busy: Vec<u64>,
    timer: Vec<u64>,
    sent: Vec<u64>,
}

impl Counters {
    fn read() -> io::Result<Self> {
        let numbers =
            |text: &str| text.split_whitespace().map_while(|word| word.parse().ok()).collect::<Vec<u64>>();
        let stat = fs::read_to_string("/proc/stat")?;
        let lines = stat.lines().filter_map(|line| line.strip_prefix("cpu")?.split_once(' '));
        let busy = lines.filter(|(n, _)| !n.is_empty()).map(|(_, line)| numbers(line)[..3].iter().sum());
        let table = fs::read_to_string("/proc/interrupts")?;
        let row = |name: &str| {
            let line = table.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
            line.map(numbers).unwrap_or_default()
        };
        let timer = row("LOC");
        let kinds = ["RES", "CAL"].map(row);
        let sent = (0..timer.len()).map(|n| kinds.iter().filter_map(|kind| kind.get(n)).sum());
        Ok(Self { busy: busy.collect(), sent: sent.collect(), timer })
    }
}

/// Keeps the calling thread on one CPU.
fn stay_on(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)?;
    if sched_getcpu() != cpu {
        return Err(io::Error::other(format!("it runs on CPU {}", sched_getcpu())));
    }
    Ok(())
}

/// Starts a thread on each CPU. It waits until the one before it wakes it, a few hundred times, and then computes beside all
/// others.
pub(crate) fn cpus() -> io::Result<()> {
    const ROUNDS: u32 = 300;
    let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
    send(&Event::Online(online.trim().to_owned()));
    let before = Counters::read()?;
    let count = before.timer.len();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel::<u32>()).unzip();
    senders[0].send(0).map_err(io::Error::other)?;
    let threads = receivers.into_iter().enumerate().map(|(cpu, receiver)| {
        let next = senders[(cpu + 1) % count].clone();
        thread::spawn(move || -> io::Result<()> {
            stay_on(cpu)?;
            for _ in 0..ROUNDS {
                let turn = receiver.recv().map_err(io::Error::other)?;
                // The last turn has no receiver.
                let _ = next.send(turn + 1);
            }
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(500) {}
            Ok(())
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().map_err(|_| io::Error::other("a thread panicked"))??;
    }
    let after = Counters::read()?;
    for number in 0..count {
        let more = |after: &[u64], before: &[u64]| after[number] - before[number];
        send(&Event::Cpu(Cpu {
            number,
            busy: more(&after.busy, &before.busy),
            timer: more(&after.timer, &before.timer),
            sent: more(&after.sent, &before.sent),
        }));
    }
    Ok(())
}

pub(crate) fn hotplug() -> io::Result<()> {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";
    for state in ["0", "1"] {
        fs::write(ONLINE, state)?;
        if fs::read_to_string(ONLINE)?.trim() != state {
            return Err(io::Error::other(format!("CPU 1 does not change to {state}")));
        }
    }
    Ok(())
}
