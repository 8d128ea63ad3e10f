//! The console of a running machine: one stream of bytes from the guest, and one person at a time who types.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How much of what the guest wrote is shown to who comes later, in bytes.
const HISTORY: usize = 64 << 10;

/// A client that takes nothing for so long loses its seat, for the guest waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The console.
pub struct Console {
    keyboard: Mutex<Box<dyn Write + Send>>,
    screen: Mutex<Screen>,
    written: Condvar,
}

struct Screen {
    history: VecDeque<u8>,
    output: Option<Box<dyn Write + Send>>,
    seat: Seat,
    count: u64,
}

enum Seat {
    Free,
    /// Taken, for good, by the process that runs the machine.
    Terminal,
    /// Given to a client that does not know yet.
    Promised,
    Client(UnixStream),
}

impl Console {
    /// A console whose typed bytes go to `keyboard`, and all of whose output also goes to `output`. With `terminal`,
    /// somebody types at the machine's own terminal and nobody else can.
    pub fn new(
        keyboard: Box<dyn Write + Send>,
        output: Option<Box<dyn Write + Send>>,
        terminal: bool,
    ) -> Self {
        let seat = if terminal { Seat::Terminal } else { Seat::Free };
        Self {
            keyboard: Mutex::new(keyboard),
            screen: Mutex::new(Screen { history: VecDeque::new(), output, seat, count: 0 }),
            written: Condvar::new(),
        }
    }

    /// Sends what was typed to the guest.
    pub fn typed(&self, bytes: &[u8]) -> io::Result<()> {
        let mut keyboard = self.keyboard.lock().unwrap_or_else(PoisonError::into_inner);
        keyboard.write_all(bytes)?;
        keyboard.flush()
    }

    /// Shows what the guest has written.
    pub fn show(&self, bytes: &[u8]) {
        let mut screen = self.screen();
        screen.count += bytes.len() as u64;
        let keep = &bytes[bytes.len().saturating_sub(HISTORY)..];
        let over = (screen.history.len() + keep.len()).saturating_sub(HISTORY);
        screen.history.drain(..over);
        screen.history.extend(keep);
        // Whether the guest ends when nobody reads is for whoever runs it to say.
        if let Some(output) = &mut screen.output
            && output.write_all(bytes).and_then(|()| output.flush()).is_err()
        {
            screen.output = None;
        }
        if let Seat::Client(client) = &mut screen.seat
            && client.write_all(bytes).is_err()
        {
            let _ = client.shutdown(std::net::Shutdown::Both);
            screen.seat = Seat::Free;
        }
        drop(screen);
        self.written.notify_all();
    }

    /// Shows all that comes from a stream, to its end.
    pub fn show_all(&self, mut from: impl Read) -> io::Result<()> {
        let mut bytes = vec![0; 16 << 10];
        loop {
            match from.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(n) => self.show(&bytes[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until so many bytes were shown in all. False if that takes longer than `patience`.
    pub fn wait_for(&self, bytes: u64, patience: Duration) -> bool {
        let waited = self.written.wait_timeout_while(self.screen(), patience, |screen| screen.count < bytes);
        waited.unwrap_or_else(PoisonError::into_inner).0.count >= bytes
    }

    /// How many bytes were shown so far.
    pub fn count(&self) -> u64 {
        self.screen().count
    }

    /// Tells a client that there is no more to come.
    pub fn close(&self) {
        if let Seat::Client(client) = &self.screen().seat {
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Takes the seat at the console, if it is free.
    pub(crate) fn sit_down(self: &Arc<Self>) -> Result<Sitting, String> {
        let mut screen = self.screen();
        match screen.seat {
            Seat::Free => {
                screen.seat = Seat::Promised;
                Ok(Sitting { console: Arc::clone(self) })
            }
            Seat::Terminal => Err("its console is on the terminal that it was started from".to_owned()),
            Seat::Promised | Seat::Client(_) => Err("somebody else is at its console".to_owned()),
        }
    }

    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The seat at a console; free again when dropped.
pub(crate) struct Sitting {
    console: Arc<Console>,
}

impl Sitting {
    /// Passes bytes between a client and the console until either goes; `typed` has been read from the client already.
    pub(crate) fn stay(self, mut client: UnixStream, typed: &[u8]) -> io::Result<()> {
        client.set_write_timeout(Some(PATIENCE))?;
        {
            let mut screen = self.console.screen();
            let (old, new) = screen.history.as_slices();
            client.write_all(old)?;
            client.write_all(new)?;
            screen.seat = Seat::Client(client.try_clone()?);
        }
        self.console.typed(typed)?;
        let mut bytes = [0; 4096];
        loop {
            match client.read(&mut bytes)? {
                0 => return Ok(()),
                n => self.console.typed(&bytes[..n])?,
            }
        }
    }
}

impl Drop for Sitting {
    fn drop(&mut self) {
        self.console.screen().seat = Seat::Free;
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
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_client_sees_the_past_and_types() {
        let (keyboard, output) = (Sink::default(), Sink::default());
        let console =
            Arc::new(Console::new(Box::new(keyboard.clone()), Some(Box::new(output.clone())), false));
        console.show(b"login: ");
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let sitting = console.sit_down().unwrap();
        assert!(console.sit_down().is_err_and(|reason| reason.contains("somebody else")));
        let client = thread::spawn(move || sitting.stay(theirs, b"ro"));
        let mut seen = [0; 7];
        ours.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"login: ");
        ours.write_all(b"ot\n").unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        client.join().unwrap().unwrap();
        assert_eq!(*keyboard.0.lock().unwrap(), b"root\n");
        assert_eq!(*output.0.lock().unwrap(), b"login: ");
        assert!(console.sit_down().is_ok());
    }

    #[test]
    fn the_history_is_the_end_of_the_output() {
        let console = Console::new(Box::new(io::sink()), None, false);
        for _ in 0..3 {
            console.show(&vec![b'a'; HISTORY / 2]);
        }
        console.show(b"end");
        console.show(&[]);
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
        console.show(b"past");
        console.show(&vec![b'b'; HISTORY + 5]);
        assert!(console.screen().history.iter().all(|byte| *byte == b'b'));
        assert_eq!(console.screen().history.len(), HISTORY);
    }

    #[test]
    fn the_terminal_keeps_its_seat() {
        let console = Arc::new(Console::new(Box::new(io::sink()), None, true));
        assert!(console.sit_down().is_err_and(|reason| reason.contains("terminal")));
    }
}
