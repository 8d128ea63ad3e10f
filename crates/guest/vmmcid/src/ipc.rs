//! Messages between supervisor and worker: lines of JSON over a socket pair.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use vmmci_protocol::ShutdownKind;
use vmmci_sysfs::{Offset, Opened};

use crate::{
    config::{Config, ShutdownKindDef},
    log::Level,
};

/// Size limit of a message in bytes: a configuration with long paths fits.
const LONGEST: usize = 16 * 1024;

/// The supervisor's first and only message.
#[derive(Debug)]
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// The device.
    pub device: Opened,
    /// The listening status socket.
    pub listener: UnixListener,
}

/// A report of the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// For the log.
    Say(Level, String),
    /// DRIVER_OK is set and the sandbox is active.
    Ready,
    /// The worker is alive.
    Alive,
    /// A stop or reboot was acknowledged.
    GoDown(#[serde(with = "ShutdownKindDef")] ShutdownKind),
    /// The clock was set; the step in nanoseconds, positive: forward.
    ClockSet(i64),
    /// A sample for chronyd.
    Sample(Offset),
    /// The worker ends because a driver has come.
    Driven(String),
    /// The worker ends because the device cannot be used.
    Lost(String),
}

/// Sends the worker its first message.
pub fn start(link: &UnixStream, config: &Config, device: &Opened, listener: &UnixListener) -> io::Result<()> {
    let mut message = serde_json::to_vec(config)?;
    message.push(b'\n');
    if message.len() > LONGEST {
        return Err(io::Error::other("the configuration is too long"));
    }
    let files = [device.bar.as_fd(), device.directory.as_fd(), listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    let sent = sendmsg(link, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)?;
    (&mut &*link).write_all(&message[sent..])
}

/// Receives the worker's first message.
pub fn started(link: &UnixStream) -> io::Result<Start> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; LONGEST];
    let received =
        recvmsg(link, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    message.truncate(received.bytes);
    if message.last() != Some(&b'\n') {
        BufReader::new(link).read_until(b'\n', &mut message)?;
    }
    let mut files: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    let [bar, directory, listener] = <[OwnedFd; 3]>::try_from(files)
        .map_err(|files| io::Error::other(format!("{} files instead of 3", files.len())))?;
    Ok(Start {
        config: serde_json::from_slice(&message)?,
        device: Opened { bar: File::from(bar), directory: File::from(directory) },
        listener: UnixListener::from(listener),
    })
}

/// Sends a report.
pub fn report(link: &UnixStream, report: &Report) -> io::Result<()> {
    let mut message = serde_json::to_vec(report)?;
    message.push(b'\n');
    (&mut &*link).write_all(&message)
}

/// The receiving end of a worker's reports.
#[derive(Debug)]
pub struct Reports {
    from: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Reports {
    /// The reports from a worker's link.
    pub fn new(link: UnixStream) -> io::Result<Self> {
        link.set_nonblocking(true)?;
        Ok(Self { from: BufReader::with_capacity(LONGEST, link), line: Vec::new() })
    }

    /// The socket, for polling.
    pub fn link(&self) -> &UnixStream {
        self.from.get_ref()
    }

    /// The next report: `Ok(None)` if there is none now, an error if the worker has exited or sent an invalid message.
    pub fn take(&mut self) -> io::Result<Option<Report>> {
        let room = LONGEST.saturating_sub(self.line.len());
        match self.from.by_ref().take(room as u64).read_until(b'\n', &mut self.line) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            result => drop(result?),
        }
        if self.line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let report = serde_json::from_slice(&self.line);
        self.line.clear();
        Ok(Some(report?))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_start_arrives_with_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bar");
        std::fs::write(&path, "registers").unwrap();
        let device = Opened { bar: File::open(&path).unwrap(), directory: File::open(dir.path()).unwrap() };
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let config = Config { set_clock: false, ..Config::default() };
        start(&here, &config, &device, &listener).unwrap();
        let started = started(&there).unwrap();
        assert_eq!(started.config, config);
        let mut text = [0; 9];
        started.device.bar.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"registers");
        UnixStream::connect(dir.path().join("socket")).unwrap();
        started.listener.accept().unwrap();
    }

    #[test]
    fn reports_arrive_in_order_and_their_end_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut reports = Reports::new(here).unwrap();
        assert_eq!(reports.take().unwrap(), None);
        let sent = [
            Report::Ready,
            Report::Say(Level::Notice, "a\nb".into()),
            Report::GoDown(ShutdownKind::Reboot),
            Report::ClockSet(-5),
        ];
        for each in &sent {
            report(&there, each).unwrap();
        }
        for each in sent {
            assert_eq!(reports.take().unwrap(), Some(each));
        }
        (&mut &there).write_all(b"\"al").unwrap();
        assert_eq!(reports.take().unwrap(), None);
        (&mut &there).write_all(b"ive\"\n").unwrap();
        assert_eq!(reports.take().unwrap(), Some(Report::Alive));
        (&mut &there).write_all(b"{\"reboot\":1}\n").unwrap();
        assert!(reports.take().is_err());
        drop(there);
        assert!(reports.take().is_err());
    }
}
