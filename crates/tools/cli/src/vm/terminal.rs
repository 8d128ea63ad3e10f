//! The user's terminal as the guest's console.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use miette::IntoDiagnostic;
use rustix::{
    event::{PollFd, PollFlags, poll},
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};
use vmm_control::escape::Escape;

/// The terminal's settings before it was made raw.
static COOKED: Mutex<Option<Termios>> = Mutex::new(None);

/// Puts the terminal's settings back when dropped.
pub(crate) struct RawMode(());

/// Makes standard input pass every key as it is, if it is a terminal.
pub(crate) fn raw_mode() -> miette::Result<Option<RawMode>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(None);
    }
    let cooked = tcgetattr(&stdin).into_diagnostic()?;
    let mut raw = cooked.clone();
    raw.make_raw();
    *COOKED.lock().unwrap_or_else(PoisonError::into_inner) = Some(cooked);
    tcsetattr(&stdin, OptionalActions::Flush, &raw).into_diagnostic()?;
    // A panic elsewhere must not leave the user with a dead keyboard.
    let earlier = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        cook();
        earlier(info);
    }));
    Ok(Some(RawMode(())))
}

/// Puts the terminal's settings back, if they were changed.
pub(crate) fn cook() {
    if let Some(cooked) = COOKED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &cooked);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        cook();
    }
}

/// Sends what comes from standard input to the guest. Ends when the input does (false) or the user wants to leave
/// (true), which only a terminal can say.
pub(crate) fn converse(mut type_in: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
    let mut stdin = io::stdin().lock();
    let mut escape = stdin.is_terminal().then(Escape::default);
    let (mut bytes, mut out) = ([0; 4096], Vec::new());
    loop {
        let n = match stdin.read(&mut bytes) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if n == 0 {
            return Ok(false);
        }
        let Some(escape) = &mut escape else {
            type_in(&bytes[..n])?;
            continue;
        };
        out.clear();
        let leave = escape.typed(&bytes[..n], &mut out);
        type_in(&out)?;
        if leave {
            return Ok(true);
        }
    }
}

/// Standard output without a buffer, so that a prompt without a newline is seen.
pub(crate) struct Screen;

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::write(io::stdout().as_fd(), bytes))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Blocks until nobody can read any more what is written to `output`, a pipe. For a file that never comes.
pub(crate) fn wait_until_unread(output: impl AsFd) -> io::Result<()> {
    // That a pipe has no reader, poll(2) tells without being asked.
    let mut waited = [PollFd::new(&output, PollFlags::empty())];
    rustix::io::retry_on_intr(|| poll(&mut waited, None))?;
    match waited[0].revents() {
        PollFlags::ERR => Ok(()),
        // A terminal that hung up says so by a signal.
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_without_a_reader_is_known_and_nothing_is_taken_for_one() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        wait_until_unread(writer).unwrap();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(theirs);
        wait_until_unread(ours).unwrap_err();
    }
}
