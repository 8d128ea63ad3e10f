//! Looks at the guest's and the host's clock ten times a second, through the control device, and says when the guest's was
//! set, and whether it is right then. A connection to itself shows that those survive.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use control_device::{Bar, FUNCTIONS, Function, realtime};
use rustix::time::{ClockId, clock_gettime};

/// What counts as right, in nanoseconds.
const RIGHT: i64 = 50_000_000;
/// What counts as apart, in nanoseconds. At boot the guest knows the time to a second or two, from the RTC.
const APART: i64 = 60_000_000_000;

fn monotonic() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

fn main() -> io::Result<()> {
    let device = Function::find(Path::new(FUNCTIONS)).and_then(|function| function.peek());
    let bar = Bar::new(device.map_err(io::Error::other)?.bar);
    let listener = TcpListener::bind("127.0.0.1:7")?;
    let mut here = TcpStream::connect("127.0.0.1:7")?;
    let (mut there, _) = listener.accept()?;
    let mut last = monotonic();
    let mut ahead = realtime() - last;
    let mut apart_since = None;
    let mut was_set = false;
    println!("clockwatch: on");
    loop {
        let now = monotonic();
        if now < last {
            println!("clockwatch: CLOCK_MONOTONIC went back by {} ns", last - now);
        }
        last = now;
        // The daemon may latch the time between two of these.
        let behind = bar.offset(3).map(|offset| offset.nanos);
        // Whoever sets the clock may have been quicker than this.
        if behind.is_some_and(|behind| behind.abs() > APART) {
            apart_since.get_or_insert(now);
        }
        let step = realtime() - now - ahead;
        if step.abs() > APART {
            println!("clockwatch: set by {} s", step / 1_000_000_000);
            ahead += step;
            was_set = true;
        }
        if let Some(behind) = behind.filter(|behind| was_set && behind.abs() < RIGHT) {
            let apart = apart_since.take().map_or(0, |since| now - since);
            println!("clockwatch: right after {} ms, off by {} us", apart / 1_000_000, -behind / 1000);
            here.write_all(b"x")?;
            there.read_exact(&mut [0; 1])?;
            println!("clockwatch: the connection lives");
            was_set = false;
        }
        thread::sleep(Duration::from_millis(100));
    }
}
