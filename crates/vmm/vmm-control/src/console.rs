//! The console of a running VM: the guest's output, its history, and one attached client at a time.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How much of the guest's earlier output a client gets when it attaches, in bytes.
const HISTORY: usize = 64 << 10;

/// Timeout of a write to the attached client. The guest's output waits for it, so a slower client is detached.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The console.
///
/// Nothing but the history, for which a new connection has room, is written with `screen` locked: clients come and go and
/// the VM ends although the output or a client is not read.
pub struct Console {
    keyboard: Mutex<Box<dyn Write + Send>>,
    output: Mutex<Option<Box<dyn Write + Send>>>,
    screen: Mutex<Screen>,
    written: Condvar,
}

struct Screen {
    history: VecDeque<u8>,
    owner: Owner,
    /// Bytes of output that were copied and sent.
    count: u64,
    /// Number of the last client.
    last: u64,
}

/// Who is attached to the console.
enum Owner {
    None,
    /// The terminal of the process that runs the VM, until the VM ends.
    Terminal,
    /// The client of this number, which has not been told yet: output is not sent to it.
    Reserved(u64),
    /// The client of this number.
    Client(u64, Arc<UnixStream>),
}

impl Owner {
    /// The client's number.
    const fn number(&self) -> Option<u64> {
        match self {
            Self::None | Self::Terminal => None,
            Self::Reserved(number) | Self::Client(number, _) => Some(*number),
        }
    }
}

/// Whether the other end of `stream` is closed. Its thread does not notice while the guest takes no input.
fn is_closed(stream: &UnixStream) -> bool {
    let mut waited = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut waited, Some(&Timespec::default())).is_ok() && waited[0].revents().contains(PollFlags::HUP)
}

impl Console {
    /// A console that sends input to `keyboard`, and copies all output to `output`. With `terminal`, the terminal of
    /// this process is attached and no client can be.
    pub fn new(
        keyboard: Box<dyn Write + Send>,
        output: Option<Box<dyn Write + Send>>,
        terminal: bool,
    ) -> Self {
        let owner = if terminal { Owner::Terminal } else { Owner::None };
        Self {
            keyboard: Mutex::new(keyboard),
            output: Mutex::new(output),
            screen: Mutex::new(Screen { history: VecDeque::new(), owner, count: 0, last: 0 }),
            written: Condvar::new(),
        }
    }

    /// Sends input to the guest.
    pub fn send_input(&self, bytes: &[u8]) -> io::Result<()> {
        let mut keyboard = self.keyboard.lock();
        keyboard.write_all(bytes)?;
        keyboard.flush()
    }

    /// Adds output of the guest: to the history, the copy, and the attached client. Blocks while these are not read. One
    /// thread calls this.
    pub fn write_output(&self, bytes: &[u8]) {
        let client = self.remember(bytes);
        // A failed copy is dropped. Whether the guest is stopped then is the caller's decision.
        let mut output = self.output.lock();
        if let Some(copy) = &mut *output
            && copy.write_all(bytes).and_then(|()| copy.flush()).is_err()
        {
            *output = None;
        }
        drop(output);
        if let Some((number, client)) = client
            && (&*client).write_all(bytes).is_err()
        {
            let _ = client.shutdown(std::net::Shutdown::Both);
            self.detach(number);
        }
        self.screen().count += bytes.len() as u64;
        self.written.notify_all();
    }

    /// Adds output to the history. Returns the client to send it to.
    fn remember(&self, bytes: &[u8]) -> Option<(u64, Arc<UnixStream>)> {
        let mut screen = self.screen();
        let keep = &bytes[bytes.len().saturating_sub(HISTORY)..];
        let over = (screen.history.len() + keep.len()).saturating_sub(HISTORY);
        screen.history.drain(..over);
        screen.history.extend(keep);
        match &screen.owner {
            Owner::Client(number, client) => Some((*number, Arc::clone(client))),
            _ => None,
        }
    }

    /// Detaches the client of this number, if it is attached.
    fn detach(&self, number: u64) {
        let mut screen = self.screen();
        if screen.owner.number() == Some(number) {
            screen.owner = Owner::None;
        }
    }

    /// Copies the guest's output from a stream until its end.
    pub fn copy_output(&self, mut from: impl Read) -> io::Result<()> {
        let mut bytes = vec![0; 16 << 10];
        loop {
            match from.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(n) => self.write_output(&bytes[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until `bytes` bytes of output were copied in all. Returns false after `timeout`.
    pub fn wait_for(&self, bytes: u64, timeout: Duration) -> bool {
        let mut screen = self.screen();
        self.written.wait_while_for(&mut screen, |screen| screen.count < bytes, timeout);
        screen.count >= bytes
    }

    /// The number of bytes of output that were copied so far.
    pub fn count(&self) -> u64 {
        self.screen().count
    }

    /// Closes the connection of the attached client: there is no further output.
    pub fn close(&self) {
        if let Owner::Client(_, client) = &self.screen().owner {
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Attaches a client unless the terminal or another client is attached. One that has closed its connection is
    /// replaced.
    pub(crate) fn attach(self: &Arc<Self>) -> Result<Attached, String> {
        let mut screen = self.screen();
        match &screen.owner {
            Owner::None => {}
            Owner::Client(_, client) if is_closed(client) => {}
            Owner::Terminal => {
                return Err("its console is attached to the terminal that it was started from".to_owned());
            }
            Owner::Reserved(_) | Owner::Client(..) => {
                return Err("another client is attached to its console".to_owned());
            }
        }
        screen.last += 1;
        screen.owner = Owner::Reserved(screen.last);
        Ok(Attached { console: Arc::clone(self), number: screen.last })
    }

    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock()
    }
}

/// A client attached to a console; detached when dropped.
pub(crate) struct Attached {
    console: Arc<Console>,
    number: u64,
}

impl Attached {
    /// Passes bytes between the client and the console until one of them ends. `input` has already been read from the
    /// client.
    pub(crate) fn serve(self, mut client: UnixStream, input: &[u8]) -> io::Result<()> {
        client.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        {
            let mut screen = self.console.screen();
            let (old, new) = screen.history.as_slices();
            client.write_all(old)?;
            client.write_all(new)?;
            screen.owner = Owner::Client(self.number, Arc::new(client.try_clone()?));
        }
        self.console.send_input(input)?;
        let mut bytes = [0; 4096];
        loop {
            match client.read(&mut bytes)? {
                0 => return Ok(()),
                n => self.console.send_input(&bytes[..n])?,
            }
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.console.detach(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_client_sees_earlier_output_and_types() {
        let (keyboard, output) = (Sink::default(), Sink::default());
        let console =
            Arc::new(Console::new(Box::new(keyboard.clone()), Some(Box::new(output.clone())), false));
        console.write_output(b"login: ");
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let attached = console.attach().unwrap();
        assert!(console.attach().is_err_and(|reason| reason.contains("another client")));
        let client = thread::spawn(move || attached.serve(theirs, b"ro"));
        let mut seen = [0; 7];
        ours.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"login: ");
        ours.write_all(b"ot\n").unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        client.join().unwrap().unwrap();
        assert_eq!(*keyboard.0.lock(), b"root\n");
        assert_eq!(*output.0.lock(), b"login: ");
        assert!(console.attach().is_ok());
    }

    #[test]
    fn a_client_that_left_while_the_guest_takes_no_input_is_replaced() {
        let (keyboard, _unread) = UnixStream::pair().unwrap();
        let console = Arc::new(Console::new(Box::new(keyboard), None, false));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let attached = console.attach().unwrap();
        let keys = vec![b'x'; 1 << 20];
        // Blocks for good in the guest's keyboard.
        thread::spawn(move || attached.serve(theirs, &keys));
        while !matches!(console.screen().owner, Owner::Client(..)) {
            thread::yield_now();
        }
        assert!(console.attach().is_err());
        drop(ours);
        let second = console.attach().unwrap();
        console.detach(1);
        assert_eq!(console.screen().owner.number(), Some(second.number), "the first is not attached");
    }

    #[test]
    fn an_output_that_is_not_read_blocks_its_writer_only() {
        let (output, unread) = UnixStream::pair().unwrap();
        let console = Arc::new(Console::new(Box::new(io::sink()), Some(Box::new(output)), false));
        let writing = Arc::clone(&console);
        let writer = thread::spawn(move || writing.write_output(&vec![b'x'; 1 << 20]));
        while console.screen().history.is_empty() {
            thread::yield_now();
        }
        assert!(!console.wait_for(1, Duration::ZERO));
        assert!(console.attach().is_ok());
        console.close();
        drop(unread);
        writer.join().unwrap();
    }

    #[test]
    fn the_history_is_the_end_of_the_output() {
        let console = Console::new(Box::new(io::sink()), None, false);
        for _ in 0..3 {
            console.write_output(&vec![b'a'; HISTORY / 2]);
        }
        console.write_output(b"end");
        console.write_output(&[]);
        let screen = console.screen();
        assert_eq!(screen.history.len(), HISTORY);
        assert_eq!(screen.history.iter().rev().take(3).copied().collect::<Vec<u8>>(), b"dne");
        drop(screen);
        assert_eq!(console.count(), HISTORY as u64 / 2 * 3 + 3);
        assert!(console.wait_for(5, Duration::ZERO));
        assert!(!console.wait_for(u64::MAX, Duration::ZERO));
    }

    #[test]
    fn one_write_larger_than_the_history() {
        let console = Console::new(Box::new(io::sink()), None, false);
        console.write_output(b"past");
        console.write_output(&vec![b'b'; HISTORY + 5]);
        assert!(console.screen().history.iter().all(|byte| *byte == b'b'));
        assert_eq!(console.screen().history.len(), HISTORY);
    }

    #[test]
    fn a_client_cannot_replace_the_terminal() {
        let console = Arc::new(Console::new(Box::new(io::sink()), None, true));
        assert!(console.attach().is_err_and(|reason| reason.contains("terminal")));
    }
}
