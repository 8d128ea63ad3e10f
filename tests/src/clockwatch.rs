//! Looks at the guest's and the host's clock ten times a second, through the control device, and sends an event when the
//! guest's was set, and when it is right then. A connection to itself shows that connections survive.
//!
//! `clockwatch 600` compares them once a second, so many times, and sends the offsets. `clockwatch event JSON` sends an
//! event for a shell script.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use bench::wire::Sender;
use guest_tests::{
    driver::{driven, shown},
    event::{Event, Offsets},
};
use rustix::time::{ClockId, clock_gettime};
use vmmci_sysfs::{Bar, FUNCTIONS, Function, realtime};

/// What counts as right, in nanoseconds.
const RIGHT: i64 = 50_000_000;
/// What counts as apart, in nanoseconds. At boot the guest knows the time to a second or two, from the RTC.
const APART: i64 = 60_000_000_000;

static SENDER: Sender = Sender::new();

fn monotonic() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// The device, which a daemon may have as well.
fn bar() -> io::Result<Bar> {
    let device = Function::find(Path::new(FUNCTIONS)).and_then(|function| function.peek());
    Ok(Bar::new(device.map_err(io::Error::other)?.bar))
}

/// Guest minus host in nanoseconds, and by how much that may be wrong.
fn offset(driver: Option<&Path>, bar: &Bar) -> io::Result<(i64, i64)> {
    let Some(driver) = driver else {
        let offset = bar.offset(5).ok_or_else(|| io::Error::other("the host does not tell the time"))?;
        return Ok((offset.guest_minus_host.nanos(), offset.uncertainty));
    };
    Ok((shown(driver, "offset_ns")?, shown(driver, "offset_error_ns")?))
}

/// Compares the clocks so many times. The sizes of the offsets are ranked without their signs.
fn offsets(times: usize) -> io::Result<()> {
    let (driver, bar) = (driven().ok(), bar()?);
    let (mut signed, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let (offset, error) = offset(driver.as_deref(), &bar)?;
        signed.push(offset);
        errors.push(error);
        thread::sleep(Duration::from_secs(1));
    }
    let mut sizes: Vec<_> = signed.iter().map(|offset| offset.abs()).collect();
    for list in [&mut signed, &mut sizes, &mut errors] {
        list.sort_unstable();
    }
    let rank = |list: &[i64], percent| list.get(list.len() * percent / 100).copied().unwrap_or(0);
    SENDER.send(&Event::Offsets(Offsets {
        times,
        median: rank(&signed, 50),
        size: rank(&sizes, 50),
        p99: rank(&sizes, 99),
        worst: sizes.last().copied().unwrap_or(0),
        error: rank(&errors, 50),
    }))
}

fn main() -> io::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => watch(),
        [word, event] if word == "event" => SENDER.send(&serde_json::from_str::<Event>(event)?),
        [times] => offsets(times.parse().map_err(io::Error::other)?),
        _ => Err(io::Error::other("usage: clockwatch [TIMES | event JSON]")),
    }
}

/// Watches the clocks for ever.
fn watch() -> io::Result<()> {
    let bar = bar()?;
    let listener = TcpListener::bind("127.0.0.1:7")?;
    let mut here = TcpStream::connect("127.0.0.1:7")?;
    let (mut there, _) = listener.accept()?;
    let mut last = monotonic();
    let mut ahead = realtime() - last;
    let mut apart_since = None;
    let mut was_set = false;
    SENDER.send(&Event::Waiting("clockwatch".to_owned()))?;
    loop {
        let now = monotonic();
        if now < last {
            SENDER.send(&Event::WentBack(last - now))?;
        }
        last = now;
        // The daemon may latch the time between two of these.
        let behind = bar.offset(3).map(|offset| -offset.guest_minus_host.nanos());
        // The program that sets the clock may have been quicker than this.
        if behind.is_some_and(|behind| behind.abs() > APART) {
            apart_since.get_or_insert(now);
        }
        let step = realtime() - now - ahead;
        if step.abs() > APART {
            SENDER.send(&Event::SetBy(step / 1_000_000_000))?;
            ahead += step;
            was_set = true;
        }
        if let Some(behind) = behind.filter(|behind| was_set && behind.abs() < RIGHT) {
            let apart = apart_since.take().map_or(0, |since| now - since);
            SENDER.send(&Event::Right { after_ms: apart / 1_000_000, off_us: -behind / 1000 })?;
            here.write_all(b"x")?;
            there.read_exact(&mut [0; 1])?;
            SENDER.send(&Event::ConnectionLives)?;
            was_set = false;
        }
        thread::sleep(Duration::from_millis(100));
    }
}
