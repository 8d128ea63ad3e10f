//! The init of a guest that works until a line comes on the console: it computes, sleeps, forks, writes to its disk, sends
//! itself messages, and watches its clocks. Then it sends how often it did what ([`Event::Worked`]), and powers off.

use std::{
    collections::BTreeMap,
    env,
    fs::OpenOptions,
    io::{self, Read, Write},
    os::unix::{fs::FileExt, net::UnixStream, process::CommandExt},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bench::wire::Sender;
use guest_tests::{
    driver::{driven, shown},
    event::Event,
    init::mount_usual,
    input,
};
use rustix::{
    system::{RebootCommand, reboot},
    termios::tcdrain,
    time::{ClockId, clock_gettime},
};

/// The name by which this program is a process that ends at once.
const NOTHING: &str = "nothing";
/// What is written to the disk at a time, and how much of the disk is used, in bytes.
const BLOCK: usize = 256 << 10;
const DISK: u64 = 32 << 20;
/// Milliseconds that the sleepers sleep at a time.
const SLEEPS: [(&str, u64); 4] = [("slept_1", 1), ("slept_7", 7), ("slept_50", 50), ("slept_300", 300)];

static SENDER: Sender = Sender::new();

/// Sends an event to the test.
fn send(event: &Event) {
    // The console is the only place where an error could be shown.
    let _ = SENDER.send(event);
}

fn main() {
    if env::args().next().as_deref() == Some(NOTHING) {
        return;
    }
    if let Err(error) = run() {
        send(&Event::Failed(error.to_string()));
    }
    let _ = tcdrain(io::stdout()).and_then(|()| reboot(RebootCommand::PowerOff));
}

/// How often what was done, and whether to go on.
#[derive(Default)]
struct Work {
    over: AtomicBool,
    done: Mutex<BTreeMap<&'static str, u64>>,
}

impl Work {
    /// Works until that is over, or fails.
    fn repeat(&self, what: &'static str, mut work: impl FnMut() -> io::Result<()>) {
        while !self.over.load(Relaxed) {
            if let Err(error) = work() {
                send(&Event::Failed(format!("{what}: {error}")));
                return;
            }
            *self.done.lock().expect("no thread panics while it counts").entry(what).or_default() += 1;
        }
    }
}

fn run() -> io::Result<()> {
    mount_usual()?;
    let (here, there) = UnixStream::pair()?;
    let (work, disk) = (&Work::default(), disk()?);
    thread::scope(|scope| {
        scope.spawn(|| {
            work.repeat("computed", || {
                compute();
                Ok(())
            });
        });
        scope.spawn(|| work.repeat("processes", process));
        scope.spawn(|| work.repeat("blocks", disk));
        scope.spawn(|| work.repeat("messages", talk(here, there)));
        scope.spawn(|| work.repeat("clocks", clocks()));
        for (name, milliseconds) in SLEEPS {
            scope.spawn(move || work.repeat(name, || sleep(Duration::from_millis(milliseconds))));
        }
        send(&Event::Ready);
        let end = input::read_line();
        work.over.store(true, Relaxed);
        end
    })?;
    let done = work.done.lock().expect("no thread panics while it counts");
    let driver = driven()?;
    send(&Event::Worked {
        done: done.iter().map(|(what, times)| ((*what).to_owned(), *times)).collect(),
        syncrtc_commands: shown(&driver, "syncrtc_commands")?,
        offset_ns: shown(&driver, "offset_ns")?,
    });
    Ok(())
}

/// A tenth of a second of computing and as long a rest.
fn compute() {
    let (start, mut sum) = (Instant::now(), 0_u64);
    while start.elapsed() < Duration::from_millis(100) {
        sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
    }
    thread::sleep(Duration::from_millis(100));
}

/// A process that comes and goes.
fn process() -> io::Result<()> {
    let ended = Command::new("/init").arg0(NOTHING).status()?;
    thread::sleep(Duration::from_millis(500));
    if ended.success() { Ok(()) } else { Err(io::Error::other(ended.to_string())) }
}

/// Writes a block to the first disk, and reads the one before, which must be as it was written.
fn disk() -> io::Result<impl FnMut() -> io::Result<()> + Send> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/vda")?;
    let mut last: Option<(u64, u8)> = None;
    let mut round = 0_u8;
    Ok(move || {
        round = round.wrapping_add(1);
        let place = u64::from(round) * BLOCK as u64 % DISK;
        file.write_all_at(&vec![round; BLOCK], place)?;
        file.sync_data()?;
        // What is read comes from the disk, not from memory.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        if let Some((place, byte)) = last.replace((place, round)) {
            let mut block = vec![0; BLOCK];
            file.read_exact_at(&mut block, place)?;
            if block.iter().any(|&found| found != byte) {
                return Err(io::Error::other(format!("another block at {place}")));
            }
        }
        thread::sleep(Duration::from_millis(400));
        Ok(())
    })
}

/// A message there and back.
fn talk(mut here: UnixStream, mut there: UnixStream) -> impl FnMut() -> io::Result<()> {
    move || {
        let mut message = [0; 64];
        here.write_all(&message)?;
        there.read_exact(&mut message)?;
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }
}

/// No clock may go back.
fn clocks() -> impl FnMut() -> io::Result<()> {
    let clocks = [ClockId::Monotonic, ClockId::MonotonicRaw, ClockId::MonotonicCoarse, ClockId::Boottime];
    let read = move || clocks.map(clock_gettime).map(|time| (time.tv_sec, time.tv_nsec));
    let mut last = read();
    move || {
        let now = read();
        let back = last.iter().zip(&now).position(|(last, now)| now < last);
        if let Some(clock) = back {
            return Err(io::Error::other(format!(
                "{:?} went back from {:?} to {:?}",
                clocks[clock], last[clock], now[clock]
            )));
        }
        last = now;
        thread::sleep(Duration::from_millis(5));
        Ok(())
    }
}

/// No sleep may be too short.
fn sleep(time: Duration) -> io::Result<()> {
    let start = Instant::now();
    thread::sleep(time);
    if start.elapsed() < time {
        return Err(io::Error::other(format!("{time:?} took {:?}", start.elapsed())));
    }
    Ok(())
}
