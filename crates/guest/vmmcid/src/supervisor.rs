//! The supervisor: starts the worker, receives its reports, acts on the system.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use miette::Diagnostic;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FlockOperation,
};
use sd_notify::NotifyState;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    low_level::pipe,
};
use thiserror::Error;
use vmmci_sysfs::{FUNCTIONS, Function, Offset, show};

use crate::{
    chrony::Feed,
    config::{self, Config},
    hooks::{self, Moment},
    init::Init,
    ipc::{self, Report, Reports},
    log::{Level, Log},
    sandbox, shutdown, status,
};

/// Interval between searches for a missing device; a search costs no port access.
const SEARCH: Duration = Duration::from_secs(5);
/// Upper limit of the delay before a failing device is tried again.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// A worker that ran for this long counts as healthy: the retry delay starts over.
const SETTLED: Duration = Duration::from_mins(1);
/// A worker without a report for this long hangs and is killed; a healthy one reports every few seconds.
const HANGS: Duration = Duration::from_mins(1);
/// Smallest step of the clock, in nanoseconds, that counts as a resume and runs hooks.
const RESUMED: i64 = 1_000_000_000;
/// Mode of the lock file: flock(2) works on a file that is open for reading, so that a user who can read it could keep the
/// daemon from starting.
const LOCK_MODE: u32 = 0o600;
/// OOM score adjustment (−1000: never killed).
const OOM_SCORE: &str = "-900";

/// Why the daemon does not run.
#[derive(Debug, Error, Diagnostic)]
pub enum Error {
    /// The caller is not root.
    #[error("vmmcid must be started by root")]
    #[diagnostic(help("`vmmcid status` and `vmmcid test` work for every user"))]
    NotRoot,
    /// Another instance runs.
    #[error("vmmcid is already running")]
    #[diagnostic(help("see `vmmcid status`; two instances would both acknowledge the host's commands"))]
    RunsAlready,
    /// The configuration cannot be used.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] config::Error),
    /// The device cannot be used.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Device(#[from] vmmci_sysfs::Error),
    /// A system resource is unusable.
    #[error("cannot {what}")]
    #[diagnostic(help("the daemon needs /proc, /sys and a writable /run"))]
    System {
        /// The operation, as it follows "cannot".
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// The exit status for it. systemd's unit does not restart after 3.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Device(vmmci_sysfs::Error::None(_) | vmmci_sysfs::Error::Driven { .. }) => 3,
            Self::Config(_) => 2,
            _ => 1,
        }
    }
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::System { what, source }
}

/// Runs the daemon until a signal ends it or a driver takes the device. `read` reads the configuration, now and at SIGHUP.
pub fn run(read: &dyn Fn() -> Result<Config, config::Error>, log: Log) -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let config = read()?;
    let function = Function::find(Path::new(FUNCTIONS))?;
    if let Some(driver) = function.driver() {
        return Err(vmmci_sysfs::Error::Driven { function: function.address().to_owned(), driver }.into());
    }
    let _lock = claim(Path::new(status::DIRECTORY))?;
    let listener = listen(Path::new(status::SOCKET))?;
    let signals = caught(&[SIGTERM, SIGINT])?;
    let reloads = caught(&[SIGHUP])?;
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    // Before the capabilities for it are dropped.
    let init = Init::detect();
    if let Err(what) = sandbox::enter_supervisor() {
        log.say(Level::Warning, what);
    }
    log.say(
        Level::Info,
        format!(
            "vmmcid {} for {}, init is {}, {:.2} accesses a second",
            env!("CARGO_PKG_VERSION"),
            function.address(),
            init.name(),
            config.accesses_per_second()
        ),
    );
    Supervisor {
        config,
        read,
        listener,
        init,
        log: Arc::new(log),
        signals,
        reloads,
        going_down: false,
        hooks_run: Arc::default(),
        feed: Feed::default(),
        trouble: Trouble::default(),
    }
    .run()
}

/// A stream that becomes readable after one of the signals.
fn caught(signals: &[i32]) -> Result<UnixStream, Error> {
    let catch = || -> io::Result<UnixStream> {
        let (from, to) = UnixStream::pair()?;
        from.set_nonblocking(true)?;
        for &signal in signals {
            pipe::register(signal, to.try_clone()?)?;
        }
        Ok(from)
    };
    catch().map_err(system("catch signals"))
}

/// Creates the daemon's directory and takes its lock.
fn claim(directory: &Path) -> Result<File, Error> {
    fs::create_dir_all(directory).map_err(system(format!("create {}", directory.display())))?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory, mode).map_err(system(format!("open {} to all", directory.display())))?;
    let path = directory.join("lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(LOCK_MODE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(system(format!("open {}", path.display())))?;
    // One that was left by a daemon with another mode keeps it otherwise.
    let mode = fs::Permissions::from_mode(LOCK_MODE);
    lock.set_permissions(mode).map_err(system(format!("close {} to others", path.display())))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::RunsAlready),
        Err(error) => Err(system(format!("lock {}", path.display()))(error.into())),
    }
}

/// Binds the status socket. The lock is held, so an existing socket is a leftover and is replaced.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    let error = || system(format!("listen at {}", path.display()));
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(error())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(error())?;
    Ok(listener)
}

/// Retry delay and rate-limited message for a failing device.
#[derive(Debug, Default)]
struct Trouble {
    last: Option<String>,
    pause: Duration,
}

impl Trouble {
    /// Returns the text unless it repeats the last one.
    fn new_text(&mut self, text: String) -> Option<String> {
        let new = self.last.as_ref() != Some(&text);
        self.last = Some(text);
        new.then(|| self.last.clone().unwrap_or_default())
    }

    /// Returns the next delay.
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (self.pause * 2).clamp(Duration::from_secs(1), LONGEST_PAUSE);
        pause
    }

    fn over(&mut self) {
        *self = Self::default();
    }
}

struct Supervisor<'a> {
    config: Config,
    read: &'a dyn Fn() -> Result<Config, config::Error>,
    listener: UnixListener,
    init: Init,
    log: Arc<Log>,
    signals: UnixStream,
    reloads: UnixStream,
    going_down: bool,
    /// After-resume hooks are running.
    hooks_run: Arc<AtomicBool>,
    feed: Feed,
    trouble: Trouble,
}

/// Why a worker ended.
enum Over {
    /// The daemon was asked to end.
    Told,
    /// The configuration has changed.
    Reload,
    /// It exited; with its last report, if there was one.
    Ended(Option<String>),
}

impl Supervisor<'_> {
    fn run(mut self) -> Result<(), Error> {
        loop {
            let born = Instant::now();
            let over = match self.start_worker() {
                Ok((child, reports)) => self.attend(child, reports)?,
                Err(error @ Error::Device(vmmci_sysfs::Error::Driven { .. })) => return Err(error),
                Err(error) => Over::Ended(Some(chain(&error))),
            };
            match over {
                Over::Told => {
                    let _ = sd_notify::notify(&[NotifyState::Stopping]);
                    return Ok(());
                }
                Over::Reload => {}
                Over::Ended(why) => {
                    if born.elapsed() >= SETTLED {
                        self.trouble.over();
                    }
                    let why = why.unwrap_or_else(|| "the worker has ended".to_owned());
                    if let Some(text) = self.trouble.new_text(why) {
                        let text = format!("{text}: trying again from time to time");
                        self.log.say(Level::Warning, text);
                    }
                    if self.wait_for_device() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn start_worker(&self) -> Result<(Child, Reports), Error> {
        let device = Function::find(Path::new(FUNCTIONS))?.open()?;
        let (ours, theirs) = UnixStream::pair().map_err(system("create a socket pair"))?;
        let child = Command::new("/proc/self/exe")
            .arg("worker")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(system("start the worker"))?;
        ipc::start(&ours, &self.config, &device, &self.listener).map_err(system("talk to the worker"))?;
        Ok((child, Reports::new(ours).map_err(system("talk to the worker"))?))
    }

    /// Handles a worker's reports until the worker or the daemon ends.
    fn attend(&mut self, mut child: Child, mut reports: Reports) -> Result<Over, Error> {
        let mut heard = Instant::now();
        let mut why = None;
        let over = loop {
            match self.wait(Some(reports.link()), HANGS) {
                Woken::Told => break Over::Told,
                Woken::Reload => {
                    if self.reload() {
                        break Over::Reload;
                    }
                }
                Woken::Report | Woken::Time => {}
            }
            let gone = loop {
                match reports.take() {
                    Ok(Some(report)) => {
                        heard = Instant::now();
                        if let Report::Driven(driver) = report {
                            let function = Function::find(Path::new(FUNCTIONS))?;
                            let function = function.address().to_owned();
                            return Err(vmmci_sysfs::Error::Driven { function, driver }.into());
                        }
                        self.hear(report, &mut why);
                    }
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            if gone {
                break Over::Ended(None);
            }
            if heard.elapsed() > HANGS {
                why = Some("the worker hangs".to_owned());
                break Over::Ended(None);
            }
        };
        // A worker without its socket exits by itself, unless it hangs.
        drop(reports);
        if why.is_some() || !matches!(over, Over::Ended(_)) {
            let _ = child.kill();
        }
        let status = child.wait();
        if let Over::Ended(_) = over {
            let ended = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            return Ok(Over::Ended(Some(why.unwrap_or_else(|| format!("the worker has ended ({ended})")))));
        }
        Ok(over)
    }

    fn hear(&mut self, report: Report, why: &mut Option<String>) {
        match report {
            Report::Say(level, text) => self.log.say(level, text),
            Report::Ready => {
                if self.trouble.last.is_some() {
                    self.log.say(Level::Notice, "the device works again");
                }
                self.trouble.last = None;
                let ready = [NotifyState::Ready, NotifyState::Status("obeying the host")];
                let _ = sd_notify::notify(&ready);
                self.log.say(Level::Info, "DRIVER_OK is set: the host sends commands");
            }
            Report::Alive => drop(sd_notify::notify(&[NotifyState::Watchdog])),
            Report::GoDown(request) => {
                // The first command starts the shutdown; a later one changes nothing.
                if !std::mem::replace(&mut self.going_down, true) {
                    let (config, init, log) = (self.config.clone(), self.init.clone(), Arc::clone(&self.log));
                    let asked = Instant::now();
                    let _ = sd_notify::notify(&[NotifyState::Status("taking the system down")]);
                    thread::spawn(move || shutdown::go_down(request, asked, &config, &init, &log));
                }
            }
            Report::ClockSet(nanos) => {
                if nanos >= RESUMED && !self.going_down && !self.hooks_run.swap(true, Ordering::AcqRel) {
                    self.after_resume(nanos);
                }
            }
            Report::Sample(offset) => self.pass_on(offset),
            // Both end the worker; the text is the reason.
            Report::Driven(_) => {}
            Report::Lost(text) => *why = Some(format!("the device cannot be used: {text}")),
        }
    }

    /// Sends chronyd a sample.
    fn pass_on(&mut self, offset: Offset) {
        let Some(chrony) = &self.config.chrony else { return };
        match self.feed.send(&chrony.socket, offset) {
            Some(Ok(text)) => self.log.say(Level::Info, text),
            Some(Err(text)) => self.log.say(Level::Warning, text),
            None => {}
        }
    }

    fn after_resume(&self, nanos: i64) {
        let (hooks, limit): (PathBuf, _) = (self.config.hooks.clone(), self.config.hook_timeout);
        let (init, log, running) = (self.init.clone(), Arc::clone(&self.log), Arc::clone(&self.hooks_run));
        let seconds = show(nanos).trim_start_matches('+').trim_end_matches(" s").to_owned();
        thread::spawn(move || {
            let environment = [("VMMCID_STEP", seconds)];
            hooks::run(&hooks, Moment::AfterResume, &environment, limit, &init, &log);
            running.store(false, Ordering::Release);
        });
    }

    /// Reloads the configuration; an invalid one changes nothing.
    fn reload(&mut self) -> bool {
        let config = match (self.read)() {
            Ok(config) => config,
            Err(error) => {
                let help = error.help().map(|help| format!(" ({help})")).unwrap_or_default();
                self.log.say(
                    Level::Error,
                    format!("the old configuration stays in force: {}{help}", chain(&error)),
                );
                return false;
            }
        };
        let changed = self.config != config;
        self.config = config;
        self.feed = Feed::default();
        self.log
            .say(Level::Info, if changed { "the configuration has changed" } else { "nothing has changed" });
        changed
    }

    /// Waits for a usable device. Returns false if the daemon is to end instead.
    fn wait_for_device(&mut self) -> bool {
        let mut pause = self.trouble.next_pause();
        loop {
            match self.wait(None, pause) {
                Woken::Told => return true,
                Woken::Reload => drop(self.reload()),
                Woken::Report | Woken::Time => {}
            }
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            if Function::find(Path::new(FUNCTIONS)).is_ok() {
                return false;
            }
            if let Some(text) = self.trouble.new_text("the device is gone".to_owned()) {
                self.log.say(Level::Warning, format!("{text}: searching for it every few seconds"));
            }
            pause = SEARCH;
        }
    }

    fn wait(&self, link: Option<&UnixStream>, time: Duration) -> Woken {
        let mut fds =
            vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.reloads, PollFlags::IN)];
        fds.extend(link.map(|link| PollFd::new(link, PollFlags::IN)));
        let time = Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() };
        if poll(&mut fds, Some(&time)).is_err() {
            return Woken::Time;
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        if ready(0) {
            Woken::Told
        } else if ready(1) {
            drain(&self.reloads);
            Woken::Reload
        } else if ready(2) {
            Woken::Report
        } else {
            Woken::Time
        }
    }
}

enum Woken {
    /// A signal ends the daemon.
    Told,
    /// SIGHUP: reload the configuration.
    Reload,
    /// The worker's socket is readable or closed.
    Report,
    /// A deadline has passed.
    Time,
}

fn drain(mut stream: &UnixStream) {
    let mut bytes = [0; 64];
    while matches!(io::Read::read(&mut stream, &mut bytes), Ok(1..)) {}
}

/// Returns an error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_for_one_and_the_socket_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("run");
        let lock = claim(&place).unwrap();
        assert!(matches!(claim(&place), Err(Error::RunsAlready)));
        let socket = place.join("socket");
        drop(listen(&socket).unwrap());
        let _listener = listen(&socket).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o666);
        drop(lock);
        claim(&place).unwrap();
    }

    #[test]
    fn the_lock_file_is_for_root_alone_even_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();

        let _lock = claim(dir.path()).unwrap();

        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn trouble_is_said_once_and_pauses_grow() {
        let mut trouble = Trouble::default();
        assert_eq!(trouble.new_text("x".into()).as_deref(), Some("x"));
        assert_eq!(trouble.new_text("x".into()), None);
        assert_eq!(trouble.new_text("y".into()).as_deref(), Some("y"));
        let pauses: Vec<_> = (0..9).map(|_| trouble.next_pause().as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        trouble.over();
        assert_eq!(trouble.next_pause(), Duration::ZERO);
    }

    #[test]
    fn systemd_is_told_when_there_is_no_use_in_trying_again() {
        let driven = vmmci_sysfs::Error::Driven { function: "f".into(), driver: "vmmci".into() };
        assert_eq!(Error::from(driven).exit_status(), 3);
        assert_eq!(Error::NotRoot.exit_status(), 1);
        let error = Error::System { what: "a".into(), source: io::Error::other("b") };
        assert_eq!(chain(&error), "cannot a: b");
    }
}
