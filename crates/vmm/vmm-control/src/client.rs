//! The user's end of the control socket.

use std::{io, os::unix::net::UnixStream, path::Path};

use crate::{
    Answer, Command, Error, Result,
    message::{Request, Response},
    place::{self, check_name, running, socket_path},
    wire::{Line, Lines, send},
};

/// The longest answer that is read, in bytes: statistics have many rows.
const LONGEST: usize = 16 << 20;

/// A connection to a running machine.
#[derive(Debug)]
pub struct Client {
    name: String,
    to: UnixStream,
    from: Lines<UnixStream>,
    last: u64,
}

impl Client {
    /// Connects to the user's machine of that name.
    pub fn connect(name: &str) -> Result<Self> {
        Self::connect_in(&place::directory()?, name)
    }

    /// Connects to a machine whose socket is in a directory of the caller's.
    pub fn connect_in(dir: &Path, name: &str) -> Result<Self> {
        check_name(name)?;
        let path = socket_path(dir, name);
        let to = match UnixStream::connect(&path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                let running = match running(dir)?.as_slice() {
                    names if names.iter().any(|running| running == name) => {
                        return Err(Error::Deaf { name: name.to_owned() });
                    }
                    [] => "no machine is running at all: `vmmlinux run` starts one".to_owned(),
                    names => format!("running: {}", names.join(", ")),
                };
                return Err(Error::NotRunning { name: name.to_owned(), running });
            }
            result => result.map_err(|e| Error::io("connect to", &path, e))?,
        };
        let from = to.try_clone().map_err(|e| Error::io("share", &path, e))?;
        Ok(Self { name: name.to_owned(), to, from: Lines::new(from, LONGEST), last: 0 })
    }

    /// Gives a command and waits for its answer.
    pub fn call(&mut self, command: Command) -> Result<Answer> {
        self.last += 1;
        let protocol = |problem: String| Error::Protocol { name: self.name.clone(), problem };
        send(&self.to, &Request::new(self.last, command)).map_err(|e| protocol(e.to_string()))?;
        let line = match self.from.next().map_err(|e| protocol(e.to_string()))? {
            Line::Whole(line) => line,
            Line::TooLong => return Err(protocol(format!("an answer of more than {LONGEST} bytes"))),
            Line::End => return Err(protocol("it has hung up".to_owned())),
        };
        let response: Response = serde_json::from_slice(&line).map_err(|e| protocol(e.to_string()))?;
        if response.id != self.last && response.id != 0 {
            return Err(protocol(format!("answer {} to request {}", response.id, self.last)));
        }
        response.into_result().map_err(|reason| Error::Refused { name: self.name.clone(), reason })
    }

    /// Takes the console. What comes from the stream is what the guest wrote, beginning with the last 64 KiB of the past.
    pub fn console(mut self) -> Result<UnixStream> {
        self.call(Command::Console)?;
        let (stream, early) = self.from.into_parts();
        if early.is_empty() {
            return Ok(stream);
        }
        // The beginning was read along with the answer: put it before the rest.
        let io = |e| Error::io("share", "the console", e);
        let (ours, mut theirs) = UnixStream::pair().map_err(io)?;
        let (mut from, mut to) = (stream, self.to);
        let mut back = theirs.try_clone().map_err(io)?;
        let spawn = |work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name("console".to_owned()).spawn(work).map(drop).map_err(io)
        };
        spawn(Box::new(move || {
            let _ = io::Write::write_all(&mut theirs, &early).and_then(|()| io::copy(&mut from, &mut theirs));
            let _ = theirs.shutdown(std::net::Shutdown::Both);
        }))?;
        spawn(Box::new(move || {
            let _ = io::copy(&mut back, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        }))?;
        Ok(ours)
    }
}
