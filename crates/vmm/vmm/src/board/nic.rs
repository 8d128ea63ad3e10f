//! What the network interfaces are plugged into. Backends outlive the guest's restarts: a socket can be connected
//! once only.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
};

use devices::{
    clock::Clock,
    virtio::net::{
        FrameBackend, Gateway, LocalLink, LocalPrefix, MacAddr, Net, NetOptions, StreamBackend, TapBackend,
        Unplugged,
    },
};
use vmd_release::Generation;

use super::tap;
use crate::{
    config::{Nic, NicBackend},
    error::Error,
};

/// The number that vmd would give the first VM, from which its local interfaces get their addresses.
const VM_NUMBER: u32 = 1;

/// A network interface of the machine, whatever guest is behind it.
pub(crate) struct Wire {
    options: NetOptions,
    backend: SharedBackend,
}

impl Wire {
    /// The `index`th interface (from 0).
    pub(crate) fn plug_in(nic: &Nic, index: u8, clock: &Arc<dyn Clock>) -> Result<Self, Error> {
        let mac = match &nic.mac {
            Some(text) => text.parse().map_err(|source| device_error(index, nic, Box::new(source)))?,
            None => MacAddr::random(index),
        };
        let local = (nic.local || nic.backend == NicBackend::Gateway)
            .then(|| LocalLink::new(LocalPrefix::default(), VM_NUMBER, index, host_mac(index)))
            .transpose()
            .map_err(|source| device_error(index, nic, Box::new(source)))?;
        let failed = |source: io::Error| device_error(index, nic, Box::new(source));
        let backend = match &nic.backend {
            NicBackend::Tap(name) => SharedBackend::new(TapBackend::new(tap::open(name).map_err(failed)?)),
            NicBackend::Stream(path) => {
                let stream = UnixStream::connect(path).and_then(StreamBackend::new);
                SharedBackend::new(stream.map_err(failed)?)
            }
            NicBackend::Gateway => match &local {
                Some(link) => SharedBackend::new(Gateway::new(link, Arc::clone(clock))),
                None => unreachable!("an interface with a gateway has a local link"),
            },
            NicBackend::Unplugged => SharedBackend::new(Unplugged),
        }
        .map_err(failed)?;
        Ok(Self { options: NetOptions { mac, locked: nic.locked, local }, backend })
    }

    /// The device for a guest that starts.
    pub(crate) fn device(&self, generation: Generation) -> Net {
        Net::new(generation, self.options.clone(), Box::new(self.backend.clone()))
    }
}

/// The address of the host's end: like vmd's for the guest, but with OpenBSD's own prefix.
fn host_mac(index: u8) -> MacAddr {
    let mut mac = MacAddr::random(index);
    mac.0[2] = 0xba;
    mac
}

fn device_error(index: u8, nic: &Nic, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    let (backend, help) = match &nic.backend {
        NicBackend::Tap(name) => (
            format!("tap interface {name}"),
            "create the interface (`ip tuntap add NAME mode tap user YOU`) and see that you may open /dev/net/tun",
        ),
        NicBackend::Stream(path) => (
            format!("socket {}", path.display()),
            "start the program that listens on it (passt, or QEMU with `-netdev stream`) before the machine",
        ),
        NicBackend::Gateway | NicBackend::Unplugged => ("no host interface".into(), "see the cause below"),
    };
    Error::Device { device: format!("network interface {index} ({backend})"), help: help.into(), source }
}

/// A backend that guests take turns with.
#[derive(Clone)]
struct SharedBackend {
    backend: Arc<Mutex<dyn FrameBackend>>,
    /// A duplicate of the backend's own, to be watched without holding the lock.
    fd: Option<Arc<OwnedFd>>,
}

impl SharedBackend {
    fn new(backend: impl FrameBackend + 'static) -> io::Result<Self> {
        let fd = backend.fd().map(|fd| fd.try_clone_to_owned().map(Arc::new)).transpose()?;
        Ok(Self { backend: Arc::new(Mutex::new(backend)), fd })
    }
}

impl FrameBackend for SharedBackend {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner).send(frame)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner).receive(buffer)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(|fd| fd.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixListener};

    use devices::clock::ManualClock;

    use super::*;

    fn nic(backend: NicBackend) -> Nic {
        Nic { backend, mac: None, locked: false, local: false }
    }

    fn clock() -> Arc<dyn Clock> {
        Arc::new(ManualClock::default())
    }

    #[test]
    fn a_stream_is_connected_once_and_used_by_guest_after_guest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let wire = Wire::plug_in(&nic(NicBackend::Stream(path)), 0, &clock()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        for byte in [1, 2] {
            let mut backend = wire.backend.clone();
            assert!(backend.fd().is_some());
            backend.send(&[byte; 20]).unwrap();
            let mut frame = [0; 24];
            peer.read_exact(&mut frame).unwrap();
            assert_eq!((&frame[..4], frame[23]), (&[0, 0, 0, 20][..], byte));
        }
    }

    #[test]
    fn what_cannot_be_plugged_in_is_named() {
        for backend in [NicBackend::Tap("a/b".into()), NicBackend::Stream("/nonexistent/socket".into())] {
            let error = Wire::plug_in(&nic(backend), 3, &clock()).err().unwrap();
            assert!(error.to_string().contains("network interface 3"), "{error}");
        }
        let bad_mac = Nic { mac: Some("fe:e1".into()), ..nic(NicBackend::Unplugged) };
        assert!(Wire::plug_in(&bad_mac, 0, &clock()).is_err());
    }

    #[test]
    fn a_gateway_needs_no_host() {
        let wire = Wire::plug_in(&nic(NicBackend::Gateway), 0, &clock()).unwrap();
        let link = wire.options.local.unwrap();
        assert_eq!(link.guest.to_string(), "100.64.1.3");
        assert_eq!(link.host_mac.0[..3], [0xfe, 0xe1, 0xba]);
        assert!(wire.backend.fd().is_none());
    }
}
