//! Clocks: the guest's against the host's.

use std::{io, thread, time::Duration};

use rustix::time::{ClockId, clock_gettime};

use super::{console::tell, host::Host};
use crate::event::{Disturbance, Event, Reading};

/// How long the guest sleeps, in microseconds.
const SLEEPS: [u32; 6] = [100, 1_000, 5_000, 10_000, 50_000, 100_000];

/// Readings of which the narrowest is taken.
const BURST: usize = 100;

/// Between two bursts.
const PAUSE: Duration = Duration::from_secs(5);

/// A step of the host's clock, in microseconds, that is one of [`Disturbance`]'s and no delay.
const JUMP: i64 = 1_000_000;

/// How long after a jump the clocks are looked at, in microseconds of the host's.
const AFTERWARDS: i64 = 5_000_000;

/// How often the guest looks for a jump before it gives up; each time takes at least a millisecond.
const LOOKS: u32 = 60_000;

fn nanos(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Clocks that are watched for steps backwards.
struct Watch {
    clocks: [(ClockId, &'static str); 3],
    last: [i64; 3],
    readings: u64,
    steps: [u64; 3],
    largest: [u64; 3],
}

impl Watch {
    fn new() -> Self {
        let clocks = [
            (ClockId::MonotonicRaw, "CLOCK_MONOTONIC_RAW"),
            (ClockId::Monotonic, "CLOCK_MONOTONIC"),
            (ClockId::Realtime, "CLOCK_REALTIME"),
        ];
        Self { clocks, last: [i64::MIN; 3], readings: 0, steps: [0; 3], largest: [0; 3] }
    }

    /// One of the clocks, by its index.
    fn read(&mut self, index: usize) -> i64 {
        let now = nanos(self.clocks[index].0);
        if now < self.last[index] {
            self.steps[index] += 1;
            self.largest[index] = self.largest[index].max(now.abs_diff(self.last[index]));
        }
        self.last[index] = now;
        self.readings += 1;
        now
    }

    /// All clocks and the host's.
    fn reading(&mut self, host: &Host) -> Reading {
        self.read(1);
        let raw_before = self.read(0);
        let real_before = self.read(2);
        let seconds = host.latch();
        let real_after = self.read(2);
        let raw_after = self.read(0);
        Reading {
            raw: i64::midpoint(raw_before, raw_after),
            real: i64::midpoint(real_before, real_after),
            host: host.latched(seconds).cast_signed(),
            width: raw_after - raw_before,
        }
    }

    /// The best of many: the one that took the least time, so that the least can have come between.
    fn burst(&mut self, host: &Host) -> Reading {
        let mut best = self.reading(host);
        for _ in 1..BURST {
            let reading = self.reading(host);
            if reading.width < best.width {
                best = reading;
            }
        }
        best
    }

    fn tell(&self) {
        for (index, (_, clock)) in self.clocks.iter().enumerate() {
            tell(&Event::Backwards {
                clock: (*clock).to_owned(),
                readings: self.readings / 3,
                steps: self.steps[index],
                largest: self.largest[index],
            });
        }
    }
}

/// Sleeps of several lengths, `times` each, fewer of the long ones.
pub(super) fn sleeps(times: u32) -> io::Result<()> {
    let host = Host::open()?;
    for asked in SLEEPS {
        let times = if asked > 20_000 { times.div_ceil(4) } else { times };
        let took = (0..times)
            .map(|_| {
                let before = host.micros();
                thread::sleep(Duration::from_micros(asked.into()));
                u32::try_from(host.micros().saturating_sub(before)).unwrap_or(u32::MAX)
            })
            .collect();
        tell(&Event::Slept { asked, took });
    }
    Ok(())
}

/// Compares clocks for so many of the host's seconds.
pub(super) fn drift(seconds: u32) -> io::Result<()> {
    let host = Host::open()?;
    let mut watch = Watch::new();
    let end = host.micros() + u64::from(seconds) * 1_000_000;
    loop {
        let reading = watch.burst(&host);
        tell(&Event::Reading(reading));
        let left = end.saturating_sub(reading.host.unsigned_abs());
        if left == 0 {
            break;
        }
        thread::sleep(PAUSE.min(Duration::from_micros(left)));
    }
    watch.tell();
    Ok(())
}

/// Waits for the host's clock to jump, and looks at the guest's own.
pub(super) fn survive(disturbance: Disturbance) -> io::Result<()> {
    let host = Host::open()?;
    let mut watch = Watch::new();
    let behind = |reading: Reading| reading.host * 1000 - reading.real;
    let first = watch.burst(&host);
    tell(&Event::Await(disturbance));
    let (mut before, mut jump) = (first, None);
    for _ in 0..LOOKS {
        thread::sleep(Duration::from_millis(1));
        let now = watch.reading(&host);
        if jump.is_none() && now.host - before.host > JUMP {
            jump = Some((now.host - before.host, now.raw - before.raw, now.host));
        }
        before = now;
        if jump.is_some_and(|(_, _, at)| now.host - at > AFTERWARDS) {
            break;
        }
    }
    let (host_jump, raw_jump, _) =
        jump.ok_or_else(|| io::Error::other(format!("nothing happened to the clocks: {disturbance:?}")))?;
    let last = watch.burst(&host);
    tell(&Event::Survived {
        disturbance,
        host: host_jump,
        raw: raw_jump,
        behind: behind(last) - behind(first),
    });
    watch.tell();
    Ok(())
}
