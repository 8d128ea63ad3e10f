//! Backends of a NIC: tap device, stream socket, none.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use super::frame::MAX_FRAME;

/// The host side of a NIC: raw Ethernet frames without a frame check sequence.
pub trait FrameBackend: Send {
    /// Sends a frame. A frame that cannot be sent right now is dropped; an error makes the device
    /// ask for a reset.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Reads the next frame into `buffer` and returns its length, or `None` if none is waiting.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// The file descriptor that becomes readable when a frame arrives; `None` for a backend that
    /// only answers sent frames.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether the other end is closed for good: no frame will come, and sent frames are dropped.
    fn is_closed(&self) -> bool {
        false
    }

    /// When a backend without file descriptor has work to do, on its clock in nanoseconds; `None`
    /// if it has none.
    fn deadline(&self) -> Option<u64> {
        None
    }

    /// Does the work whose [`FrameBackend::deadline`] has come, if it has; the deadline changes then.
    fn expire(&mut self) {}

    /// Number of frames for the guest that were lost because the queue in front of it was full.
    /// Backends whose queue belongs to the host's kernel cannot tell and return 0.
    fn failed_outputs(&self) -> u64 {
        0
    }
}

/// No connection: a tap that is not part of any switch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unplugged;

impl FrameBackend for Unplugged {
    fn send(&mut self, _frame: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, _buffer: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }
}

/// An open tap device: non-blocking, without packet information and virtio headers.
#[derive(Debug)]
pub struct TapBackend(File);

impl TapBackend {
    /// A backend on an open tap device.
    pub const fn new(file: File) -> Self {
        Self(file)
    }
}

impl FrameBackend for TapBackend {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        loop {
            match self.0.write(frame) {
                // A full queue, ENOBUFS on OpenBSD, drops the frame without a device reset.
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

/// A stream socket to a user-space network such as passt or another QEMU. Each frame follows its
/// length, 32 bits big-endian (QEMU's `-netdev stream`).
#[derive(Debug)]
pub struct StreamBackend {
    socket: UnixStream,
    /// Received bytes; those from `taken` on are not processed yet.
    received: Vec<u8>,
    taken: usize,
    /// The rest of a frame that the socket accepted in part.
    unsent: VecDeque<u8>,
    closed: bool,
}

impl StreamBackend {
    /// A backend on a connected socket, which is made non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, received: Vec::new(), taken: 0, unsent: VecDeque::new(), closed: false })
    }

    /// Sends the unsent rest. Returns true if nothing is left.
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

    /// Takes one complete frame from the received bytes.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let waiting = &self.received[self.taken..];
        let Some((length, rest)) = waiting.split_first_chunk() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            // Where the next frame starts is unknown.
            self.closed = true;
            self.received.clear();
            self.taken = 0;
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("frame of {length} bytes exceeds {MAX_FRAME} bytes"),
            ));
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

impl FrameBackend for StreamBackend {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.closed || !self.flush()? {
            return Ok(());
        }
        self.unsent.extend((frame.len() as u32).to_be_bytes());
        self.unsent.extend(frame);
        let whole = self.unsent.len();
        match self.flush() {
            Ok(_) => {}
            // The peer closed the connection: the link is down, which does not require a device
            // reset.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.closed = true,
            Err(error) => return Err(error),
        }
        if self.closed || self.unsent.len() == whole {
            // Not one byte was sent: drop the frame, so that the next one starts cleanly.
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
                Ok(0) => self.closed = true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// `None` after the peer has closed: the socket would stay readable forever.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.closed).then(|| self.socket.as_fd())
    }

    fn is_closed(&self) -> bool {
        self.closed
    }
}
