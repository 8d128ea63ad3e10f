//! The host's time for chrony, through the socket of its `refclock SOCK`.
//!
//! chronyd makes the socket and takes datagrams of 40 bytes (`struct sock_sample` in its refclock_sock.c, on a machine
//! with 64 bits): seconds and microseconds when the sample was taken, by the guest's clock; host − guest in seconds as
//! a double; no pulse; no leap second; padding; and a magic number.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    time::{Duration, Instant},
};

use vmmci_sysfs::Offset;

use crate::config;

const MAGIC: i32 = 0x534f_434b;
const SIZE: usize = 40;

/// The sender of samples to chronyd.
#[derive(Debug)]
pub struct Feed {
    socket: UnixDatagram,
    path: PathBuf,
    interval: Duration,
    next: Instant,
    /// Whether chronyd took the last one.
    taken: Option<bool>,
    sent: u64,
}

impl Feed {
    /// Samples as the configuration says, the first of them at once.
    pub fn new(config: config::Chrony) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let (path, interval) = (config.socket, config.interval);
        Ok(Self { socket, path, interval, next: Instant::now(), taken: None, sent: 0 })
    }

    /// Whether a sample is due.
    pub fn due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// How many samples chronyd took.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends a sample. Returns a message if chronyd has started or stopped taking them.
    pub fn send(&mut self, now: Instant, offset: Option<Offset>) -> Option<Result<String, String>> {
        self.next = now + self.interval;
        // The path is looked up each time: chronyd makes the socket anew when it starts.
        let sent = self.socket.send_to(&sample(offset?), &self.path);
        self.sent += u64::from(sent.is_ok());
        if self.taken.replace(sent.is_ok()) == Some(sent.is_ok()) {
            return None;
        }
        let path = self.path.display();
        Some(match sent {
            Ok(_) => Ok(format!("chrony takes the host's time from {path}")),
            Err(error) => Err(format!("chrony does not take the host's time from {path}: {error}")),
        })
    }
}

fn sample(offset: Offset) -> [u8; SIZE] {
    #[allow(clippy::cast_precision_loss)]
    let seconds = offset.guest_minus_host.correction() as f64 / 1e9;
    let mut bytes = [0; SIZE];
    bytes[..8].copy_from_slice(&offset.at.div_euclid(1_000_000_000).to_ne_bytes());
    bytes[8..16].copy_from_slice(&(offset.at.rem_euclid(1_000_000_000) / 1000).to_ne_bytes());
    bytes[16..24].copy_from_slice(&seconds.to_ne_bytes());
    bytes[36..].copy_from_slice(&MAGIC.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use vmmci_protocol::GuestMinusHost;

    use super::*;

    const OFFSET: Offset = Offset {
        guest_minus_host: GuestMinusHost::from_nanos(1_500_000),
        uncertainty: 100,
        at: 1_795_348_512_000_250_999,
    };

    #[test]
    fn a_sample_is_as_chrony_reads_it() {
        let bytes = sample(OFFSET);
        let field = |at: usize| bytes[at..at + 8].try_into().unwrap();
        assert_eq!(i64::from_ne_bytes(field(0)), 1_795_348_512);
        assert_eq!(i64::from_ne_bytes(field(8)), 250);
        assert!((f64::from_ne_bytes(field(16)) + 0.0015).abs() < 1e-12);
        assert_eq!(bytes[24..36], [0; 12]);
        assert_eq!(bytes[36..], *b"KCOS");
    }

    #[test]
    fn chronyd_may_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("c");
        let interval = Duration::from_secs(16);
        let mut feed = Feed::new(config::Chrony { socket: socket.clone(), interval }).unwrap();
        let now = Instant::now();
        assert!(feed.due(now));
        assert!(feed.send(now, Some(OFFSET)).unwrap().is_err());
        assert!(!feed.due(now) && feed.due(now + interval));
        assert!(feed.send(now, Some(OFFSET)).is_none(), "said once");
        let chronyd = UnixDatagram::bind(&socket).unwrap();
        assert!(feed.send(now, Some(OFFSET)).unwrap().is_ok());
        let mut buffer = [0; 64];
        assert_eq!(chronyd.recv(&mut buffer).unwrap(), SIZE);
        assert_eq!((feed.send(now, None), feed.sent()), (None, 1));
    }
}
