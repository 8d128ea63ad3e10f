//! Backends of the network interfaces: tap interface, socket, built-in gateway. They outlive
//! restarts of the guest, because a socket can be connected only once.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use devices::{
    clock::Clock,
    virtio::net::{
        FrameBackend, Gateway, LocalLink, LocalPrefix, MacAddr, Net, NetOptions, StreamBackend, TapBackend,
        Unplugged,
    },
};
use parking_lot::Mutex;
use vmd_release::Capabilities;

use super::tap;
use crate::{
    config::{Nic, NicBackendConfig},
    error::Error,
};

/// The first VM's number in vmd, which is part of the addresses of its local interfaces.
const VM_NUMBER: u32 = 1;

/// A network interface's backend and options, from which each start of the guest gets a new device.
pub(crate) struct NicBackend {
    options: NetOptions,
    backend: SharedBackend,
}

impl NicBackend {
    /// Connects the backend of interface `index` (from 0).
    pub(crate) fn connect(nic: &Nic, index: u8, clock: &Arc<dyn Clock>) -> Result<Self, Error> {
        let mac = match &nic.mac {
            Some(text) => text.parse().map_err(|source| device_error(index, nic, Box::new(source)))?,
            None => MacAddr::random(index),
        };
        let local = (nic.local || nic.backend == NicBackendConfig::Gateway)
            .then(|| LocalLink::new(LocalPrefix::default(), VM_NUMBER, index, host_mac(index)))
            .transpose()
            .map_err(|source| device_error(index, nic, Box::new(source)))?;
        let failed = |source: io::Error| device_error(index, nic, Box::new(source));
        let backend = match &nic.backend {
            NicBackendConfig::Tap(name) => {
                SharedBackend::new(TapBackend::new(tap::open(name).map_err(failed)?))
            }
            NicBackendConfig::Stream(path) => {
                let stream = UnixStream::connect(path).and_then(StreamBackend::new);
                SharedBackend::new(stream.map_err(failed)?)
            }
            NicBackendConfig::Gateway => match &local {
                Some(link) => SharedBackend::new(Gateway::new(link, Arc::clone(clock))),
                None => unreachable!("an interface with a gateway has a local link"),
            },
            NicBackendConfig::Unplugged => SharedBackend::new(Unplugged),
        }
        .map_err(failed)?;
        Ok(Self { options: NetOptions { mac, locked: nic.locked, local }, backend })
    }

    /// A virtio device on this backend.
    pub(crate) fn device(&self, capabilities: &Capabilities) -> Net {
        Net::new(capabilities, self.options.clone(), Box::new(self.backend.clone()))
    }
}

/// MAC address of the host's end: as vmd's for the guest, but with prefix fe:e1:ba.
fn host_mac(index: u8) -> MacAddr {
    let mut mac = MacAddr::random(index);
    mac.0[2] = 0xba;
    mac
}

fn device_error(index: u8, nic: &Nic, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    let (backend, help) = match &nic.backend {
        NicBackendConfig::Tap(name) => (
            format!("tap interface {name}"),
            "create the interface (`ip tuntap add NAME mode tap user YOU`) and check that you may open /dev/net/tun",
        ),
        NicBackendConfig::Stream(path) => (
            format!("socket {}", path.display()),
            "start the program that listens on it (passt, or QEMU with `-netdev stream`) before the VM",
        ),
        NicBackendConfig::Gateway | NicBackendConfig::Unplugged => {
            ("no host interface".into(), "see the cause below")
        }
    };
    Error::Device { device: format!("network interface {index} ({backend})"), help: help.into(), source }
}

/// A backend shared by the devices of successive starts of the guest.
#[derive(Clone)]
struct SharedBackend {
    backend: Arc<Mutex<dyn FrameBackend>>,
    /// Duplicate of the backend's file descriptor, for use without its lock.
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
        self.backend.lock().send(frame)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        self.backend.lock().receive(buffer)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(|fd| fd.as_fd()).filter(|_| !self.is_closed())
    }

    fn is_closed(&self) -> bool {
        self.backend.lock().is_closed()
    }

    fn deadline(&self) -> Option<u64> {
        self.backend.lock().deadline()
    }

    fn expire(&mut self) {
        self.backend.lock().expire();
    }

    fn failed_outputs(&self) -> u64 {
        self.backend.lock().failed_outputs()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixListener};

    use devices::clock::ManualClock;

    use super::*;

    fn nic(backend: NicBackendConfig) -> Nic {
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
        let nic_backend = NicBackend::connect(&nic(NicBackendConfig::Stream(path)), 0, &clock()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        for byte in [1, 2] {
            let mut backend = nic_backend.backend.clone();
            assert!(backend.fd().is_some());
            backend.send(&[byte; 20]).unwrap();
            let mut frame = [0; 24];
            peer.read_exact(&mut frame).unwrap();
            assert_eq!((&frame[..4], frame[23]), (&[0, 0, 0, 20][..], byte));
        }
    }

    #[test]
    fn what_cannot_be_plugged_in_is_named() {
        for backend in
            [NicBackendConfig::Tap("a/b".into()), NicBackendConfig::Stream("/nonexistent/socket".into())]
        {
            let error = NicBackend::connect(&nic(backend), 3, &clock()).err().unwrap();
            assert!(error.to_string().contains("network interface 3"), "{error}");
        }
        let bad_mac = Nic { mac: Some("fe:e1".into()), ..nic(NicBackendConfig::Unplugged) };
        assert!(NicBackend::connect(&bad_mac, 0, &clock()).is_err());
    }

    #[test]
    fn a_gateway_needs_no_host() {
        let nic_backend = NicBackend::connect(&nic(NicBackendConfig::Gateway), 0, &clock()).unwrap();
        let link = nic_backend.options.local.unwrap();
        assert_eq!(link.guest.to_string(), "100.64.1.3");
        assert_eq!(link.host_mac.0[..3], [0xfe, 0xe1, 0xba]);
        assert!(nic_backend.backend.fd().is_none());
    }
}
