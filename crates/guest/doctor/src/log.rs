//! Log messages of the kernel and vmmcid since boot, as far as this user may read them.

use crate::System;

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Seconds since boot; none if the log does not tell.
    pub at: Option<f64>,
    /// The message.
    pub text: String,
}

/// The messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// Their source; none if no log is readable.
    pub sources: Vec<String>,
    /// The messages, as old as the logs that they are from.
    pub lines: Vec<Line>,
}

/// Where syslog daemons put the kernel's and daemons' messages; they hold earlier boots too.
const FILES: [&str; 4] = ["var/log/messages", "var/log/syslog", "var/log/kern.log", "var/log/daemon.log"];

impl Log {
    /// Reads the kernel's buffer and the journal, or syslog's files where neither is readable.
    pub fn read(system: &System) -> Self {
        let mut log = Self::default();
        if let Ok(records) = system.kernel_messages() {
            log.add("/dev/kmsg", records.lines().filter_map(of_kmsg));
        }
        let kernel_known = !log.sources.is_empty();
        if let Some(journal) = system.journal() {
            let lines = journal.lines().filter_map(|line| of_journal(line, !kernel_known));
            log.add("the journal", lines);
            return log;
        }
        for path in FILES {
            if let Some(text) = system.end_of(path) {
                let lines = text.lines().filter_map(|line| of_syslog(line, !kernel_known));
                log.add(&format!("/{path}"), lines);
            }
        }
        log
    }

    fn add(&mut self, source: &str, lines: impl Iterator<Item = Line>) {
        let before = self.lines.len();
        self.lines.extend(lines);
        if self.lines.len() > before {
            self.sources.push(source.to_owned());
        }
    }

    /// The messages that contain a text.
    pub fn with<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |line| line.text.contains(text))
    }
}

/// `6,339,5140900,-;text`, of which lines that begin with a space are a continuation.
fn of_kmsg(record: &str) -> Option<Line> {
    let (head, text) = record.split_once(';')?;
    let micros: f64 = head.split(',').nth(2)?.parse().ok()?;
    Some(Line { at: Some(micros / 1e6), text: text.to_owned() })
}

/// `[   12.345678] host kernel: text`
fn of_journal(line: &str, kernel: bool) -> Option<Line> {
    let (time, rest) = line.strip_prefix('[')?.split_once(']')?;
    let (sender, text) = rest.trim_start().split_once(' ')?.1.split_once(": ")?;
    of_interest(sender, kernel).then(|| Line { at: time.trim().parse().ok(), text: text.to_owned() })
}

/// `Nov 22 21:00:33 host kernel: text`, or with a date of one word, or with the facility before the sender.
fn of_syslog(line: &str, kernel: bool) -> Option<Line> {
    let (head, text) = line.split_once(": ")?;
    of_interest(head.split_whitespace().last()?, kernel).then(|| Line { at: None, text: text.to_owned() })
}

/// `kernel`, `vmmcid` or `vmmcid[77]`
fn of_interest(sender: &str, kernel: bool) -> bool {
    sender.split('[').next() == Some("vmmcid") || kernel && sender == "kernel"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_log_has_its_form() {
        let line = |at, text: &str| Some(Line { at, text: text.to_owned() });
        assert_eq!(of_kmsg("6,339,5140900,-;a; b"), line(Some(5.1409), "a; b"));
        assert_eq!(of_kmsg(" SUBSYSTEM=pci"), None);
        let journal = "[   12.500000] guest vmmcid[77]: the clock was set by +10800.000 s";
        assert_eq!(of_journal(journal, false), line(Some(12.5), "the clock was set by +10800.000 s"));
        assert_eq!(of_journal("[    1.500000] guest kernel: x: y", true), line(Some(1.5), "x: y"));
        assert_eq!(of_journal("[    1.500000] guest kernel: x: y", false), None);
        let syslog = "Nov 22 21:00:33 guest daemon.notice vmmcid[7]: set";
        assert_eq!(of_syslog(syslog, false), line(None, "set"));
        assert_eq!(of_syslog("Nov 22 21:00:33 guest kernel: [    1.0] x", true), line(None, "[    1.0] x"));
        assert_eq!(of_syslog("Nov 22 21:00:33 guest sshd[1]: x", true), None);
    }
}
