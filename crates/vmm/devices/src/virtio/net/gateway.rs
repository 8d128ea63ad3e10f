//! A user-space gateway for a local interface: answers ARP and ping, and has TCP services that echo,
//! discard and generate. It gives a guest a network without the privilege to open a tap.

use std::{collections::VecDeque, fmt, io, sync::Arc};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, DeviceCapabilities, Medium},
    socket::tcp,
    time::Instant,
    wire::{EthernetAddress, HardwareAddress, IpCidr},
};

use super::{backend::FrameBackend, local::LocalLink, output_queue::OutputQueue};
use crate::clock::{Clock, NANOS_PER_SEC};

/// Largest number of simultaneous connections of the echo service.
const CONNECTIONS: usize = 8;
/// Length of the network mask in bits.
const PREFIX: u8 = 31;
/// Time until the gateway works again while it has something to send, in nanoseconds: a tick of
/// OpenBSD.
const TICK: u64 = NANOS_PER_SEC / 100;

/// What is done with a connection.
#[derive(Clone, Copy, Debug)]
enum Service {
    /// What comes goes back (RFC 862).
    Echo,
    /// What comes is forgotten (RFC 863).
    Discard,
    /// Bytes are sent until the other end has enough (RFC 864).
    Generate,
}

impl Service {
    const fn port(self) -> u16 {
        match self {
            Self::Echo => 7,
            Self::Discard => 9,
            Self::Generate => 19,
        }
    }

    /// Sizes of the receive and the send buffer in bytes. The generator's is the largest to which
    /// OpenBSD lets one grow (`sb_max`).
    const fn buffers(self) -> (usize, usize) {
        match self {
            Self::Echo => (16 << 10, 16 << 10),
            Self::Discard => (256 << 10, 1 << 10),
            Self::Generate => (1 << 10, 2 << 20),
        }
    }

    fn socket(self) -> tcp::Socket<'static> {
        let (receive, send) = self.buffers();
        let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
        let mut socket = tcp::Socket::new(buffer(receive), buffer(send));
        socket.set_ack_delay(None);
        socket
    }

    /// Moves bytes. Returns whether anything changed.
    fn serve(self, socket: &mut tcp::Socket<'static>) -> bool {
        if !socket.is_open() {
            // Listening can fail only for port 0.
            return socket.listen(self.port()).is_ok();
        }
        let moved = match self {
            Self::Echo => echo(socket),
            Self::Discard => socket.recv(|bytes| (bytes.len(), bytes.len())).is_ok_and(|taken| taken > 0),
            Self::Generate => socket.send(|room| (room.len(), room.len())).is_ok_and(|sent| sent > 0),
        };
        if !moved && socket.may_send() && !socket.may_recv() && socket.state() == tcp::State::CloseWait {
            socket.close();
            return true;
        }
        moved
    }
}

/// A gateway in user space at [`LocalLink::host`]. It forwards nothing.
pub struct Gateway {
    interface: Interface,
    sockets: SocketSet<'static>,
    services: Vec<(Service, SocketHandle)>,
    frames: FrameQueues,
    /// When to work next without a frame from the guest, on the clock in nanoseconds.
    deadline: Option<u64>,
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
        let services = [Service::Echo; CONNECTIONS].into_iter().chain([Service::Discard, Service::Generate]);
        let services = services.map(|service| (service, sockets.add(service.socket()))).collect();
        Self { interface, sockets, services, frames, deadline: None, clock }
    }

    /// Runs the stack until it has nothing more to send.
    fn work(&mut self) {
        let time = now(&*self.clock);
        self.frames.to_guest.resume();
        loop {
            let mut busy = self.interface.poll(time, &mut self.frames, &mut self.sockets) != phy_idle();
            for &(service, handle) in &self.services {
                busy |= service.serve(self.sockets.get_mut(handle));
            }
            if !busy {
                break;
            }
        }
        let tick = self.clock.monotonic() + TICK;
        let timer = self.interface.poll_at(time, &self.sockets);
        let timer = timer.map(|at| u64::try_from(at.total_micros()).unwrap_or(0) * 1000);
        let waiting = (!self.frames.to_guest.is_empty()).then_some(tick);
        self.deadline = [timer.map(|at| at.max(tick)), waiting].into_iter().flatten().min();
    }
}

/// The result of a poll without changes.
const fn phy_idle() -> smoltcp::iface::PollResult {
    smoltcp::iface::PollResult::None
}

/// Sends received bytes back. Returns whether anything changed.
fn echo(socket: &mut tcp::Socket<'static>) -> bool {
    let room = socket.send_capacity() - socket.send_queue();
    if room == 0 || !socket.can_recv() || !socket.can_send() {
        return false;
    }
    let mut bytes = vec![0; room];
    let length = socket.recv_slice(&mut bytes).unwrap_or(0);
    socket.send_slice(&bytes[..length]).is_ok_and(|sent| sent > 0)
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
        Ok(self.frames.to_guest.pop().map(|frame| {
            let length = frame.len().min(buffer.len());
            buffer[..length].copy_from_slice(&frame[..length]);
            length
        }))
    }

    fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    fn expire(&mut self) {
        if self.deadline.is_some_and(|deadline| deadline <= self.clock.monotonic()) {
            self.work();
        }
    }

    fn failed_outputs(&self) -> u64 {
        self.frames.to_guest.failed()
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
    to_guest: OutputQueue,
}

impl phy::Device for FrameQueues {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _timestamp: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.to_gateway.pop_front()?;
        Some((Received(frame), Sending(&mut self.to_guest)))
    }

    fn transmit(&mut self, _timestamp: Instant) -> Option<Sending<'_>> {
        self.to_guest.accepts().then_some(Sending(&mut self.to_guest))
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

struct Sending<'a>(&'a mut OutputQueue);

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}
