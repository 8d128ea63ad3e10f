//! The host's time for chrony, through the socket of its `refclock SOCK`.
//!
//! chronyd makes the socket and takes datagrams of 40 bytes (`struct sock_sample` in its refclock_sock.c, on a machine
//! with 64 bits): seconds and microseconds when the sample was taken, by the guest's clock; host − guest in seconds as
//! a double; no pulse; no leap second; padding; and a magic number.

use std::{io, os::unix::net::UnixDatagram, path::Path};

use vmmci_sysfs::Offset;

const MAGIC: i32 = 0x534f_434b;
const SIZE: usize = 40;

/// The sender of samples to chronyd. It runs in the supervisor: the worker cannot reach a socket.
#[derive(Debug, Default)]
pub struct Feed {
    /// Whether chronyd took the last one.
    taken: Option<bool>,
}

impl Feed {
    /// Sends a sample to chronyd's socket. Returns a message if chronyd has started or stopped taking them.
    pub fn send(&mut self, path: &Path, offset: Offset) -> Option<Result<String, String>> {
        // The path is looked up each time: chronyd makes the socket anew when it starts.
        let sent = send(path, &sample(offset));
        if self.taken.replace(sent.is_ok()) == Some(sent.is_ok()) {
            return None;
        }
        let path = path.display();
        Some(match sent {
            Ok(()) => Ok(format!("chrony takes the host's time from {path}")),
            Err(error) => Err(format!("chrony does not take the host's time from {path}: {error}")),
        })
    }
}

/// Sends a datagram without blocking.
fn send(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(bytes, path)?;
    Ok(())
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
        let mut feed = Feed::default();

        let silent = [feed.send(&socket, OFFSET), feed.send(&socket, OFFSET)];
        let chronyd = UnixDatagram::bind(&socket).unwrap();
        let heard = [feed.send(&socket, OFFSET), feed.send(&socket, OFFSET)];

        assert!(matches!(silent, [Some(Err(_)), None]), "{silent:?}");
        assert!(matches!(heard, [Some(Ok(_)), None]), "{heard:?}");
        let mut buffer = [0; 64];
        assert_eq!(chronyd.recv(&mut buffer).unwrap(), SIZE);
    }
}
