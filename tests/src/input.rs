//! The guest's end of the console's input.

use std::{
    io::{self, BufRead, Write},
    os::fd::AsFd,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Interval at which [`read_line`] writes to the console.
const NUDGE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Reads a line from the console, with its newline.
///
/// While the kernel writes a message, the UART's interrupts are off, and up to 7.9 vmd never raises the one of a character that
/// arrives then: the driver finds the character at its next interrupt. The transmit interrupt of a carriage return is
/// that.
///
/// # Errors
///
/// If the console cannot be read or written.
pub fn read_line() -> io::Result<String> {
    let (stdin, mut stdout) = (io::stdin(), io::stdout());
    while poll(&mut [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)], Some(&NUDGE))? == 0 {
        stdout.write_all(b"\r")?;
        stdout.flush()?;
    }
    let mut line = String::new();
    stdin.lock().read_line(&mut line)?;
    Ok(line)
}
