//! The console: events for the bench, and marks for the machine.

use std::{
    io::{self, Write},
    thread,
    time::Duration,
};

use crate::{event::Event, wire::Sender};

/// How long the console gets to send a mark and to fall silent.
const QUIET: Duration = Duration::from_millis(200);

/// Sends an event to the bench.
pub(super) fn tell(event: &Event) {
    static SENDER: Sender = Sender::new();
    // The console is the only place where an error could be shown.
    let _ = SENDER.send(event);
}

/// Waits until the console has sent what was written to it.
pub(super) fn quiet() {
    thread::sleep(QUIET);
}

/// The names of the marks that were made.
#[derive(Default)]
pub(super) struct Marks(Vec<String>);

impl Marks {
    /// Makes a mark and waits until it is sent.
    pub(super) fn mark(&mut self, name: &str) -> io::Result<()> {
        self.mark_now(name)?;
        quiet();
        Ok(())
    }

    /// Makes a mark.
    pub(super) fn mark_now(&mut self, name: &str) -> io::Result<()> {
        self.0.push(name.to_owned());
        let mut console = io::stdout().lock();
        console.write_all(&[vmm::MARK])?;
        console.flush()
    }

    /// Returns the names so far and forgets them.
    pub(super) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.0)
    }
}
