//! The serial console's input and output: the queue between the guest and a slow reader, and the
//! tee that observes the output for statistics.

use std::{
    io::{self, Write},
    mem,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::{
    error::Error,
    kvm::tsc::rdtsc,
    stats::{Counters, MARK},
};

/// Input and output of a VM's serial console.
pub struct Console {
    /// Input; `None` for none. Only the VM reads it, when it is readable.
    pub input: Option<OwnedFd>,
    /// Output, byte for byte, written by a thread of its own. If it blocks, the guest is held up
    /// once 64 KiB wait for it; the VM can be controlled all the same.
    pub output: Box<dyn Write + Send>,
}

impl Console {
    /// A console without input whose output is discarded.
    pub fn none() -> Self {
        Self { input: None, output: Box::new(io::sink()) }
    }
}

/// Bytes of output that wait for the reader before the guest is held up. The queue can exceed it by
/// what the vCPUs write before their next entry.
const FULL: usize = 64 << 10;

/// Time that the reader gets for the rest of the output of a guest that was ended by force.
const LAST_BYTES: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 500 });

/// The console's output, which outlives restarts of the guest: bytes on their way to the thread
/// that writes them.
///
/// The guest's writes never block: they happen under the board's lock. Instead, the vCPU threads
/// wait before they enter the guest while the queue is full.
pub(crate) struct OutputQueue {
    state: Mutex<Queued>,
    changed: Condvar,
    /// Length of the queue, for [`OutputQueue::is_full`].
    length: AtomicUsize,
}

#[derive(Default)]
struct Queued {
    bytes: Vec<u8>,
    /// The thread writes bytes that it has taken from the queue.
    writing: bool,
    /// No bytes will follow.
    closed: bool,
    /// The guest is ended by force: [`OutputQueue::drain`] has a time limit.
    hurried: bool,
}

impl OutputQueue {
    /// Starts the thread that writes to `to`. It calls `on_room` when a full queue has room again.
    pub(crate) fn start(
        mut to: Box<dyn Write + Send>,
        on_room: impl Fn() + Send + 'static,
    ) -> Result<Arc<Self>, Error> {
        let queue =
            Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), length: AtomicUsize::new(0) });
        let queued = Arc::clone(&queue);
        let write = move || {
            let mut bytes = Vec::new();
            while queued.take(&mut bytes, &on_room) {
                // Output that cannot be written is dropped.
                if let Err(error) = to.write_all(&bytes).and_then(|()| to.flush()) {
                    tracing::debug!(%error, "console output is lost");
                }
                bytes.clear();
            }
        };
        let thread = thread::Builder::new().name("console".into());
        thread.spawn(write).map_err(|source| Error::Host { what: "start the console's thread", source })?;
        Ok(queue)
    }

    /// Moves the queued bytes to `bytes`, which is empty, and waits for some. Returns false when
    /// none will follow.
    fn take(&self, bytes: &mut Vec<u8>, on_room: impl Fn()) -> bool {
        let mut state = self.state.lock();
        state.writing = false;
        self.changed.notify_all();
        self.changed.wait_while(&mut state, |state| state.bytes.is_empty() && !state.closed);
        mem::swap(bytes, &mut state.bytes);
        state.writing = !bytes.is_empty();
        self.length.store(0, Ordering::SeqCst);
        drop(state);
        if bytes.len() >= FULL {
            on_room();
        }
        !bytes.is_empty()
    }

    /// Appends output. Never blocks.
    fn push(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        state.bytes.extend(bytes);
        self.length.store(state.bytes.len(), Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
    }

    /// Whether the guest must wait until `on_room` is called.
    pub(crate) fn is_full(&self) -> bool {
        self.length.load(Ordering::SeqCst) >= FULL
    }

    /// Waits until all output is written; after [`OutputQueue::hurry`], half a second at most.
    pub(crate) fn drain(&self) {
        let mut state = self.state.lock();
        let mut limit = None;
        while state.writing || !state.bytes.is_empty() {
            if state.hurried {
                let limit = *limit.get_or_insert_with(|| Instant::now() + LAST_BYTES);
                if self.changed.wait_until(&mut state, limit).timed_out() {
                    return;
                }
            } else {
                self.changed.wait(&mut state);
            }
        }
    }

    /// Ends a [`OutputQueue::drain`] soon, even if nothing reads the output.
    pub(crate) fn hurry(&self) {
        self.state.lock().hurried = true;
        self.changed.notify_all();
    }

    /// Ends the thread once it has written what is queued.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

/// Passes console output on, and notes in the statistics its length, marks, and the text that means
/// "ready".
pub(crate) struct ConsoleTee {
    output: Arc<OutputQueue>,
    counters: Arc<Mutex<Counters>>,
    ready: TextFinder,
    marks: bool,
}

impl ConsoleTee {
    /// A tee to `output`. `ready` is the text to look for; `marks` tells whether to note [`MARK`].
    pub(crate) fn new(
        output: Arc<OutputQueue>,
        counters: Arc<Mutex<Counters>>,
        ready: Option<&str>,
        marks: bool,
    ) -> Self {
        Self { output, counters, ready: TextFinder::new(ready.unwrap_or_default()), marks }
    }
}

impl Write for ConsoleTee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.push(bytes);
        let tsc = rdtsc();
        let mut counters = self.counters.lock();
        for &byte in bytes {
            counters.console_byte(tsc, self.ready.push(byte));
            if self.marks && byte == MARK {
                counters.mark(tsc);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Finds a text in a stream of bytes.
struct TextFinder {
    text: Vec<u8>,
    /// The last bytes of the stream, as many as `text` has.
    last: Vec<u8>,
}

impl TextFinder {
    fn new(text: &str) -> Self {
        Self { text: text.as_bytes().to_vec(), last: Vec::new() }
    }

    /// Appends a byte to the stream. Returns whether the text ends with it; an empty text never
    /// does.
    fn push(&mut self, byte: u8) -> bool {
        if self.text.is_empty() {
            return false;
        }
        if self.last.len() == self.text.len() {
            self.last.remove(0);
        }
        self.last.push(byte);
        self.last == self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found_at(text: &str, stream: &str) -> Option<usize> {
        let mut ready = TextFinder::new(text);
        stream.bytes().position(|byte| ready.push(byte))
    }

    #[test]
    fn the_text_is_found_wherever_it_starts() {
        assert_eq!(found_at("login:", "host login: "), Some(10));
        assert_eq!(found_at("aab", "aaab"), Some(3));
        assert_eq!(found_at("x", "x"), Some(0));
        assert_eq!(found_at("login:", "logi"), None);
        assert_eq!(found_at("", "anything"), None);
    }

    #[test]
    fn output_is_passed_on_and_counted() {
        let counters = Arc::new(Mutex::new(Counters::new(0)));
        let (mut reader, writer) = io::pipe().unwrap();
        let output = OutputQueue::start(Box::new(writer), || {}).unwrap();
        let mut tee = ConsoleTee::new(Arc::clone(&output), Arc::clone(&counters), Some("# "), true);
        tee.write_all(b"Welcome\n# \x1e").unwrap();
        output.drain();
        output.close();
        assert_eq!(io::read_to_string(&mut reader).unwrap(), "Welcome\n# \x1e");
        let statistics = counters.lock().snapshot();
        assert_eq!((statistics.console_bytes, statistics.marks.len()), (11, 1));
        assert!(statistics.first_byte.is_some() && statistics.ready.is_some());
    }

    #[test]
    fn a_reader_that_stops_holds_up_the_guest_and_nothing_else() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (room, has_room) = std::sync::mpsc::channel();
        let output = OutputQueue::start(Box::new(writer), move || room.send(()).unwrap()).unwrap();
        // More than a pipe holds: once the thread has it, it is stuck.
        output.push(&vec![b'x'; 4 * FULL]);
        while output.is_full() {
            thread::yield_now();
        }
        output.push(&vec![b'x'; FULL]);
        output.hurry();
        output.drain();
        assert!(output.is_full(), "a forced end does not wait for the reader");

        let read = thread::spawn(move || io::copy(&mut reader, &mut io::sink()).unwrap());
        output.close();
        assert_eq!(read.join().unwrap(), 5 * FULL as u64, "nothing is lost");
        assert!(!output.is_full() && has_room.try_recv().is_ok());
    }
}
