//! The serial console's two ends outside the machine.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    kvm::tsc::rdtsc,
    stats::{Counters, MARK},
};

/// Where the serial console goes.
pub struct Console {
    /// What is typed; `None` for nothing. It is read when something is there, by nobody else.
    pub input: Option<OwnedFd>,
    /// What the guest writes, as it is. A writer that blocks stops the guest.
    pub output: Box<dyn Write + Send>,
}

impl Console {
    /// A console that takes no input and loses its output.
    pub fn none() -> Self {
        Self { input: None, output: Box::new(io::sink()) }
    }
}

/// The output, shared by the guest's restarts.
pub(crate) type SharedOutput = Arc<Mutex<Box<dyn Write + Send>>>;

/// Passes the guest's output on, counts it, and notes its marks and when it says that it is ready.
pub(crate) struct Tap {
    output: SharedOutput,
    counters: Arc<Mutex<Counters>>,
    ready: Ready,
    marks: bool,
}

impl Tap {
    pub(crate) fn new(
        output: SharedOutput,
        counters: Arc<Mutex<Counters>>,
        ready: Option<&str>,
        marks: bool,
    ) -> Self {
        Self { output, counters, ready: Ready::new(ready.unwrap_or_default()), marks }
    }
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)?;
        let tsc = rdtsc();
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in &bytes[..written] {
            counters.console_byte(tsc, self.ready.see(byte));
            if self.marks && byte == MARK {
                counters.mark(tsc);
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

/// Looks for a text in a stream of bytes.
struct Ready {
    text: Vec<u8>,
    /// The last bytes seen, as many as `text` has.
    seen: Vec<u8>,
}

impl Ready {
    fn new(text: &str) -> Self {
        Self { text: text.as_bytes().to_vec(), seen: Vec::new() }
    }

    /// Whether the text ends with this byte. An empty text never does.
    fn see(&mut self, byte: u8) -> bool {
        if self.text.is_empty() {
            return false;
        }
        if self.seen.len() == self.text.len() {
            self.seen.remove(0);
        }
        self.seen.push(byte);
        self.seen == self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found_at(text: &str, stream: &str) -> Option<usize> {
        let mut ready = Ready::new(text);
        stream.bytes().position(|byte| ready.see(byte))
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
        let mut tap = Tap::new(output, Arc::clone(&counters), Some("# "), true);
        tap.write_all(b"Welcome\n# \x1e").unwrap();
        let statistics = counters.lock().unwrap().snapshot();
        assert_eq!((statistics.console_bytes, statistics.marks.len()), (11, 1));
        assert!(statistics.first_byte.is_some() && statistics.ready.is_some());
    }
}
