//! A VM in the helper VM: the messages of the control socket on a stream, with several requests at a time.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread,
};

use parking_lot::Mutex;

use crate::{
    Answer, Command, Vm,
    json_lines::{Line, LineReader, send},
    message::{Request, Response},
};

/// Maximum length of a message in bytes. Statistics have many rows.
const MAX_MESSAGE: usize = 64 << 20;

/// A VM that is controlled through a stream.
pub struct RemoteVm {
    to: Mutex<Box<dyn Write + Send>>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    last: u64,
    /// The requests without an answer, by number; `None` after the connection is lost.
    answers: Option<HashMap<u64, Sender<Result<Answer, String>>>>,
}

impl RemoteVm {
    /// A VM whose control server reads `to` and writes `from`.
    pub fn new(from: impl Read + Send + 'static, to: impl Write + Send + 'static) -> io::Result<Self> {
        let waiting = Arc::new(Mutex::new(Waiting { last: 0, answers: Some(HashMap::new()) }));
        let waiting_too = Arc::clone(&waiting);
        let listen = move || {
            let mut lines = LineReader::new(from, MAX_MESSAGE);
            while let Ok(Line::Whole(line)) = lines.next() {
                match serde_json::from_slice::<Response>(&line) {
                    Ok(response) => {
                        let waiter = waiting_too
                            .lock()
                            .answers
                            .as_mut()
                            .and_then(|answers| answers.remove(&response.id));
                        // A refusal with number 0 has no waiter.
                        if let Some(waiter) = waiter {
                            let _ = waiter.send(response.into_result());
                        }
                    }
                    Err(error) => tracing::warn!(%error, "the helper VM sent an invalid message"),
                }
            }
            // Dropping the senders ends every wait for an answer.
            waiting_too.lock().answers = None;
        };
        thread::Builder::new().name("remote".to_owned()).spawn(listen)?;
        Ok(Self { to: Mutex::new(Box::new(to)), waiting })
    }
}

/// The error of every request after the connection is lost.
const CONNECTION_LOST: &str = "the helper VM that it runs in has ended";

impl Vm for RemoteVm {
    fn call(&self, command: Command) -> Result<Answer, String> {
        let (sender, receiver) = mpsc::channel();
        let id = {
            let mut waiting = self.waiting.lock();
            waiting.last += 1;
            let id = waiting.last;
            waiting.answers.as_mut().ok_or(CONNECTION_LOST)?.insert(id, sender);
            id
        };
        {
            let mut to = self.to.lock();
            send(&mut **to, &Request::new(id, command)).map_err(|_| CONNECTION_LOST)?;
        }
        receiver.recv().map_err(|_| CONNECTION_LOST)?
    }
}

/// Serves a VM on a stream until the other end closes it. Each request has a thread of its own.
pub fn serve(from: impl Read, to: impl Write + Send + 'static, vm: &Arc<dyn Vm>) -> io::Result<()> {
    let to = Arc::new(Mutex::new(to));
    let answer = |to: &Mutex<_>, response: &Response| send(&mut *to.lock(), response);
    let mut lines = LineReader::new(from, MAX_MESSAGE);
    while let Line::Whole(line) = lines.next()? {
        let request = match Request::parse(&line) {
            Ok(request) => request,
            Err(refusal) => {
                answer(&to, &refusal)?;
                continue;
            }
        };
        let (vm, to) = (Arc::clone(vm), Arc::clone(&to));
        thread::Builder::new().name("command".to_owned()).spawn(move || {
            let response = Response::new(request.id, vm.call(request.command));
            if let Err(error) = answer(&to, &response) {
                tracing::debug!(%error, "the answer could not be sent");
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{net::Shutdown, os::unix::net::UnixStream, sync::atomic::AtomicU32};

    use parking_lot::Condvar;

    use super::*;

    /// Answers `wait` only after `stop`.
    #[derive(Default)]
    struct Machine {
        ended: Mutex<bool>,
        changed: Condvar,
        stops: AtomicU32,
    }

    impl Vm for Machine {
        fn call(&self, command: Command) -> Result<Answer, String> {
            match command {
                Command::Stop { .. } => {
                    self.stops.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    *self.ended.lock() = true;
                    self.changed.notify_all();
                    Ok(Answer::Done)
                }
                Command::Wait => {
                    self.changed.wait_while(&mut self.ended.lock(), |ended| !*ended);
                    Ok(Answer::Done)
                }
                _ => Err("no".to_owned()),
            }
        }
    }

    #[test]
    fn requests_overtake_one_that_waits() {
        let (here, there) = UnixStream::pair().unwrap();
        let machine: Arc<dyn Vm> = Arc::new(Machine::default());
        let input = there.try_clone().unwrap();
        let server = thread::spawn(move || serve(there, input, &machine));
        let remote = Arc::new(RemoteVm::new(here.try_clone().unwrap(), here.try_clone().unwrap()).unwrap());
        let waiter = Arc::clone(&remote);
        let waiter = thread::spawn(move || waiter.call(Command::Wait));
        assert_eq!(remote.call(Command::Pause), Err("no".to_owned()));
        assert_eq!(remote.call(Command::Stop { force: true }), Ok(Answer::Done));
        assert_eq!(waiter.join().unwrap(), Ok(Answer::Done));
        here.shutdown(Shutdown::Both).unwrap();
        server.join().unwrap().unwrap();
        assert_eq!(remote.call(Command::Status), Err(CONNECTION_LOST.to_owned()));
    }

    #[test]
    fn a_lost_connection_ends_every_wait() {
        let (here, there) = UnixStream::pair().unwrap();
        let remote = RemoteVm::new(here.try_clone().unwrap(), here).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| remote.call(Command::Wait));
            let mut lines = LineReader::new(there.try_clone().unwrap(), MAX_MESSAGE);
            assert!(matches!(lines.next().unwrap(), Line::Whole(_)));
            there.shutdown(Shutdown::Both).unwrap();
            assert_eq!(waiter.join().unwrap(), Err(CONNECTION_LOST.to_owned()));
        });
    }
}
