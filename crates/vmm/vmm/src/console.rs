//! The serial console's input and output, and the tee that observes the output for statistics.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{
    kvm::tsc::rdtsc,
    stats::{Counters, MARK},
};

/// Input and output of a VM's serial console.
pub struct Console {
    /// Input; `None` for none. Only the VM reads it, when it is readable.
    pub input: Option<OwnedFd>,
    /// Output, byte for byte. A writer that blocks stops the guest.
    pub output: Box<dyn Write + Send>,
}

impl Console {
    /// A console without input whose output is discarded.
    pub fn none() -> Self {
        Self { input: None, output: Box::new(io::sink()) }
    }
}

/// The console's output, which outlives restarts of the guest.
pub(crate) type SharedOutput = Arc<Mutex<Box<dyn Write + Send>>>;

/// Passes console output on, and notes in the statistics its length, marks, and the text that means
/// "ready".
pub(crate) struct ConsoleTee {
    output: SharedOutput,
    counters: Arc<Mutex<Counters>>,
    ready: TextFinder,
    marks: bool,
}

impl ConsoleTee {
    /// A tee to `output`. `ready` is the text to look for; `marks` tells whether to note [`MARK`].
    pub(crate) fn new(
        output: SharedOutput,
        counters: Arc<Mutex<Counters>>,
        ready: Option<&str>,
        marks: bool,
    ) -> Self {
        Self { output, counters, ready: TextFinder::new(ready.unwrap_or_default()), marks }
    }
}

impl Write for ConsoleTee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.lock().write(bytes)?;
        let tsc = rdtsc();
        let mut counters = self.counters.lock();
        for &byte in &bytes[..written] {
            counters.console_byte(tsc, self.ready.push(byte));
            if self.marks && byte == MARK {
                counters.mark(tsc);
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.lock().flush()
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
        let output: SharedOutput = Arc::new(Mutex::new(Box::new(io::sink())));
        let mut tee = ConsoleTee::new(output, Arc::clone(&counters), Some("# "), true);
        tee.write_all(b"Welcome\n# \x1e").unwrap();
        let statistics = counters.lock().snapshot();
        assert_eq!((statistics.console_bytes, statistics.marks.len()), (11, 1));
        assert!(statistics.first_byte.is_some() && statistics.ready.is_some());
    }
}
