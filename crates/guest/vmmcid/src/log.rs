//! The log of supervisor and worker: the journal, syslog or standard error.

use std::{
    env, fmt,
    io::{self, IsTerminal, Write},
    os::unix::net::UnixDatagram,
    path::Path,
    time::Instant,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::rate_limit::Budget;

/// Where syslogd listens.
const SYSLOG: &str = "/dev/log";
/// The facility `daemon` of syslog(3), shifted to its place.
const DAEMON: u8 = 3 << 3;

/// How serious a message is, with syslog's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// A failure.
    Error = 3,
    /// A possible failure.
    Warning = 4,
    /// Normal but significant: the host's commands, steps of the clock.
    Notice = 5,
    /// Information.
    Info = 6,
}

/// The `--log` argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum To {
    /// The journal if systemd has started the daemon, a terminal if it has one, else syslog, else standard error.
    #[default]
    Auto,
    /// Standard error.
    Stderr,
    /// syslogd; standard error while there is none.
    Syslog,
}

enum Sink {
    /// Standard error, with the priority in front as sd-daemon(3) has it.
    Journal,
    Stderr,
    Syslog(Mutex<Option<UnixDatagram>>),
}

/// The log.
pub struct Log {
    sink: Sink,
    /// Lines of hooks' output.
    hooks: Mutex<Budget>,
}

impl Log {
    /// A log with the given destination.
    pub fn new(to: To) -> Self {
        let syslog = !io::stderr().is_terminal() && Path::new(SYSLOG).exists();
        let sink = match to {
            To::Auto if env::var_os("JOURNAL_STREAM").is_some() => Sink::Journal,
            To::Auto if syslog => Sink::Syslog(Mutex::default()),
            To::Auto | To::Stderr => Sink::Stderr,
            To::Syslog => Sink::Syslog(Mutex::default()),
        };
        Self { sink, hooks: Mutex::new(Budget::new(Instant::now())) }
    }

    /// Writes a line of a hook's output if the budget for those allows it at `now`. Returns whether it does.
    pub fn hook_line(&self, name: &str, line: &str, now: Instant) -> bool {
        let allowed = self.hooks.lock().take(now);
        if allowed {
            self.say(Level::Info, format!("hook {name}: {line}"));
        }
        allowed
    }

    /// Writes a message; a failure to write is ignored.
    pub fn say(&self, level: Level, text: impl fmt::Display) {
        // One message is one line: line breaks in its text are replaced.
        let text = text.to_string().replace(char::is_control, " ");
        match &self.sink {
            Sink::Journal => to_stderr(&format!("<{}>{text}\n", level as u8)),
            Sink::Stderr => to_stderr(&format!("vmmcid: {text}\n")),
            Sink::Syslog(socket) => {
                let line = format!("<{}>vmmcid[{}]: {text}", DAEMON | level as u8, std::process::id());
                let mut socket = socket.lock();
                if !send(&mut socket, &line) && !send(&mut socket, &line) {
                    to_stderr(&format!("vmmcid: {text}\n"));
                }
            }
        }
    }
}

/// In one write, so that other writers of the same console cannot split the line.
fn to_stderr(line: &str) {
    drop(io::stderr().write_all(line.as_bytes()));
}

/// Sends a line to syslogd; reconnects if it was restarted.
fn send(socket: &mut Option<UnixDatagram>, line: &str) -> bool {
    if socket.is_none() {
        *socket = UnixDatagram::unbound()
            .and_then(|new| {
                new.set_nonblocking(true)?;
                new.connect(SYSLOG)?;
                Ok(new)
            })
            .ok();
    }
    let sent = socket.as_ref().is_some_and(|socket| socket.send(line.as_bytes()).is_ok());
    if !sent {
        *socket = None;
    }
    sent
}
