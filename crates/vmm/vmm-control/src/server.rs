//! The server of the control socket.

use std::{
    collections::BTreeMap,
    io,
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use crate::{
    Answer, Command, Error, Result, Vm,
    console::Console,
    json_lines::{Line, LineReader, MAX_LINE, send},
    message::{Request, Response},
    runtime_dir::NameLock,
};

/// Maximum number of clients at a time. One more replaces the one that has been idle for longest.
const MAX_CLIENTS: usize = 64;

/// How long the server waits, after the VM has ended, until all outstanding answers are sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after a client that could not be accepted, for want of file descriptors most often.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A running control server. Dropping it sends outstanding answers, removes the socket and frees the name.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    name: NameLock,
    unanswered: Arc<Unanswered>,
}

/// The number of requests that were read and not answered.
#[derive(Debug, Default)]
struct Unanswered {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl Unanswered {
    /// Counts one request while `answer` runs.
    fn with<T>(&self, answer: impl FnOnce() -> T) -> T {
        *self.count.lock() += 1;
        let result = answer();
        *self.count.lock() -= 1;
        self.fewer.notify_all();
        result
    }

    fn wait(&self, timeout: Duration) {
        let mut count = self.count.lock();
        self.fewer.wait_while_for(&mut count, |count| *count > 0, timeout);
    }
}

impl Server {
    /// Serves a VM and its console under a name.
    pub fn start(name: NameLock, vm: Arc<dyn Vm>, console: Arc<Console>) -> Result<Self> {
        let listener =
            UnixListener::bind(name.socket()).map_err(|e| Error::io("create", name.socket(), e))?;
        let accepting = listener.try_clone().map_err(|e| Error::io("share", name.socket(), e))?;
        let unanswered = Arc::<Unanswered>::default();
        let pending = Arc::clone(&unanswered);
        let accept = move || {
            let clients = Arc::<Clients>::default();
            for stream in accepting.incoming() {
                let stream = match stream {
                    Ok(stream) => stream,
                    // The listener is shut down: the server is dropped.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a control client");
                        thread::sleep(ACCEPT_PAUSE);
                        continue;
                    }
                };
                let (vm, console, pending) = (Arc::clone(&vm), Arc::clone(&console), Arc::clone(&pending));
                let served = clients.enter(&stream).and_then(|place| {
                    let Some(place) = place else { return refuse(&stream) };
                    let serve = move || {
                        if let Err(error) = serve_client(stream, &*vm, &console, &pending, &place) {
                            tracing::debug!(%error, "the connection to a control client was lost");
                        }
                    };
                    thread::Builder::new().name("control".to_owned()).spawn(serve).map(drop)
                });
                if let Err(error) = served {
                    tracing::warn!(%error, "cannot serve a control client");
                }
            }
        };
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(accept)
            .map_err(|e| Error::io("start a thread for", name.socket(), e))?;
        Ok(Self { listener, name, unanswered })
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        self.name.name()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends the accepting thread.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        self.unanswered.wait(DRAIN_TIMEOUT);
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Activity {
    /// It has no request.
    Idle,
    /// It waits for the guest's end.
    Waiting,
    /// Its request is carried out, or it is attached to the console.
    Busy,
}

impl Activity {
    const fn of(command: &Command) -> Self {
        match command {
            Command::Wait => Self::Waiting,
            _ => Self::Busy,
        }
    }
}

/// The connected clients.
#[derive(Debug, Default)]
struct Clients(Mutex<Connected>);

#[derive(Debug, Default)]
struct Connected {
    /// Number of the last client, and of the last change of an activity.
    last: u64,
    clients: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    activity: Activity,
    since: u64,
}

impl Clients {
    /// Gives a client a place. If there is none, the client that has been idle for longest loses its own and its
    /// connection; if none is idle, the one that has waited for longest. `None` if all are busy.
    fn enter(self: &Arc<Self>, stream: &UnixStream) -> io::Result<Option<Place>> {
        let stream = stream.try_clone()?;
        let mut connected = self.0.lock();
        if connected.clients.len() >= MAX_CLIENTS {
            let longest = connected.clients.iter().min_by_key(|(_, client)| (client.activity, client.since));
            let Some((&number, _)) = longest.filter(|(_, client)| client.activity != Activity::Busy) else {
                return Ok(None);
            };
            if let Some(client) = connected.clients.remove(&number) {
                let _ = client.stream.shutdown(Shutdown::Both);
            }
        }
        connected.last += 1;
        let number = connected.last;
        connected.clients.insert(number, Connection { stream, activity: Activity::Idle, since: number });
        Ok(Some(Place { clients: Arc::clone(self), number }))
    }
}

/// A client's place among [`Clients`], free again when dropped.
struct Place {
    clients: Arc<Clients>,
    number: u64,
}

impl Place {
    fn set(&self, activity: Activity) {
        let mut connected = self.clients.0.lock();
        connected.last += 1;
        let since = connected.last;
        if let Some(client) = connected.clients.get_mut(&self.number) {
            (client.activity, client.since) = (activity, since);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.0.lock().clients.remove(&self.number);
    }
}

fn refuse(stream: &UnixStream) -> io::Result<()> {
    send(
        stream,
        &Response::new(0, Err(format!("it already has {MAX_CLIENTS} control clients, and all are busy"))),
    )
}

/// Answers a client's requests until it closes the connection.
fn serve_client(
    stream: UnixStream,
    vm: &dyn Vm,
    console: &Arc<Console>,
    unanswered: &Unanswered,
    place: &Place,
) -> io::Result<()> {
    let to = stream.try_clone()?;
    let mut lines = LineReader::new(stream, MAX_LINE);
    loop {
        let line = match lines.next()? {
            Line::Whole(line) => line,
            Line::TooLong => {
                let text = format!("a request is longer than {MAX_LINE} bytes");
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
            match console.attach() {
                Ok(attached) => {
                    place.set(Activity::Busy);
                    send(&to, &Response::new(request.id, Ok(Answer::Done)))?;
                    let (stream, input) = lines.into_parts();
                    return attached.serve(stream, &input);
                }
                Err(reason) => send(&to, &Response::new(request.id, Err(reason)))?,
            }
            continue;
        }
        place.set(Activity::of(&request.command));
        unanswered.with(|| send(&to, &Response::new(request.id, vm.call(request.command))))?;
        place.set(Activity::Idle);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use serde_json::{Value, json};

    use super::*;
    use crate::{Client, message::ExitReport};

    struct Fake;

    impl Vm for Fake {
        fn call(&self, command: Command) -> std::result::Result<Answer, String> {
            match command {
                Command::Reboot => Err("the guest has no driver for vmmci".to_owned()),
                Command::Wait => Ok(Answer::Ended(Box::new(ExitReport {
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
        let name = NameLock::in_directory(dir.path(), "vm").unwrap();
        let console = Console::new(Box::new(io::sink()), None, false);
        console.write_output(b"hello");
        let server = Server::start(name, Arc::new(Fake), Arc::new(console)).unwrap();
        (dir, server)
    }

    /// What the server says to raw bytes, until it hangs up.
    fn say(server: &Server, bytes: &[u8]) -> Vec<Value> {
        let mut stream = UnixStream::connect(server.name.socket()).unwrap();
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
        let said = say(&server, &vec![b'x'; MAX_LINE + 2]);
        // The answer may be lost with the connection, for unread bytes reset it; the server lives either way.
        assert!(said.is_empty() || said[0]["error"].as_str().unwrap().contains("longer than"));
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
        assert!(second.to_string().contains("another client"));
    }

    #[test]
    fn an_idle_client_gives_way_to_a_new_one() {
        let (dir, server) = server();
        let connect = || Client::connect_in(dir.path(), "vm").unwrap();
        let mut first = connect();
        let idle: Vec<_> =
            (1..2 * MAX_CLIENTS).map(|_| UnixStream::connect(server.name.socket()).unwrap()).collect();
        assert_eq!(connect().call(Command::Stop { force: true }).unwrap(), Answer::Done);
        assert!(
            matches!(first.call(Command::Status), Err(Error::Protocol { .. })),
            "it was idle for longest"
        );
        drop(idle);
    }

    #[test]
    fn the_longest_idle_client_is_replaced_before_one_that_waits_and_a_busy_one_never() {
        let clients = Arc::<Clients>::default();
        let (stream, _other) = UnixStream::pair().unwrap();
        let enter = || clients.enter(&stream).unwrap();
        let places: Vec<_> = (0..MAX_CLIENTS).map(|_| enter().unwrap()).collect();
        places.iter().skip(2).for_each(|place| place.set(Activity::Busy));
        places[0].set(Activity::Waiting);
        let has = |place: &Place| clients.0.lock().clients.contains_key(&place.number);
        let third = enter().unwrap();
        assert_eq!((has(&places[1]), has(&places[0])), (false, true));
        third.set(Activity::Busy);
        let fourth = enter().unwrap();
        assert!(!has(&places[0]));
        fourth.set(Activity::Busy);
        assert!(enter().is_none());
        drop(fourth);
        assert!(enter().is_some());
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
