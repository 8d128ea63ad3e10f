//! Split virtqueues, walked as vmd walks them.
//!
//! This uses the descriptors of crate `virtio-queue` but not its iterators. vmd keeps its position
//! by the index in guest memory, masks indices instead of checking them, accepts any even queue
//! size and never follows indirect descriptors; the handling of malformed queues depends on all of
//! these.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{device_type::DeviceType, fault::Fault};

/// Guest RAM as the devices see it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// Size of a descriptor, in bytes.
const DESCRIPTOR: u64 = size_of::<Descriptor>() as u64;
/// Alignment of a legacy queue's used ring, and the unit of its address, in bytes.
pub(super) const LEGACY_PAGE: u64 = 4096;

/// The state of a queue (vmd's `virtio_vq_info`).
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    /// Guest physical address of the descriptor table, as last written.
    pub(super) gpa: u64,
    /// The mapped address of the table; `None` before the first valid address. A device reset keeps
    /// it.
    pub(super) mapped: Option<u64>,
    /// Number of entries.
    pub(super) size: u32,
    /// Offset of the available ring from the descriptor table, modulo 2^32.
    pub(super) avail_offset: u32,
    /// Offset of the used ring from the descriptor table, modulo 2^32.
    pub(super) used_offset: u32,
    /// Addresses of the available and the used ring where they are independent of the table's, from
    /// 8.0 on.
    pub(super) split: Option<(u64, u64)>,
    /// Index of the next entry of the available ring.
    pub(super) last_avail: u16,
    /// Whether the driver enabled the queue; always set on the legacy transport.
    pub(super) enabled: bool,
    /// Requests are left that the last [`Round`] had no room for. A new address or a reset drops
    /// them.
    pub(super) deferred: bool,
}

impl Queue {
    /// A queue in the legacy layout: the rings follow the table, the used ring on its own page.
    pub(super) fn legacy(size: u16) -> Self {
        let mut queue = Self { size: size.into(), enabled: true, ..Self::default() };
        queue.lay_out_legacy();
        queue
    }

    /// A queue of virtio 1.x, disabled and without addresses.
    pub(super) fn modern(size: u16) -> Self {
        Self { size: size.into(), ..Self::default() }
    }

    /// Sets the ring offsets of the legacy layout.
    pub(super) fn lay_out_legacy(&mut self) {
        let table = u64::from(self.size) * DESCRIPTOR;
        self.avail_offset = table as u32;
        self.used_offset = (table + 2 * (2 + u64::from(self.size))).next_multiple_of(LEGACY_PAGE) as u32;
    }

    /// Maps [`Queue::gpa`]. vmd checks as many bytes as a queue of the legacy layout would have.
    pub(super) fn map(&mut self, ram: &GuestRam, device: DeviceType, queue: u16) -> Result<(), Fault> {
        self.deferred = false;
        let size = u64::from(self.size);
        let bytes = (size * DESCRIPTOR + 2 * (2 + size)).next_multiple_of(LEGACY_PAGE)
            + (4 + 8 * size).next_multiple_of(LEGACY_PAGE);
        if !in_one_region(ram, self.gpa, bytes) {
            return Err(Fault::RingOutsideRam { device, queue, address: self.gpa });
        }
        self.mapped = Some(self.gpa);
        Ok(())
    }

    /// Maps the table and the rings separately, as vmd does from 8.0 on. If one of them is
    /// misaligned or outside RAM, or the size is not a power of two, the queue is unmapped.
    pub(super) fn map_split(&mut self, ram: &GuestRam) {
        self.deferred = false;
        let (avail, used) = self.split.unwrap_or_default();
        let size = u64::from(self.size);
        let sound = |address: u64, alignment: u64, length: u64| {
            address != 0 && address.is_multiple_of(alignment) && in_one_region(ram, address, length)
        };
        let mapped = size > 1
            && size.is_power_of_two()
            && sound(self.gpa, 16, size * DESCRIPTOR)
            && sound(avail, 2, 2 * (2 + size))
            && sound(used, 4, 4 + 8 * size);
        self.mapped = mapped.then_some(self.gpa);
    }

    /// Mask of an index: size − 1, whatever size the driver chose.
    pub(super) const fn mask(&self) -> u16 {
        self.size.wrapping_sub(1) as u16
    }
}

/// Whether `length` bytes at `address` lie in one region of guest RAM; vmd requires this of a
/// buffer (`hvaddr_mem` in vm.c).
pub(super) fn in_one_region(ram: &GuestRam, address: u64, length: u64) -> bool {
    ram.find_region(GuestAddress(address)).is_some_and(|region| {
        let offset = address - region.start_addr().0;
        length <= region.len() - offset
    })
}

/// Size of guest RAM in bytes.
pub(super) fn ram_size(ram: &GuestRam) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// Bytes that one [`Round`] moves, the last request not counted.
const ROUND_BYTES: u64 = 16 << 20;

/// What a device may do on one notification before it defers the rest: as many requests as its
/// queue has entries, and [`ROUND_BYTES`].
///
/// vmd processes requests as long as the available index differs from its own. That never ends if
/// the used ring lies on the available ring, and with an available index far ahead it takes hours.
/// vmd's devices are processes of their own that vmd can kill; here they run under the board's
/// lock. A driver that keeps to the queue's size finds all its requests processed either way,
/// large transfers excepted: their rest follows when the event loop runs
/// [`crate::pci::PciFunction::run_deferred`].
#[derive(Debug)]
pub(super) struct Round {
    requests: u16,
    bytes: u64,
}

impl Round {
    pub(super) const fn new(device: DeviceType) -> Self {
        Self { requests: device.queue_size(), bytes: ROUND_BYTES }
    }

    /// Whether the rest of the queue must be deferred.
    pub(super) const fn is_over(&self) -> bool {
        self.requests == 0 || self.bytes == 0
    }

    /// Counts a request.
    pub(super) const fn count(&mut self) {
        self.requests = self.requests.saturating_sub(1);
    }

    /// Counts moved bytes.
    pub(super) const fn moved(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A mapped queue during its processing.
pub(super) struct Ring<'a> {
    ram: &'a GuestRam,
    device: DeviceType,
    queue: u16,
    table: u64,
    avail: u64,
    used: u64,
    mask: u16,
    size: u32,
}

impl<'a> Ring<'a> {
    /// The rings of `state`, queue number `queue` of `device`.
    pub(super) fn new(
        ram: &'a GuestRam,
        device: DeviceType,
        queue: u16,
        state: &Queue,
    ) -> Result<Self, Fault> {
        let table = state.mapped.ok_or(Fault::NullRing { device, queue })?;
        let (avail, used) = state.split.unwrap_or_else(|| {
            let ring = |offset: u32| table.wrapping_add(offset.into());
            (ring(state.avail_offset), ring(state.used_offset))
        });
        Ok(Self { ram, device, queue, table, avail, used, mask: state.mask(), size: state.size })
    }

    fn outside(&self, address: u64) -> Fault {
        Fault::RingOutsideRam { device: self.device, queue: self.queue, address }
    }

    fn read<T: vm_memory::ByteValued>(&self, address: u64) -> Result<T, Fault> {
        self.ram.read_obj(GuestAddress(address)).map_err(|_| self.outside(address))
    }

    fn write<T: vm_memory::ByteValued>(&self, address: u64, value: T) -> Result<(), Fault> {
        self.ram.write_obj(value, GuestAddress(address)).map_err(|_| self.outside(address))
    }

    /// Descriptor `index` of the table. The index is not masked here, because vmd masks it in some
    /// places only.
    pub(super) fn descriptor(&self, index: u16) -> Result<Descriptor, Fault> {
        self.read(self.table.wrapping_add(u64::from(index) * DESCRIPTOR))
    }

    /// The descriptor that `descriptor` names as its next, whether or not its NEXT flag is set.
    pub(super) fn next(&self, descriptor: &Descriptor) -> Result<Descriptor, Fault> {
        self.descriptor(descriptor.next() & self.mask)
    }

    /// The available index: the position of the driver's next request.
    pub(super) fn avail_index(&self) -> Result<u16, Fault> {
        let index = self.read(self.avail.wrapping_add(2))?;
        fence(Ordering::Acquire);
        Ok(index)
    }

    /// Flags of the available ring.
    pub(super) fn avail_flags(&self) -> Result<u16, Fault> {
        self.read(self.avail)
    }

    /// The head descriptor of request `index`, masked to the ring.
    pub(super) fn avail_entry(&self, index: u16) -> Result<u16, Fault> {
        self.read(self.avail.wrapping_add(4 + 2 * u64::from(index & self.mask)))
    }

    /// Sets flags of the used ring.
    pub(super) fn set_used_flags(&self, flags: u16) -> Result<(), Fault> {
        let old: u16 = self.read(self.used)?;
        self.write(self.used, old | flags)
    }

    /// Returns `head` to the driver with `length` written bytes, at the position of the used index
    /// in guest memory.
    pub(super) fn push_used(&self, head: u16, length: u32) -> Result<(), Fault> {
        let index: u16 = self.read(self.used.wrapping_add(2))?;
        let slot = self.used.wrapping_add(4 + 8 * u64::from(index & self.mask));
        self.write(slot, u64::from(length) << 32 | u64::from(head))?;
        fence(Ordering::Release);
        self.write(self.used.wrapping_add(2), index.wrapping_add(1))
    }

    /// Guest RAM.
    pub(super) const fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    /// Number of entries. A chain with more descriptors is circular.
    pub(super) const fn size(&self) -> u32 {
        self.size
    }

    /// The ring's index mask.
    pub(super) const fn mask(&self) -> u16 {
        self.mask
    }

    /// The fault for a chain without an end.
    pub(super) fn endless(&self) -> Fault {
        Fault::EndlessChain { device: self.device, queue: self.queue }
    }
}
