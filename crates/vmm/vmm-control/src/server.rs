//! The machine's end of the control socket.

use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    Answer, Command, Error, Result, Vm,
    console::Console,
    message::{Request, Response},
    place::Claim,
    wire::{LONGEST, Line, Lines, send},
};

/// How many clients are served at once.
const CLIENTS: usize = 64;

/// How long clients may take, when the machine has ended, to hear the answers that they wait for.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A control socket that is being served. Dropping it removes the socket and frees the name, after clients that wait
/// for an answer have got it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    claim: Claim,
    unanswered: Arc<Unanswered>,
}

/// How many requests were read and not answered.
#[derive(Debug, Default)]
struct Unanswered {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl Unanswered {
    /// Answers a request with what `answer` does.
    fn with<T>(&self, answer: impl FnOnce() -> T) -> T {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let result = answer();
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.fewer.notify_all();
        result
    }

    fn wait(&self, patience: Duration) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.fewer.wait_timeout_while(count, patience, |count| *count > 0));
    }
}

impl Server {
    /// Serves a machine and its console under a name.
    pub fn start(claim: Claim, vm: Arc<dyn Vm>, console: Arc<Console>) -> Result<Self> {
        let listener =
            UnixListener::bind(claim.socket()).map_err(|e| Error::io("create", claim.socket(), e))?;
        let accepting = listener.try_clone().map_err(|e| Error::io("share", claim.socket(), e))?;
        let clients = Arc::new(AtomicUsize::new(0));
        let unanswered = Arc::<Unanswered>::default();
        let pending = Arc::clone(&unanswered);
        let accept = move || {
            for stream in accepting.incoming() {
                let Ok(stream) = stream else { return };
                let (vm, console, clients) = (Arc::clone(&vm), Arc::clone(&console), Arc::clone(&clients));
                let pending = Arc::clone(&pending);
                // One more than is served is told so; the next ones wait in the socket's queue.
                let crowded = clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS;
                let serve = move || {
                    let result =
                        if crowded { turn_away(&stream) } else { converse(stream, &*vm, &console, &pending) };
                    clients.fetch_sub(1, Ordering::Relaxed);
                    if let Err(error) = result {
                        tracing::debug!(%error, "a client of the control socket went away");
                    }
                };
                if crowded {
                    serve();
                } else if thread::Builder::new().name("control".to_owned()).spawn(serve).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(accept)
            .map_err(|e| Error::io("start a thread for", claim.socket(), e))?;
        Ok(Self { listener, claim, unanswered })
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        self.claim.name()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends the accepting thread.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        self.unanswered.wait(LAST_ANSWERS);
    }
}

fn turn_away(stream: &UnixStream) -> io::Result<()> {
    send(stream, &Response::new(0, Err(format!("it has {CLIENTS} control clients already"))))
}

/// Answers a client's requests until it goes.
fn converse(
    stream: UnixStream,
    vm: &dyn Vm,
    console: &Arc<Console>,
    unanswered: &Unanswered,
) -> io::Result<()> {
    let to = stream.try_clone()?;
    let mut lines = Lines::new(stream, LONGEST);
    loop {
        let line = match lines.next()? {
            Line::Whole(line) => line,
            Line::TooLong => {
                let text = format!("a request has more than {LONGEST} bytes");
                return send(&to, &Response::new(0, Err(text)));
            }
            Line::End => return Ok(()),
        };
        let request = match Request::parse(&line) {
            Ok(request) => request,
            Err(refusal) => {
                send(&to, &refusal)?;
                continue;
            }
        };
        if request.command == Command::Console {
            match console.sit_down() {
                Ok(sitting) => {
                    send(&to, &Response::new(request.id, Ok(Answer::Done)))?;
                    let (stream, typed) = lines.into_parts();
                    return sitting.stay(stream, &typed);
                }
                Err(reason) => send(&to, &Response::new(request.id, Err(reason)))?,
            }
            continue;
        }
        unanswered.with(|| send(&to, &Response::new(request.id, vm.call(request.command))))?;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::Shutdown,
    };

    use serde_json::{Value, json};

    use super::*;
    use crate::{Client, message::Ending};

    struct Fake;

    impl Vm for Fake {
        fn call(&self, command: Command) -> std::result::Result<Answer, String> {
            match command {
                Command::Reboot => Err("the guest has no driver for vmmci".to_owned()),
                Command::Wait => Ok(Answer::Ended(Box::new(Ending {
                    status: 3,
                    text: "died".to_owned(),
                    help: None,
                    ended: Value::Null,
                    statistics: Value::Null,
                    console_bytes: 0,
                }))),
                _ => Ok(Answer::Done),
            }
        }
    }

    fn server() -> (tempfile::TempDir, Server) {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::in_directory(dir.path(), "vm").unwrap();
        let console = Console::new(Box::new(io::sink()), None, false);
        console.show(b"hello");
        let server = Server::start(claim, Arc::new(Fake), Arc::new(console)).unwrap();
        (dir, server)
    }

    /// What the server says to raw bytes, until it hangs up.
    fn say(server: &Server, bytes: &[u8]) -> Vec<Value> {
        let mut stream = UnixStream::connect(server.claim.socket()).unwrap();
        // The server may hang up before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        said.split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_slice(l).unwrap())
            .collect()
    }

    #[test]
    fn a_client_is_answered_and_refused_in_words() {
        let (dir, _server) = server();
        let mut client = Client::connect_in(dir.path(), "vm").unwrap();
        assert_eq!(client.call(Command::Pause).unwrap(), Answer::Done);
        let refused = client.call(Command::Reboot).unwrap_err();
        assert_eq!(refused.to_string(), "vm: the guest has no driver for vmmci");
        let Answer::Ended(ending) = client.call(Command::Wait).unwrap() else { panic!("no ending") };
        assert_eq!(ending.status, 3);
    }

    #[test]
    fn garbage_is_answered_and_the_next_request_too() {
        let (_dir, server) = server();
        let said = say(&server, b"\xff\xfe{{{\n[]\n\n{\"vmmlinux\":1,\"id\":4,\"do\":\"pause\"}\nhalf");
        assert_eq!(said.len(), 4);
        assert!(said[..3].iter().all(|answer| answer["id"] == 0 && answer["error"].is_string()));
        assert_eq!(said[3], json!({"vmmlinux": 1, "id": 4, "ok": "done"}));
    }

    #[test]
    fn an_endless_line_is_cut_off() {
        let (_dir, server) = server();
        let said = say(&server, &vec![b'x'; LONGEST + 2]);
        // The answer may be lost with the connection, for unread bytes reset it; the server lives either way.
        assert!(said.is_empty() || said[0]["error"].as_str().unwrap().contains("more than"));
        assert_eq!(say(&server, b"{\"vmmlinux\":1,\"id\":1,\"do\":\"pause\"}\n").len(), 1);
    }

    #[test]
    fn the_console_is_given_to_one() {
        let (dir, _server) = server();
        let mut console = Client::connect_in(dir.path(), "vm").unwrap().console().unwrap();
        let mut seen = [0; 5];
        console.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        let second = Client::connect_in(dir.path(), "vm").unwrap().console().unwrap_err();
        assert!(second.to_string().contains("somebody else"));
    }

    #[test]
    fn a_server_that_is_gone_leaves_nothing() {
        let (dir, server) = server();
        drop(server);
        let gone = Client::connect_in(dir.path(), "vm").unwrap_err();
        assert!(matches!(gone, Error::NotRunning { .. }));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
