//! The process that meets the device, the clock and whoever asks: see the crate's documentation.

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
    chrony::Feed,
    clock::{Clock, System},
    config::Config,
    ipc::{self, Report, Start},
    log::Level,
    sandbox,
    status::{self, Status},
    watch::{Event, Watch},
};

/// How often the supervisor hears that all is well.
const ALIVE: Duration = Duration::from_secs(5);
/// Who asks all the time gets no more of the processor than this leaves him.
const BETWEEN_ANSWERS: Duration = Duration::from_millis(20);
/// Of ordinary processes this one runs first: the host gives it 3 s.
const PRIORITY: i32 = -15;

/// Runs the worker, which the supervisor has started with its link as standard input.
pub fn run() -> ExitCode {
    match link().and_then(|link| work(&link)) {
        Ok(()) => ExitCode::SUCCESS,
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
    // At a system's end init signals all processes at once; this one goes when the supervisor has gone, not before.
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        flag::register(signal, Arc::default())?;
    }
    let Start { config, device, listener } = ipc::started(link)?;
    listener.set_nonblocking(true)?;
    let say = |level, text: String| ipc::report(link, &Report::Say(level, text));
    // A guest that is short of memory shall not keep it from answering.
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        say(Level::Info, format!("memory could not be locked: {error}"))?;
    }
    if let Err(error) = setpriority_process(None, PRIORITY) {
        say(Level::Info, format!("the priority could not be raised: {error}"))?;
    }
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let mut feed = config.chrony.clone().map(Feed::new).transpose()?;
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
            // Costs the host nothing, unlike a look at the device under a driver's feet.
            if let Some(driver) = driver_of(&device.directory) {
                return ipc::report(link, &Report::Driven(driver));
            }
            for event in watch.poll() {
                ipc::report(link, &report_of(event))?;
            }
            if let Some(kind) = bar.failure() {
                return ipc::report(link, &Report::Lost(kind.to_string()));
            }
            if let Some(feed) = feed.as_mut().filter(|feed| feed.due(now)) {
                match feed.send(now, watch.sample()) {
                    Some(Ok(text)) => say(Level::Info, text)?,
                    Some(Err(text)) => say(Level::Warning, text)?,
                    None => {}
                }
            }
            if now >= alive {
                ipc::report(link, &Report::Alive)?;
                alive = now + ALIVE;
            }
            next += config.poll_interval;
            // What was missed is not made up for.
            if next <= now {
                next = now + config.poll_interval;
            }
        }
        match wait(link, &listener, next.saturating_duration_since(Instant::now()))? {
            Woken::Supervisor => return Ok(()),
            Woken::Asked => {
                // Whoever goes away before he is answered is his own affair.
                let _ = status::answer(&listener, || {
                    status_of(&mut watch, &config, feed.as_ref(), started.elapsed(), &missing)
                });
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
    }
}

enum Woken {
    /// The supervisor has gone: it never says anything more.
    Supervisor,
    /// Somebody asks how things are.
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
    feed: Option<&Feed>,
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
        chrony_samples: feed.map(Feed::sent),
        not_confined: missing.to_vec(),
    }
}
