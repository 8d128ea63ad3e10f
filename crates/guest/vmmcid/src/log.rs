//! Where the supervisor's and the worker's messages go: the journal, syslog, or standard error.

use std::{
    env, fmt,
    io::{self, IsTerminal, Write},
    os::unix::net::UnixDatagram,
    path::Path,
    sync::Mutex,
};

use serde::{Deserialize, Serialize};

/// Where syslogd listens.
const SYSLOG: &str = "/dev/log";
/// The facility `daemon` of syslog(3), shifted to its place.
const DAEMON: u8 = 3 << 3;

/// How serious a message is, with syslog's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Something does not work.
    Error = 3,
    /// Something may not work as wished.
    Warning = 4,
    /// Something that one wants to find in the log: the host's commands, the clock's steps.
    Notice = 5,
    /// The rest.
    Info = 6,
}

/// Where messages go, as the command line says it.
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
}

impl Log {
    /// A log that goes where it was told to.
    pub fn new(to: To) -> Self {
        let syslog = !io::stderr().is_terminal() && Path::new(SYSLOG).exists();
        let sink = match to {
            To::Auto if env::var_os("JOURNAL_STREAM").is_some() => Sink::Journal,
            To::Auto if syslog => Sink::Syslog(Mutex::default()),
            To::Auto | To::Stderr => Sink::Stderr,
            To::Syslog => Sink::Syslog(Mutex::default()),
        };
        Self { sink }
    }

    /// Writes a message. What cannot be written is lost: there is nowhere to say so.
    pub fn say(&self, level: Level, text: impl fmt::Display) {
        // One message is one line, whoever has made the text.
        let text = text.to_string().replace(char::is_control, " ");
        match &self.sink {
            Sink::Journal => to_stderr(&format!("<{}>{text}\n", level as u8)),
            Sink::Stderr => to_stderr(&format!("vmmcid: {text}\n")),
            Sink::Syslog(socket) => {
                let line = format!("<{}>vmmcid[{}]: {text}", DAEMON | level as u8, std::process::id());
                let mut socket = socket.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if !send(&mut socket, &line) && !send(&mut socket, &line) {
                    to_stderr(&format!("vmmcid: {text}\n"));
                }
            }
        }
    }
}

/// In one write, so that nobody who writes to the same console gets into the line.
fn to_stderr(line: &str) {
    drop(io::stderr().write_all(line.as_bytes()));
}

/// Sends a line to syslogd, which may have been started anew since the last.
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
