//! I/O between marks.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, Shutdown, TcpStream},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    thread,
    time::Duration,
};

use rustix::{
    fs::OFlags,
    net::{AddressFamily, SocketType, netdevice::name_to_index, socket},
};

use super::{
    console::{Marks, quiet, tell},
    netlink,
};
use crate::event::Event;

/// Bytes of a random read and how many there are.
const BLOCK: usize = 4096;
const BLOCKS: u32 = 256;

/// Bytes of a sequential read and how many there are.
const PIECE: usize = 1 << 20;
const PIECES: u32 = 32;

/// The gateway on vmd's local interface has the services; this is its and the guest's address.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 64, 1, 2);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 64, 1, 3);
const PREFIX: u8 = 31;
/// Ports of the services that echo, discard and generate.
const ECHO: u16 = 7;
const DISCARD: u16 = 9;
const GENERATE: u16 = 19;

/// MiB that are received, and sent, over one connection.
const BULK: u32 = 16;

/// Bytes of a read or write of these.
const CHUNK: usize = 64 << 10;

/// Requests to the echo service, and bytes of each.
const REQUESTS: u32 = 200;
const REQUEST: usize = 64;

/// Tells of the work that is done between two marks.
fn between_marks(
    marks: &mut Marks,
    work: &str,
    operations: u32,
    f: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    // An event that is still on its way would count as the cost of a mark.
    quiet();
    marks.mark(&format!("{work}-mark"))?;
    marks.mark(&format!("{work}-begin"))?;
    f()?;
    marks.mark(&format!("{work}-end"))?;
    tell(&Event::Worked { work: work.to_owned(), operations });
    Ok(())
}

/// Random reads of 4 KiB past the page cache, then sequential ones of 1 MiB through it.
pub(super) fn disk(marks: &mut Marks, path: &Path) -> io::Result<()> {
    let mut sequential = File::open(path)?;
    let size = sequential.seek(SeekFrom::End(0))?;
    sequential.seek(SeekFrom::Start(0))?;
    let direct =
        OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path)?;
    let mut buffer = vec![0; 2 * BLOCK];
    let at = buffer.as_ptr().align_offset(BLOCK);
    let mut next = Scattered::new(size / BLOCK as u64);
    between_marks(marks, "read-4k", BLOCKS, || {
        (0..BLOCKS)
            .try_for_each(|_| direct.read_exact_at(&mut buffer[at..at + BLOCK], next.next() * BLOCK as u64))
    })?;
    let mut buffer = vec![0; PIECE];
    between_marks(marks, "read-1m", PIECES, || {
        (0..PIECES).try_for_each(|_| sequential.read_exact(&mut buffer))
    })
}

/// Numbers below a limit in an order that defeats read-ahead: the same in every run.
struct Scattered {
    limit: u64,
    state: u64,
}

impl Scattered {
    fn new(limit: u64) -> Self {
        Self { limit: limit.max(1), state: 1 }
    }

    fn next(&mut self) -> u64 {
        // Knuth's MMIX generator; its upper bits are the good ones.
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % self.limit
    }
}

/// Requests to the gateway over one connection, each after the answer to the one before; then bulk data over a connection
/// for each direction.
pub(super) fn net(marks: &mut Marks) -> io::Result<()> {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    netlink::configure(name_to_index(&any, "eth0")?, ADDRESS, PREFIX)?;
    let mut connection = connect(ECHO)?;
    connection.set_nodelay(true)?;
    let mut bytes = [0x55; REQUEST];
    between_marks(marks, "tcp-rr", REQUESTS, || {
        (0..REQUESTS).try_for_each(|_| {
            connection.write_all(&bytes)?;
            connection.read_exact(&mut bytes)
        })
    })?;
    let mut bytes = vec![0; CHUNK];
    let chunks = (BULK << 20) as usize / CHUNK;
    between_marks(marks, "tcp-receive", BULK, || {
        let mut connection = connect(GENERATE)?;
        (0..chunks).try_for_each(|_| connection.read_exact(&mut bytes))
    })?;
    between_marks(marks, "tcp-send", BULK, || {
        let mut connection = connect(DISCARD)?;
        (0..chunks).try_for_each(|_| connection.write_all(&bytes))?;
        connection.shutdown(Shutdown::Write)?;
        // The end, once all has arrived.
        connection.read(&mut bytes).map(drop)
    })
}

/// The interface needs a moment after it was taken up.
fn connect(port: u16) -> io::Result<TcpStream> {
    let mut result = Err(io::ErrorKind::NotConnected.into());
    for _ in 0..50 {
        result = TcpStream::connect_timeout(&(GATEWAY, port).into(), Duration::from_secs(10));
        if result.is_ok() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_scattered_over_the_whole_disk() {
        let mut next = Scattered::new(1000);
        let blocks: Vec<u64> = (0..BLOCKS).map(|_| next.next()).collect();
        assert!(blocks.iter().all(|block| *block < 1000));
        assert!(blocks.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() < 5);
        assert!(blocks.iter().any(|block| *block > 950) && blocks.iter().any(|block| *block < 50));
    }
}
