//! Looks at the guest's and the host's clock ten times a second, through the control device, and says when the guest's was
//! set, and whether it is right then. A connection to itself shows that those survive.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    thread,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use vmmci::{HostTime, Registers};

/// What counts as right, in nanoseconds.
const RIGHT: i64 = 50_000_000;
/// What counts as apart, in nanoseconds. At boot the guest knows the time to a second or two, from the RTC.
const APART: i64 = 60_000_000_000;

struct Bar(File);

impl Registers for Bar {
    fn read(&self, offset: u16) -> u32 {
        let mut value = [0xff; 4];
        let _ = self.0.read_exact_at(&mut value, offset.into());
        u32::from_le_bytes(value)
    }

    fn write(&self, _: u16, _: u32) {}
}

fn nanos(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Guest − host, by the reading of several that took least; the daemon may latch the time between two of ours.
fn offset(bar: &Bar) -> Option<i64> {
    (0..3)
        .filter_map(|_| {
            let (before, host, after) = HostTime::read(bar, || nanos(ClockId::Realtime))?;
            let host = i64::from(host.seconds) * 1_000_000_000 + i64::from(host.micros) * 1000;
            Some((after - before, before + (after - before) / 2 - host))
        })
        .min()
        .map(|(_, offset)| offset)
}

fn main() -> io::Result<()> {
    let bar = Bar(open()?);
    let listener = TcpListener::bind("127.0.0.1:7")?;
    let mut here = TcpStream::connect("127.0.0.1:7")?;
    let (mut there, _) = listener.accept()?;
    let mut last = nanos(ClockId::Monotonic);
    let mut ahead = nanos(ClockId::Realtime) - last;
    let mut apart_since = None;
    let mut was_set = false;
    println!("clockwatch: on");
    loop {
        let now = nanos(ClockId::Monotonic);
        if now < last {
            println!("clockwatch: CLOCK_MONOTONIC went back by {} ns", last - now);
        }
        last = now;
        let offset = offset(&bar);
        // Whoever sets the clock may have been quicker than this.
        if offset.is_some_and(|offset| offset.abs() > APART) {
            apart_since.get_or_insert(now);
        }
        let step = nanos(ClockId::Realtime) - now - ahead;
        if step.abs() > APART {
            println!("clockwatch: set by {} s", step / 1_000_000_000);
            ahead += step;
            was_set = true;
        }
        if let Some(offset) = offset.filter(|offset| was_set && offset.abs() < RIGHT) {
            let apart = apart_since.take().map_or(0, |since| now - since);
            println!("clockwatch: right after {} ms, off by {} us", apart / 1_000_000, offset / 1000);
            here.write_all(b"x")?;
            there.read_exact(&mut [0; 1])?;
            println!("clockwatch: the connection lives");
            was_set = false;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn open() -> io::Result<File> {
    for entry in fs::read_dir("/sys/bus/pci/devices")? {
        let function = entry?.path();
        let id = |name| fs::read_to_string(function.join(name)).map(|id| id.trim().to_owned());
        if (id("vendor")?.as_str(), id("device")?.as_str()) == ("0x0b5d", "0x0777") {
            return File::open(function.join("resource0"));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no function 0b5d:0777"))
}
