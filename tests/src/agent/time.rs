//! The words about clocks, sleeps and ticks.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant, SystemTime},
};

use guest_tests::{
    driver::{driven, shown},
    event::{ClockSet, Event, Nap},
};
use rustix::{
    fs::OFlags,
    io::Errno,
    time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
        timerfd_create, timerfd_settime,
    },
};

use crate::send;

/// The name under which the agent is a process that only sleeps for [`ASLEEP`].
pub(crate) const SLEEPER: &str = "sleeper";
/// Longer than it takes until the clock is set after a sleep of the host.
pub(crate) const ASLEEP: Duration = Duration::from_secs(8);

/// A clock that is further behind than this, in nanoseconds, is so because the host slept.
const HOUR: i64 = 3_600_000_000_000;

/// A clock's time in nanoseconds.
fn nanos(clock: ClockId) -> i64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    tv_sec * 1_000_000_000 + tv_nsec
}

fn monotonic() -> i64 {
    nanos(ClockId::Monotonic)
}

/// How long a sleep of `time` takes.
fn sleep(time: Duration) -> Duration {
    let start = Instant::now();
    thread::sleep(time);
    start.elapsed()
}

/// Sends the lower quartile, which a busy host does not move by much, and the longest.
pub(crate) fn sleeps() {
    for (asked, times) in
        [(100, 41), (1_000, 41), (5_000, 41), (10_000, 41), (50_000, 15), (100_000, 9), (1_000_000, 3)]
    {
        let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut took: Vec<_> = (0..times).map(|_| micros(sleep(Duration::from_micros(asked)))).collect();
        took.sort_unstable();
        send(&Event::Slept { asked, quartile: took[times / 4], longest: took[times - 1] });
    }
}

/// The kernel's jiffies.
fn jiffies() -> io::Result<u64> {
    let list = fs::read_to_string("/proc/timer_list")?;
    let jiffies = list.lines().find_map(|line| line.strip_prefix("jiffies: ")?.parse().ok());
    jiffies.ok_or_else(|| io::Error::other("no jiffies in /proc/timer_list"))
}

/// Three clocks at one moment.
struct Moment {
    monotonic: Instant,
    realtime: SystemTime,
    jiffies: u64,
}

impl Moment {
    /// The best of several readings: the one that took the least time, so that the least can have come between its clocks.
    fn now() -> io::Result<Self> {
        let mut best: Option<(Duration, Self)> = None;
        for _ in 0..16 {
            let moment = Self { monotonic: Instant::now(), realtime: SystemTime::now(), jiffies: jiffies()? };
            let width = moment.monotonic.elapsed();
            if best.as_ref().is_none_or(|(least, _)| width < *least) {
                best = Some((width, moment));
            }
        }
        best.map(|(_, moment)| moment).ok_or_else(|| io::Error::other("no reading of the clocks"))
    }
}

pub(crate) fn ticks() -> io::Result<()> {
    let start = Moment::now()?;
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_secs(2));
    let end = Moment::now()?;
    let realtime = end.realtime.duration_since(start.realtime).map_err(io::Error::other)?;
    let millis = |time: Duration| u64::try_from(time.as_millis()).map_err(io::Error::other);
    send(&Event::Passed {
        monotonic: millis(end.monotonic - start.monotonic)?,
        realtime: millis(realtime)?,
        jiffies: end.jiffies - start.jiffies,
    });
    Ok(())
}

/// Times of the kernel's own messages up to the agent's first, in microseconds.
pub(crate) fn early() -> io::Result<()> {
    let mut kmsg = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/kmsg")?;
    let (mut micros, mut record) = (Vec::new(), [0; 8192]);
    loop {
        let length = match kmsg.read(&mut record) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        };
        // Priority with facility (0 is the kernel), number, time, flags; then the text.
        let text = String::from_utf8_lossy(&record[..length]);
        let mut fields = text.split([',', ';']);
        let (priority, time) = (fields.next(), fields.nth(1));
        let priority: u32 = priority.and_then(|field| field.parse().ok()).unwrap_or(u32::MAX);
        if priority >> 3 != 0 {
            break;
        }
        micros.push(time.and_then(|field| field.parse().ok()).ok_or(io::ErrorKind::InvalidData)?);
    }
    send(&Event::MessageTimes(micros));
    Ok(())
}

pub(crate) fn clock() -> io::Result<()> {
    let source = || fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let mut seconds = 0;
    while source()?.trim() == "tsc-early" && seconds < 30 {
        thread::sleep(Duration::from_secs(1));
        seconds += 1;
    }
    let measured = Command::new("/tscrate").arg("2").output()?;
    let text = String::from_utf8_lossy(&measured.stdout);
    let rate = text.trim().strip_prefix("tsc rate: ").and_then(|rest| rest.strip_suffix(" Hz"));
    let tsc_hz = rate.and_then(|hz| hz.parse().ok());
    let tsc_hz = tsc_hz.ok_or_else(|| io::Error::other(format!("no rate in `{text}`")))?;
    send(&Event::Clock { source: source()?.trim().to_owned(), tsc_hz });
    Ok(())
}

/// Reads the clocks in turns, in a loop and after short sleeps.
pub(crate) fn steps() {
    let read = || [ClockId::Monotonic, ClockId::MonotonicRaw, ClockId::Boottime].map(nanos);
    let (mut last, mut back, start) = (read(), 0, Instant::now());
    for round in 0_u64.. {
        let now = read();
        back += now.iter().zip(last).filter(|(now, last)| *now < last).count();
        last = now;
        if round % 100 == 0 {
            if start.elapsed() > Duration::from_secs(1) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
    send(&Event::StepsBackwards(back));
}

/// What a step of the clock must leave alone, or cancel.
struct Watched {
    timer: OwnedFd,
    connection: [TcpStream; 2],
    sleeper: Child,
    began: i64,
}

impl Watched {
    fn start() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK)?;
        let never = Timespec { tv_sec: 4_000_000_000, tv_nsec: 0 };
        let setting = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &setting)?;
        // Up, and a loopback device.
        fs::write("/sys/class/net/lo/flags", "0x9")?;
        let listener = TcpListener::bind("127.0.0.1:7")?;
        let here = TcpStream::connect("127.0.0.1:7")?;
        let (there, _) = listener.accept()?;
        let began = monotonic();
        let sleeper = Command::new("/init").arg0(SLEEPER).spawn()?;
        Ok(Self { timer, connection: [here, there], sleeper, began })
    }

    /// The result, after the clock was set.
    fn finish(mut self, driver: &Path, behind_ms: i64) -> io::Result<ClockSet> {
        let offset_ns = shown(driver, "offset_ns")?;
        let timerfd_cancelled = rustix::io::read(&self.timer, &mut [0; 8]) == Err(Errno::CANCELED);
        let offset_error_ns = shown(driver, "offset_error_ns")?;
        let step_s = shown(driver, "last_step_ns")? / 1_000_000_000;
        let [here, there] = &mut self.connection;
        let connection_lives = here.write_all(b"x").and_then(|()| there.read_exact(&mut [0; 1])).is_ok();
        let sleeper_woke = self.sleeper.wait()?.success();
        let slept_ms = (monotonic() - self.began) / 1_000_000;
        Ok(ClockSet {
            behind_ms,
            offset_ns,
            offset_error_ns,
            step_s,
            timerfd_cancelled,
            connection_lives,
            sleeper_woke,
            slept_ms,
        })
    }
}

pub(crate) fn clocks() -> io::Result<()> {
    let driver = driven()?;
    let watched = Watched::start()?;
    let steps = shown(&driver, "steps")?;
    send(&Event::Waiting("clocks".to_owned()));
    let (mut last, mut behind_since) = (monotonic(), None);
    loop {
        let now = monotonic();
        if now < last {
            return Err(io::Error::other("CLOCK_MONOTONIC went back"));
        }
        last = now;
        if shown(&driver, "steps")? > steps {
            let behind_ms = behind_since.map_or(0, |since| now - since) / 1_000_000;
            send(&Event::ClockSet(watched.finish(&driver, behind_ms)?));
            return Ok(());
        }
        if behind_since.is_none() && shown(&driver, "offset_ns")? < -HOUR {
            behind_since = Some(now);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn naps() -> io::Result<()> {
    let driver = driven()?;
    // A nap may come while the event is sent that asks for it.
    let (mut date, mut last) = (nanos(ClockId::Realtime), monotonic());
    send(&Event::Waiting("naps".to_owned()));
    for _ in 0..2 {
        let mut back = 0;
        loop {
            thread::sleep(Duration::from_millis(20));
            let now = monotonic();
            back = back.max(last - now);
            last = now;
            let before = std::mem::replace(&mut date, nanos(ClockId::Realtime));
            if date - before > HOUR {
                break;
            }
        }
        send(&Event::Nap(after_a_nap(&driver, back)?));
    }
    Ok(())
}

/// Whether the scheduler counts the time that a process takes, whether timers expire, and whether the clock is the host's.
fn after_a_nap(driver: &Path, back: i64) -> io::Result<Nap> {
    let (start, used) = (monotonic(), nanos(ClockId::ProcessCPUTime));
    while monotonic() - start < 200_000_000 {}
    let used = nanos(ClockId::ProcessCPUTime) - used;
    let start = monotonic();
    thread::sleep(Duration::from_secs(1));
    Ok(Nap {
        used_ms: used / 1_000_000,
        slept_ms: (monotonic() - start) / 1_000_000,
        offset_us: shown(driver, "offset_ns")? / 1000,
        back_ms: back / 1_000_000,
    })
}
