//! The client of the control socket.

use std::{io, os::unix::net::UnixStream, path::Path};

use crate::{
    Answer, Command, Error, Result,
    json_lines::{Line, LineReader, send},
    message::{Request, Response},
    runtime_dir::{self, check_name, running, socket_path},
};

/// Maximum length of an answer in bytes. Statistics have many rows.
const MAX_ANSWER: usize = 64 << 20;

/// A connection to a running VM.
#[derive(Debug)]
pub struct Client {
    name: String,
    to: UnixStream,
    from: LineReader<UnixStream>,
    last: u64,
}

impl Client {
    /// Connects to the user's VM of that name.
    pub fn connect(name: &str) -> Result<Self> {
        Self::connect_in(&runtime_dir::directory()?, name)
    }

    /// Connects to a VM whose socket is in the given directory.
    pub fn connect_in(dir: &Path, name: &str) -> Result<Self> {
        check_name(name)?;
        let path = socket_path(dir, name);
        let to = match UnixStream::connect(&path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                let running = match running(dir)?.as_slice() {
                    names if names.iter().any(|running| running == name) => {
                        return Err(Error::NotListening { name: name.to_owned() });
                    }
                    [] => "no VM is running: `vmmlinux run` starts one".to_owned(),
                    names => format!("running VMs: {}", names.join(", ")),
                };
                return Err(Error::NotRunning { name: name.to_owned(), running });
            }
            result => result.map_err(|e| Error::io("connect to", &path, e))?,
        };
        let from = to.try_clone().map_err(|e| Error::io("share", &path, e))?;
        Ok(Self { name: name.to_owned(), to, from: LineReader::new(from, MAX_ANSWER), last: 0 })
    }

    /// Sends a command and waits for its answer.
    pub fn call(&mut self, command: Command) -> Result<Answer> {
        self.last += 1;
        let protocol = |problem: String| Error::Protocol { name: self.name.clone(), problem };
        send(&self.to, &Request::new(self.last, command)).map_err(|e| protocol(e.to_string()))?;
        let line = match self.from.next().map_err(|e| protocol(e.to_string()))? {
            Line::Whole(line) => line,
            Line::TooLong => return Err(protocol(format!("its answer is longer than {MAX_ANSWER} bytes"))),
            Line::End => return Err(protocol("it closed the connection".to_owned())),
        };
        let response: Response = serde_json::from_slice(&line).map_err(|e| protocol(e.to_string()))?;
        if response.id != self.last && response.id != 0 {
            return Err(protocol(format!("answer {} to request {}", response.id, self.last)));
        }
        response.into_result().map_err(|reason| Error::Refused { name: self.name.clone(), reason })
    }

    /// Attaches to the console. The returned stream begins with the last 64 KiB of the guest's earlier output.
    pub fn console(mut self) -> Result<UnixStream> {
        self.call(Command::Console)?;
        let (stream, early) = self.from.into_parts();
        if early.is_empty() {
            return Ok(stream);
        }
        // The first output was read along with the answer: a pair of sockets puts it before the rest.
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
