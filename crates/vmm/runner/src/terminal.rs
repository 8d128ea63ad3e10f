//! The user's terminal as the guest's console: raw mode, the escape `~.`, and unbuffered output.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::fd::AsFd,
    sync::mpsc::{self, TrySendError},
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};
use vmm_control::escape::Escape;

/// The terminal's settings before raw mode.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Undoes what a guest's firmware, boot loader and programs leave set on a terminal: default attributes and character
/// set, cursor shown, line wrap on, bracketed paste off. The cursor's position and the text stay.
const RESET: &[u8] = b"\x1b[0m\x1b(B\x1b[?25h\x1b[?7h\x1b[?2004l";

/// Reads of a terminal, from one key to 4 KiB each, that may wait for the guest. Further keys are dropped.
const MAX_WAITING: usize = 256;

/// How long keys that were typed before the escape `~.` may take to reach the guest.
const LAST_KEYS: Duration = Duration::from_millis(500);

/// How long a terminal may take to have room for its reset.
const RESET_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

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
        let stdout = io::stdout();
        // A terminal that takes no output must not hold up the end.
        if stdout.is_terminal()
            && poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], Some(&RESET_TIMEOUT)) == Ok(1)
        {
            let _ = UnbufferedStdout.write_all(RESET);
        }
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &saved);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Passes standard input to `send` until its end (returns false) or, on a terminal, the escape `~.` (returns true).
///
/// `send` blocks while the guest takes no input. On a terminal it has a thread of its own, and the escape works all the
/// same; keys beyond those that may wait are dropped.
pub fn forward_input(send: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static) -> io::Result<bool> {
    let stdin = io::stdin().lock();
    if stdin.is_terminal() { forward_keys(stdin, send) } else { forward_stream(stdin, send) }
}

fn forward_stream(mut from: impl Read, mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
    let mut bytes = [0; 4096];
    loop {
        match read(&mut from, &mut bytes)? {
            0 => return Ok(false),
            n => send(&bytes[..n])?,
        }
    }
}

fn forward_keys(
    mut from: impl Read,
    mut send: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
) -> io::Result<bool> {
    let (queue, waiting) = mpsc::sync_channel::<Vec<u8>>(MAX_WAITING);
    let (alive, ended) = mpsc::channel::<()>();
    let deliver = move || {
        let _alive = alive;
        while let Ok(keys) = waiting.recv() {
            if let Err(error) = send(&keys) {
                tracing::debug!(%error, "the guest takes no more keys");
                return;
            }
        }
    };
    thread::Builder::new().name("keys".to_owned()).spawn(deliver)?;
    let (mut escape, mut bytes) = (Escape::default(), [0; 4096]);
    let left = loop {
        let typed = match read(&mut from, &mut bytes)? {
            0 => break false,
            n => &bytes[..n],
        };
        let mut keys = Vec::new();
        let leave = escape.typed(typed, &mut keys);
        match queue.try_send(keys) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => tracing::debug!("the guest takes no keys: some are dropped"),
            Err(TrySendError::Disconnected(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        if leave {
            break true;
        }
    };
    drop(queue);
    // The thread's end disconnects the channel.
    let _ = ended.recv_timeout(LAST_KEYS);
    Ok(left)
}

/// Reads into `bytes`. Returns the number of bytes read, 0 at the end.
fn read(from: &mut impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
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

    #[test]
    fn the_escape_works_however_many_keys_wait() {
        // A guest that takes one piece and then nothing, until the test's end.
        let (_end, blocked) = mpsc::channel::<()>();
        let send = move |_: &[u8]| blocked.recv().map_err(|_| io::ErrorKind::BrokenPipe.into());
        let typed = vec![b'x'; 2 * MAX_WAITING * 4096];
        let keys = typed.as_slice().chain(&b"\r~."[..]);
        assert!(forward_keys(keys, send).unwrap());
    }

    #[test]
    fn keys_before_the_escape_are_sent() {
        let (keys, taken) = mpsc::channel();
        let send = move |bytes: &[u8]| keys.send(bytes.to_vec()).map_err(io::Error::other);
        assert!(forward_keys(&b"halt\r~.never"[..], send).unwrap());
        assert_eq!(taken.iter().flatten().collect::<Vec<_>>(), b"halt\r");
    }

    #[test]
    fn a_stream_is_sent_to_its_end_and_has_no_escapes() {
        let mut taken = Vec::<u8>::new();
        let send = |bytes: &[u8]| {
            taken.extend(bytes);
            Ok(())
        };
        assert!(!forward_stream(&b"~.\nhalt\n"[..], send).unwrap());
        assert_eq!(taken, b"~.\nhalt\n");
    }
}
