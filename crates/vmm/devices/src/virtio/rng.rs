//! Entropy: vmd's viornd.

use std::fmt;

use vm_memory::{Bytes, GuestAddress};
use vmd_release::Capabilities;

use super::{
    device::{DeviceState, VirtioDevice},
    device_type::DeviceType,
    fault::Fault,
};
use crate::bus::Width;

/// Largest request in one descriptor, in bytes (`MAXPHYS` in virtio.c).
const MAX_REQUEST: u32 = 64 * 1024;

/// Fills a slice with random bytes.
type Source = Box<dyn FnMut(&mut [u8]) + Send>;

/// The entropy device.
pub struct Rng {
    source: Source,
}

impl Rng {
    /// An entropy device on the host's random number generator.
    pub fn new() -> Self {
        Self::from_source(|bytes| {
            if let Err(error) = getrandom::fill(bytes) {
                tracing::error!(%error, "no entropy for the guest: it gets zeroes");
            }
        })
    }

    /// An entropy device on `source`, for tests and replay.
    pub fn from_source(source: impl FnMut(&mut [u8]) + Send + 'static) -> Self {
        Self { source: Box::new(source) }
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rng").finish_non_exhaustive()
    }
}

impl VirtioDevice for Rng {
    const DEVICE_TYPE: DeviceType = DeviceType::Rng;

    fn features(&self, _capabilities: &Capabilities) -> u32 {
        0
    }

    /// rng has no configuration: every offset reads as ones.
    fn read_config(&self, _offset: u8, _width: Width) -> Option<u32> {
        Some(u32::MAX)
    }

    fn read_legacy_config(&self, _offset: u8, _width: Width, _eax: u32) -> Option<u32> {
        None
    }

    /// Fills one descriptor for each notification. vmd reads the available ring at the current
    /// index, one entry beyond the driver's request (`viornd_notifyq` in virtio.c). Drivers with
    /// one request at a time, as Linux and OpenBSD, always use descriptor 0 and work, since unused
    /// entries read 0.
    ///
    /// A request of more than 64 KiB ends the VM up to 7.9 and is ignored by 8.0.
    fn notify(&mut self, queue: u16, state: &mut DeviceState) -> Result<bool, Fault> {
        if !state.queues.get(usize::from(queue)).is_some_and(|queue| queue.enabled) {
            return Ok(false);
        }
        let ring = state.ring(queue)?;
        let head = ring.avail_entry(ring.avail_index()?)? & ring.mask();
        let descriptor = ring.descriptor(head)?;
        let length = descriptor.len();
        if length > MAX_REQUEST {
            if state.capabilities.rng_ignores_large_requests {
                return Ok(false);
            }
            return Err(Fault::RequestTooLarge { device: DeviceType::Rng, length, max: MAX_REQUEST });
        }
        let mut bytes = vec![0; length as usize];
        (self.source)(&mut bytes);
        if state.ram.write_slice(&bytes, GuestAddress(descriptor.addr().0)).is_err() {
            return Ok(false);
        }
        ring.push_used(head, length)?;
        state.mark_only_served();
        Ok(true)
    }
}
