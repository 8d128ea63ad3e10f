//! A machine at the other end of a wire: the same messages as on the control socket, several requests at a time.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
};

use crate::{
    Answer, Command, Vm,
    message::{Request, Response},
    wire::{Line, Lines, send},
};

/// The longest line that is read, in bytes: statistics have many rows.
const LONGEST: usize = 16 << 20;

/// A machine at the other end of a wire.
pub struct Remote {
    to: Mutex<Box<dyn Write + Send>>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    last: u64,
    /// `None` when the wire is cut.
    answers: Option<HashMap<u64, Sender<Result<Answer, String>>>>,
}

impl Remote {
    /// A machine that is reached through this wire.
    pub fn new(from: impl Read + Send + 'static, to: impl Write + Send + 'static) -> io::Result<Self> {
        let waiting = Arc::new(Mutex::new(Waiting { last: 0, answers: Some(HashMap::new()) }));
        let waiting_too = Arc::clone(&waiting);
        let listen = move || {
            let mut lines = Lines::new(from, LONGEST);
            while let Ok(Line::Whole(line)) = lines.next() {
                match serde_json::from_slice::<Response>(&line) {
                    Ok(response) => {
                        let waiter = lock(&waiting_too)
                            .answers
                            .as_mut()
                            .and_then(|answers| answers.remove(&response.id));
                        // Nobody waits for what was refused unread.
                        if let Some(waiter) = waiter {
                            let _ = waiter.send(response.into_result());
                        }
                    }
                    Err(error) => tracing::warn!(%error, "the helper VM speaks rubbish"),
                }
            }
            // Whoever waits learns it by the loss of the sender.
            lock(&waiting_too).answers = None;
        };
        thread::Builder::new().name("remote".to_owned()).spawn(listen)?;
        Ok(Self { to: Mutex::new(Box::new(to)), waiting })
    }
}

const CUT: &str = "the helper VM that it runs in has gone";

impl Vm for Remote {
    fn call(&self, command: Command) -> Result<Answer, String> {
        let (sender, receiver) = mpsc::channel();
        let id = {
            let mut waiting = lock(&self.waiting);
            waiting.last += 1;
            let id = waiting.last;
            waiting.answers.as_mut().ok_or(CUT)?.insert(id, sender);
            id
        };
        {
            let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
            send(&mut **to, &Request::new(id, command)).map_err(|_| CUT)?;
        }
        receiver.recv().map_err(|_| CUT)?
    }
}

/// Serves a machine at this end of a wire, until the other end hangs up. Each request has a thread of its own.
pub fn serve(from: impl Read, to: impl Write + Send + 'static, vm: &Arc<dyn Vm>) -> io::Result<()> {
    let to = Arc::new(Mutex::new(to));
    let answer = |to: &Mutex<_>, response: &Response| {
        send(&mut *to.lock().unwrap_or_else(PoisonError::into_inner), response)
    };
    let mut lines = Lines::new(from, LONGEST);
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
                tracing::debug!(%error, "nobody hears the answer");
            }
        })?;
    }
    Ok(())
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        net::Shutdown,
        os::unix::net::UnixStream,
        sync::{Condvar, atomic::AtomicU32},
    };

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
                    *self.ended.lock().unwrap() = true;
                    self.changed.notify_all();
                    Ok(Answer::Done)
                }
                Command::Wait => {
                    drop(self.changed.wait_while(self.ended.lock().unwrap(), |ended| !*ended).unwrap());
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
        let wire = there.try_clone().unwrap();
        let server = thread::spawn(move || serve(there, wire, &machine));
        let remote = Arc::new(Remote::new(here.try_clone().unwrap(), here.try_clone().unwrap()).unwrap());
        let waiter = Arc::clone(&remote);
        let waiter = thread::spawn(move || waiter.call(Command::Wait));
        assert_eq!(remote.call(Command::Pause), Err("no".to_owned()));
        assert_eq!(remote.call(Command::Stop { force: true }), Ok(Answer::Done));
        assert_eq!(waiter.join().unwrap(), Ok(Answer::Done));
        here.shutdown(Shutdown::Both).unwrap();
        server.join().unwrap().unwrap();
        assert_eq!(remote.call(Command::Status), Err(CUT.to_owned()));
    }

    #[test]
    fn who_waits_hears_that_the_wire_is_cut() {
        let (here, there) = UnixStream::pair().unwrap();
        let remote = Remote::new(here.try_clone().unwrap(), here).unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| remote.call(Command::Wait));
            let mut lines = Lines::new(there.try_clone().unwrap(), LONGEST);
            assert!(matches!(lines.next().unwrap(), Line::Whole(_)));
            there.shutdown(Shutdown::Both).unwrap();
            assert_eq!(waiter.join().unwrap(), Err(CUT.to_owned()));
        });
    }
}
