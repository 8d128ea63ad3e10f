//! A user-space gateway for a local interface: answers ARP and ping and echoes TCP. It gives a
//! guest a network round trip without the privilege to open a tap.

use std::{collections::VecDeque, fmt, io, sync::Arc};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, DeviceCapabilities, Medium},
    socket::tcp,
    time::Instant,
    wire::{EthernetAddress, HardwareAddress, IpCidr},
};

use super::{backend::FrameBackend, local::LocalLink};
use crate::clock::Clock;

/// The echo service's port (RFC 862).
pub(super) const ECHO_PORT: u16 = 7;
/// Largest number of simultaneous connections of the echo service.
const CONNECTIONS: usize = 8;
/// Buffer size of a connection in bytes.
const WINDOW: usize = 16 * 1024;
/// Largest number of frames that wait for the guest; further frames are dropped.
const MAX_WAITING: usize = 256;
/// Length of the network mask in bits.
const PREFIX: u8 = 31;

/// A gateway in user space at [`LocalLink::host`]. It forwards nothing.
pub struct Gateway {
    interface: Interface,
    sockets: SocketSet<'static>,
    echoes: Vec<SocketHandle>,
    frames: FrameQueues,
    clock: Arc<dyn Clock>,
}

impl Gateway {
    /// The gateway at the host's address of `link`.
    pub fn new(link: &LocalLink, clock: Arc<dyn Clock>) -> Self {
        let mut frames = FrameQueues::default();
        let address = HardwareAddress::Ethernet(EthernetAddress(link.host_mac.0));
        let mut interface = Interface::new(Config::new(address), &mut frames, now(&*clock));
        interface.update_ip_addrs(|addresses| {
            // The list is empty and has room for at least one address.
            let _ = addresses.push(IpCidr::new(link.host.into(), PREFIX));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let echoes = (0..CONNECTIONS)
            .map(|_| {
                let buffer = || tcp::SocketBuffer::new(vec![0; WINDOW]);
                let mut socket = tcp::Socket::new(buffer(), buffer());
                socket.set_ack_delay(None);
                sockets.add(socket)
            })
            .collect();
        Self { interface, sockets, echoes, frames, clock }
    }

    /// Runs the stack until it has nothing more to send.
    fn work(&mut self) {
        let now = now(&*self.clock);
        loop {
            let mut busy = self.interface.poll(now, &mut self.frames, &mut self.sockets) != phy_idle();
            for &handle in &self.echoes {
                busy |= echo(self.sockets.get_mut(handle));
            }
            if !busy {
                break;
            }
        }
    }
}

/// The result of a poll without changes.
const fn phy_idle() -> smoltcp::iface::PollResult {
    smoltcp::iface::PollResult::None
}

/// Echoes received bytes. Returns whether anything changed.
fn echo(socket: &mut tcp::Socket<'static>) -> bool {
    if !socket.is_open() {
        // Listening can fail only for port 0.
        return socket.listen(ECHO_PORT).is_ok();
    }
    let room = socket.send_capacity() - socket.send_queue();
    if room > 0 && socket.can_recv() && socket.can_send() {
        let mut bytes = vec![0; room];
        let length = socket.recv_slice(&mut bytes).unwrap_or(0);
        return socket.send_slice(&bytes[..length]).is_ok_and(|sent| sent > 0);
    }
    if socket.may_send() && !socket.may_recv() && socket.state() == tcp::State::CloseWait {
        socket.close();
        return true;
    }
    false
}

fn now(clock: &dyn Clock) -> Instant {
    Instant::from_micros(i64::try_from(clock.monotonic() / 1000).unwrap_or(i64::MAX))
}

impl FrameBackend for Gateway {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.frames.to_gateway.push_back(frame.to_vec());
        self.work();
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if self.frames.to_guest.is_empty() {
            // A retransmission timer may have expired.
            self.work();
        }
        Ok(self.frames.to_guest.pop_front().map(|frame| {
            let length = frame.len().min(buffer.len());
            buffer[..length].copy_from_slice(&frame[..length]);
            length
        }))
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("addresses", &self.interface.ip_addrs()).finish_non_exhaustive()
    }
}

/// The frames in transit between the guest and the gateway.
#[derive(Default)]
struct FrameQueues {
    to_gateway: VecDeque<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
}

impl phy::Device for FrameQueues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.to_gateway.pop_front()?;
        Some((Received(frame), Sending(&mut self.to_guest)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Sending<'_>> {
        (self.to_guest.len() < MAX_WAITING).then_some(Sending(&mut self.to_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        if self.0.len() < MAX_WAITING {
            self.0.push_back(frame);
        }
        result
    }
}
