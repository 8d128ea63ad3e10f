//! Output of a running program: its text, and the agent's events in it.

use std::{
    io::Read,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use bench::wire::Receiver;

use crate::event::Event;

/// The output so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The text.
    pub text: String,
    /// The events, and where in the text the line of each ends, in bytes.
    pub events: Vec<(usize, Event)>,
    /// Whether the program has closed its output.
    pub ended: bool,
}

impl Seen {
    /// Why the agent failed, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.events.iter().find_map(|(_, event)| match event {
            Event::Failed(why) => Some(why.as_str()),
            _ => None,
        })
    }

    /// The text after an event.
    ///
    /// # Panics
    ///
    /// If it did not come.
    pub fn after(&self, event: &Event) -> &str {
        let found = self.events.iter().find(|(_, seen)| seen == event);
        let (end, _) = found.unwrap_or_else(|| panic!("no {event:?} in:\n{}", self.text));
        &self.text[*end..]
    }
}

/// Output that a thread collects.
#[derive(Default)]
pub struct Output {
    seen: Mutex<Seen>,
    more: Condvar,
}

impl Output {
    /// Collects all that can be read.
    pub fn collect(mut from: impl Read + Send + 'static) -> Arc<Self> {
        let output = Arc::new(Self::default());
        let into = Arc::clone(&output);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            let (mut unread, mut line, mut receiver) = (Vec::new(), String::new(), Receiver::default());
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                unread.extend_from_slice(&bytes[..n]);
                // A character whose end has not come yet waits for it.
                let whole = match str::from_utf8(&unread) {
                    Err(error) if error.error_len().is_none() => error.valid_up_to(),
                    _ => unread.len(),
                };
                let text: Vec<u8> = unread.drain(..whole).collect();
                into.add(&String::from_utf8_lossy(&text), &mut line, &mut receiver);
            }
            into.lock().ended = true;
            into.more.notify_all();
        });
        output
    }

    /// Adds a text. `line` is the beginning of a line that has not ended yet.
    fn add(&self, text: &str, line: &mut String, receiver: &mut Receiver) {
        let mut seen = self.lock();
        for piece in text.split_inclusive('\n') {
            seen.text.push_str(piece);
            line.push_str(piece);
            if piece.ends_with('\n') {
                let event = receiver.line(&mem::take(line)).unwrap_or_else(|lost| Some(Event::Failed(lost)));
                let end = seen.text.len();
                seen.events.extend(event.map(|event| (end, event)));
            }
        }
        drop(seen);
        self.more.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The output so far.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// Waits until `found`, the end of the output, or the time limit. Returns the output so far.
    pub fn wait_for(&self, time: Duration, found: impl Fn(&Seen) -> bool) -> Seen {
        let unfinished = |seen: &mut Seen| !found(seen) && !seen.ended;
        let waited = self.more.wait_timeout_while(self.lock(), time, unfinished);
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(text: &'static str) -> Seen {
        Output::collect(text.as_bytes()).wait_for(Duration::from_mins(1), |_| false)
    }

    #[test]
    fn events_are_found_between_other_lines() {
        let seen = collected("boot\nvmmlinux-event 1.0 \"ready\"\r\nmore\n");
        assert_eq!(seen.events, [(33, Event::Ready)]);
        assert_eq!(seen.after(&Event::Ready), "more\n");
    }

    #[test]
    fn a_lost_record_is_a_failure() {
        let seen = collected("vmmlinux-event 1.1 \"ready\"\n");
        assert!(seen.failure().unwrap().contains("missing"));
    }
}
