//! Where frames go to and come from.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use super::MAX_FRAME;

/// The other end of a NIC's wire: raw Ethernet frames, without a checksum at the end.
pub trait Backend: Send {
    /// Sends a frame. One that nobody can take right now is lost; an error makes the device ask for a reset.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Puts the next frame into `buffer` and returns its length, or `None` if there is none now.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// What becomes readable when there is a frame; `None` for a backend whose frames are answers to what was sent.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// No wire: a tap that is not part of any switch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unplugged;

impl Backend for Unplugged {
    fn send(&mut self, _frame: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, _buffer: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }
}

/// A tap device, opened by somebody else: non-blocking, without packet information and virtio headers.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// A backend on an open tap device.
    pub const fn new(file: File) -> Self {
        Self(file)
    }
}

impl Backend for Tap {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        loop {
            match self.0.write(frame) {
                // A full queue, which OpenBSD calls ENOBUFS, is no reason to reset the device.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) => return Ok(None),
                result => return result.map(Some),
            }
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

/// A stream socket to a user-space network such as passt or another QEMU: each frame comes after its length, 32 bits
/// big-endian (QEMU's `-netdev stream`).
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    /// Received and not yet taken, from `taken` on.
    received: Vec<u8>,
    taken: usize,
    /// The rest of a frame of which the socket took a part.
    unsent: VecDeque<u8>,
    closed: bool,
}

impl Stream {
    /// A backend on a connected socket, which becomes non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, received: Vec::new(), taken: 0, unsent: VecDeque::new(), closed: false })
    }

    /// Sends what was left over. True when nothing is left.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.unsent.is_empty() {
            let (front, _) = self.unsent.as_slices();
            match self.socket.write(front) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// A whole frame out of what was received.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let waiting = &self.received[self.taken..];
        let Some((length, rest)) = waiting.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let kept = length.min(buffer.len());
        buffer[..kept].copy_from_slice(&frame[..kept]);
        self.taken += 4 + length;
        Ok(Some(kept))
    }
}

impl Backend for Stream {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.closed || !self.flush()? {
            return Ok(());
        }
        self.unsent.extend((frame.len() as u32).to_be_bytes());
        self.unsent.extend(frame);
        let whole = self.unsent.len();
        match self.flush() {
            Ok(_) => {}
            // The other end has gone: the cable is out, which is no reason to reset the device.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.closed = true,
            Err(error) => return Err(error),
        }
        if self.closed || self.unsent.len() == whole {
            // Not a byte of it went out: it is lost, and the next one starts afresh.
            self.unsent.clear();
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            if let Some(length) = self.take(buffer)? {
                return Ok(Some(length));
            }
            if self.closed {
                return Ok(None);
            }
            self.received.drain(..self.taken);
            self.taken = 0;
            let old = self.received.len();
            self.received.resize(old + 4 * MAX_FRAME, 0);
            let read = self.socket.read(&mut self.received[old..]);
            self.received.truncate(old + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => {
                    tracing::warn!("vionet: the network has closed its socket");
                    self.closed = true;
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Nothing any more once the other end has closed: the socket would be readable for ever.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.closed).then(|| self.socket.as_fd())
    }
}
