//! Events of a guest on its console: JSON in kernel messages.
//!
//! The kernel writes a message to the console as a whole, so that no other message can stand in the middle of an event;
//! what a process writes to the console itself can be torn by the kernel's messages. An event that is longer than a
//! message is sent in fragments. A record is the prefix, the sender's process ID, the record's number, `+` if the event
//! goes on in the next record, and JSON:
//!
//! ```text
//! vmmlinux-event 1.0 {"memory":{"total":505732,"available":480012,"code":18432,"data":9216}}
//! ```
//!
//! The numbers of a sender begin at 0, and again after a reboot. A number that is missing is an error.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, Write},
    process,
    sync::Mutex,
};

use serde::{Serialize, de::DeserializeOwned};

const PREFIX: &str = "vmmlinux-event ";

/// Bytes of JSON in a record. A kernel message holds 1024 with its own prefix.
const FRAGMENT: usize = 800;

/// The kernel shows messages of this level (emergency) on every console.
const LEVEL: &str = "<0>";

/// The guest's end.
#[derive(Debug, Default)]
pub struct Sender {
    next: Mutex<u32>,
}

impl Sender {
    /// A sender of this process's events, of which there is one.
    pub const fn new() -> Self {
        Self { next: Mutex::new(0) }
    }

    /// Sends an event: to `/dev/kmsg`, or to standard output where that is not mounted.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn send(&self, event: &impl Serialize) -> io::Result<()> {
        let json = serde_json::to_string(event)?;
        let mut next = self.next.lock().map_err(|_| io::Error::other("a thread panicked while it sent"))?;
        for record in records(process::id(), &mut next, &json) {
            // A file of its own for each record: the kernel limits the rate of messages by open file. The newline ends the
            // message: without it the kernel waits for a continuation before it shows the message.
            let written = OpenOptions::new()
                .write(true)
                .open("/dev/kmsg")
                .and_then(|mut kmsg| kmsg.write_all(format!("{LEVEL}{record}\n").as_bytes()));
            written.or_else(|_| writeln!(io::stdout(), "{record}"))?;
        }
        Ok(())
    }
}

/// The records of an event.
fn records(sender: u32, next: &mut u32, json: &str) -> Vec<String> {
    let mut records = Vec::new();
    let mut rest = json;
    while !rest.is_empty() {
        let end = rest.len().min(FRAGMENT);
        let end = (0..=end).rev().find(|&end| rest.is_char_boundary(end)).unwrap_or(end);
        let (fragment, after) = rest.split_at(end);
        let more = if after.is_empty() { "" } else { "+" };
        records.push(format!("{PREFIX}{sender}.{next}{more} {fragment}"));
        *next += 1;
        rest = after;
    }
    records
}

/// The host's end.
#[derive(Debug, Default)]
pub struct Receiver {
    /// By sender: the number of its next record, and the beginning of an event.
    senders: BTreeMap<u32, (u32, String)>,
}

impl Receiver {
    /// The event that a line of the console completes, if there is one. A kernel's timestamp may stand before it.
    ///
    /// # Errors
    ///
    /// If a record is missing, torn, or of another kind of event.
    pub fn line<E: DeserializeOwned>(&mut self, line: &str) -> Result<Option<E>, String> {
        let Some((_, record)) = line.split_once(PREFIX) else { return Ok(None) };
        let wrong = |what: &str| format!("{what}: {line}");
        // A fragment may end with a blank: only the line's end is none of it.
        let record = record.trim_end_matches(['\r', '\n']);
        let (head, fragment) = record.split_once(' ').ok_or_else(|| wrong("a torn event"))?;
        let (head, more) = head.strip_suffix('+').map_or((head, false), |head| (head, true));
        let numbers = head.split_once('.').and_then(|(s, n)| Some((s.parse().ok()?, n.parse().ok()?)));
        let (sender, number): (u32, u32) = numbers.ok_or_else(|| wrong("a torn event"))?;
        let (next, partial) = self.senders.entry(sender).or_default();
        if number == 0 {
            (*next, *partial) = (0, String::new());
        }
        let expected = std::mem::replace(next, number + 1);
        if number != expected {
            return Err(wrong(&format!("the record {expected} is missing before this one")));
        }
        partial.push_str(fragment);
        if more {
            return Ok(None);
        }
        let event = serde_json::from_str(&std::mem::take(partial));
        event.map(Some).map_err(|error| wrong(&error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(lines: &[String]) -> Vec<Result<Option<String>, String>> {
        let mut receiver = Receiver::default();
        lines.iter().map(|line| receiver.line(line)).collect()
    }

    #[test]
    fn an_event_is_found_behind_a_timestamp() {
        let record = &records(1, &mut 0, "\"hello\"")[0];
        let received = receive(&[format!("[    1.000000] {record}\r")]);
        assert_eq!(received, [Ok(Some("hello".to_owned()))]);
    }

    #[test]
    fn other_lines_are_no_events() {
        assert_eq!(receive(&["login: ".to_owned()]), [Ok(None)]);
    }

    #[test]
    fn a_long_event_is_put_together_again() {
        let text = "ö".repeat(FRAGMENT);
        let lines = records(1, &mut 0, &format!("\"{text}\""));
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() < 1000));
        assert_eq!(receive(&lines).pop().unwrap(), Ok(Some(text)));
    }

    #[test]
    fn blanks_around_the_cut_are_kept() {
        let text = " ".repeat(2 * FRAGMENT);
        let lines: Vec<_> =
            records(1, &mut 0, &format!("\"{text}\"")).iter().map(|r| format!("{r}\r\n")).collect();
        assert_eq!(receive(&lines).pop().unwrap(), Ok(Some(text)));
    }

    #[test]
    fn senders_have_numbers_of_their_own() {
        let lines =
            [(1, "\"a\""), (7, "\"b\"")].map(|(sender, json)| records(sender, &mut 0, json)[0].clone());
        assert_eq!(receive(&lines), [Ok(Some("a".to_owned())), Ok(Some("b".to_owned()))]);
    }

    #[test]
    fn a_missing_record_is_an_error() {
        let mut next = 0;
        let lines: Vec<_> = (0..3).flat_map(|_| records(1, &mut next, "\"a\"")).collect();
        let received = receive(&[lines[0].clone(), lines[2].clone()]);
        assert!(received[1].as_ref().unwrap_err().contains("record 1 is missing"));
    }

    #[test]
    fn a_reboot_begins_anew() {
        let line = records(1, &mut 0, "\"a\"")[0].clone();
        assert_eq!(receive(&[line.clone(), line]).len(), 2);
    }
}
