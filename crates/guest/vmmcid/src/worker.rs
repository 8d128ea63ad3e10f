//! The worker: polls the device, sets the clock and answers status requests.
//!
//! It has no way to the outside but the supervisor's socket and clients of the status socket: see [`crate::sandbox`].

use std::{
    io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, set_dumpable_behavior, setpriority_process},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};
use vmmci_protocol::Registers;
use vmmci_sysfs::{Bar, driver_of};

use crate::{
    clock::{Clock, System},
    config::Config,
    ipc::{self, Report, Start},
    log::Level,
    sandbox,
    status::{self, Status},
    watch::{Event, Watch},
};

/// Interval between the worker's reports that it is alive.
const ALIVE: Duration = Duration::from_secs(5);
/// Minimum interval between requests of one client.
const BETWEEN_ANSWERS: Duration = Duration::from_millis(20);
/// Nice value: a stop must be acknowledged within 3 s.
const PRIORITY: i32 = -15;

/// Runs the worker; the supervisor's socket is standard input.
pub fn run() -> ExitCode {
    match link().and_then(|link| work(&link)) {
        Ok(()) => ExitCode::SUCCESS,
        // The supervisor exited while a report was on its way to it.
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            support::note!("vmmcid: worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn link() -> io::Result<UnixStream> {
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

fn work(link: &UnixStream) -> io::Result<()> {
    let _ = rustix::thread::set_name(c"vmmcid-worker");
    // At shutdown init signals all processes at once. The worker ends when the supervisor has ended, not before.
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        flag::register(signal, Arc::default())?;
    }
    let Start { config, device, listener } = ipc::started(link)?;
    listener.set_nonblocking(true)?;
    let say = |level, text: String| ipc::report(link, &Report::Say(level, text));
    // A stop must be acknowledged even when the guest is short of memory.
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        say(Level::Info, format!("memory could not be locked: {error}"))?;
    }
    if let Err(error) = setpriority_process(None, PRIORITY) {
        say(Level::Info, format!("the priority could not be raised: {error}"))?;
    }
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let missing = sandbox::enter_worker();
    for what in &missing {
        say(Level::Warning, what.clone())?;
    }
    let bar = Bar::new(device.bar);
    let mut watch = match Watch::new(&bar, System, &config) {
        Ok(watch) => watch,
        Err(error) => {
            let why = bar.failure().map_or_else(|| error.to_string(), |kind| format!("{error} ({kind})"));
            return ipc::report(link, &Report::Lost(why));
        }
    };
    ipc::report(link, &Report::Ready)?;

    let started = Instant::now();
    let (mut next, mut alive) = (started, started);
    loop {
        let now = Instant::now();
        if now >= next {
            // Checking sysfs costs no exit; polling a device that a driver has taken would disturb that driver.
            if let Some(driver) = driver_of(&device.directory) {
                return ipc::report(link, &Report::Driven(driver));
            }
            for event in watch.poll() {
                ipc::report(link, &report_of(event))?;
            }
            if let Some(kind) = bar.failure() {
                return ipc::report(link, &Report::Lost(kind.to_string()));
            }
            if now >= alive {
                ipc::report(link, &Report::Alive)?;
                alive = now + ALIVE;
            }
            next += config.poll_interval;
            // Missed polls are skipped, not replayed.
            if next <= now {
                next = now + config.poll_interval;
            }
        }
        match wait(link, &listener, next.saturating_duration_since(Instant::now()))? {
            Woken::Supervisor => return Ok(()),
            Woken::Asked => {
                // A client that disconnects before its answer is ignored.
                let _ =
                    status::answer(&listener, || status_of(&mut watch, &config, started.elapsed(), &missing));
                thread::sleep(BETWEEN_ANSWERS);
            }
            Woken::Time => {}
        }
    }
}

fn report_of(event: Event) -> Report {
    match event {
        Event::Say(level, text) => Report::Say(level, text),
        Event::GoDown(order) => Report::GoDown(order),
        Event::ClockSet(nanos) => Report::ClockSet(nanos),
        Event::Sample(offset) => Report::Sample(offset),
    }
}

enum Woken {
    /// The supervisor has exited: its end of the socket is closed.
    Supervisor,
    /// A client requests the status.
    Asked,
    /// Time is up.
    Time,
}

fn wait(link: &UnixStream, listener: &UnixListener, time: Duration) -> io::Result<Woken> {
    let mut fds = [PollFd::new(link, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&time)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(match fds.map(|fd| !fd.revents().is_empty()) {
        [true, _] => Woken::Supervisor,
        [_, true] => Woken::Asked,
        _ => Woken::Time,
    })
}

fn status_of<R: Registers, C: Clock>(
    watch: &mut Watch<R, C>,
    config: &Config,
    up: Duration,
    missing: &[String],
) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        features: watch.features().0,
        uptime: up.as_secs_f64(),
        poll_interval: config.poll_interval.as_secs_f64(),
        offset: watch.offset(),
        counts: watch.counts(),
        last_step: watch.last_step(),
        follow_interval: watch.follow_interval().map(|interval| interval.as_secs_f64()),
        chrony_samples: config.chrony.as_ref().map(|_| watch.sampled()),
        not_confined: missing.to_vec(),
    }
}
