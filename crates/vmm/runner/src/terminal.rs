//! The user's terminal as the guest's console: raw mode, the escape `~.`, and unbuffered output.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::fd::AsFd,
};

use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, poll},
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};
use vmm_control::escape::Escape;

/// The terminal's settings before raw mode.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Undoes what a guest's firmware, boot loader and programs leave set on a terminal: default attributes and character
/// set, cursor shown, line wrap on, bracketed paste off. The cursor's position and the text stay.
const RESET: &[u8] = b"\x1b[0m\x1b(B\x1b[?25h\x1b[?7h\x1b[?2004l";

/// Restores the terminal's settings when dropped.
#[derive(Debug)]
pub struct RawMode(());

/// Puts standard input into raw mode if it is a terminal: every key reaches the guest unchanged.
pub fn raw_mode() -> io::Result<Option<RawMode>> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Ok(None);
    }
    let saved = tcgetattr(&stdin)?;
    let mut raw = saved.clone();
    raw.make_raw();
    *SAVED.lock() = Some(saved);
    tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
    // A panic in any thread restores the terminal before it is reported.
    let earlier = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        earlier(info);
    }));
    Ok(Some(RawMode(())))
}

/// Restores the terminal's settings and attributes if raw mode is on.
pub(crate) fn restore() {
    if let Some(saved) = SAVED.lock().take() {
        if io::stdout().is_terminal() {
            let _ = UnbufferedStdout.write_all(RESET);
        }
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &saved);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Passes standard input to `send` until its end (returns false) or, on a terminal, the escape `~.` (returns true).
pub fn forward_input(mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
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
            send(&bytes[..n])?;
            continue;
        };
        out.clear();
        let leave = escape.typed(&bytes[..n], &mut out);
        send(&out)?;
        if leave {
            return Ok(true);
        }
    }
}

/// Standard output without a buffer, so that a prompt without a newline is visible.
#[derive(Debug)]
pub struct UnbufferedStdout;

impl Write for UnbufferedStdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::write(io::stdout().as_fd(), bytes))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Blocks until the reading end of `output`, a pipe, is closed. Never returns for a file; fails for anything else.
pub(crate) fn wait_until_closed(output: impl AsFd) -> io::Result<()> {
    // poll(2) reports a closed reading end (POLLERR) without being asked.
    let mut waited = [PollFd::new(&output, PollFlags::empty())];
    rustix::io::retry_on_intr(|| poll(&mut waited, None))?;
    match waited[0].revents() {
        PollFlags::ERR => Ok(()),
        // A terminal that hangs up sends SIGHUP instead.
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_whose_reader_has_closed_is_recognised() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        wait_until_closed(writer).unwrap();
    }

    #[test]
    fn a_socket_is_not_mistaken_for_a_closed_pipe() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(theirs);
        wait_until_closed(ours).unwrap_err();
    }
}
