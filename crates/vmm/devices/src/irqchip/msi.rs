//! MSI and MSI-X of vmd's PCI functions, from 8.0 on (pci.c of September 2026).
//!
//! Every virtio device has both, as its first two capabilities: MSI with one 64-bit message, and
//! MSI-X with one vector for configuration changes and one for each queue, its table in a 64 KiB
//! memory BAR. A guest can observe:
//!
//! - While MSI-X is enabled, INTA is not used: an event with vector "none" is not signalled.
//! - An event of a masked vector is held in the pending bit array and sent when the vector is
//!   unmasked. MSI has no mask.
//! - Enabling MSI disables MSI-X and the reverse.
//! - The table is accessed as 32-bit registers at 32-bit boundaries, whatever the access's width;
//!   the area between the table and the pending bits reads as ones.
//!
//! The available sources do not define the offset of the pending bits in the BAR; this model uses
//! the BAR's second half.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    bus::{
        Direction,
        mmio::{MmioAccess, MmioRefused},
    },
    irqchip::InterruptController,
};

/// No vector: the event is not signalled.
pub const NO_VECTOR: u16 = 0xffff;
/// Size of the memory BAR with the table (`VM_PCI_MMIO_BAR_SIZE`).
pub const BAR_SIZE: u32 = 0x1_0000;
/// Offset of the MSI capability in configuration space; it is the first in the list.
pub const MSI: u8 = 0x40;
/// Offset of the MSI-X capability in configuration space; it is the second in the list.
pub const MSIX: u8 = 0x58;
/// MSI's enable bit in the capability's first 32 bits.
pub const MSI_ENABLE: u32 = 1 << 16;
/// MSI-X's enable bit in the capability's first 32 bits.
pub const MSIX_ENABLE: u32 = 1 << 31;
/// MSI-X's bit that masks all vectors.
pub const MSIX_MASK: u32 = 1 << 30;

const PENDING: u32 = 0x8000;
const MASKED: u32 = 1;

/// The MSI and the MSI-X capability of a function with `vectors` vectors (from 1) whose table is in
/// BAR 1, in the form of [`crate::pci::PciFunction::capabilities`].
pub fn capabilities(vectors: u16) -> [Vec<u8>; 2] {
    // MSI: 64-bit address.
    let msi = [0x05, 0, 0x80, 0].into_iter().chain([0; 12]).collect();
    let mut msix = vec![0x11, 0];
    msix.extend((vectors - 1).to_le_bytes());
    msix.extend(1u32.to_le_bytes());
    msix.extend((PENDING | 1).to_le_bytes());
    [msi, msix]
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
}

#[derive(Debug, Default)]
struct State {
    /// MSI's address and data, if MSI is enabled.
    msi: Option<(u64, u32)>,
    msix: bool,
    all_masked: bool,
    table: Vec<Entry>,
    pending: u64,
}

impl State {
    /// Takes the pending messages whose vectors are unmasked.
    fn drain(&mut self) -> Vec<(u64, u32)> {
        if !self.msix || self.all_masked {
            return Vec::new();
        }
        let mut sent = Vec::new();
        for (n, entry) in self.table.iter().enumerate().filter(|(_, entry)| !entry.masked) {
            if self.pending >> n & 1 != 0 {
                self.pending &= !(1 << n);
                sent.push((entry.address, entry.data));
            }
        }
        sent
    }
}

/// The MSI and MSI-X state of one function, and the controller that its messages go to.
pub struct Messages {
    controller: Arc<dyn InterruptController>,
    state: Mutex<State>,
}

impl Messages {
    /// State without vectors until [`Messages::power_on`]; messages go to `controller`.
    pub fn new(controller: Arc<dyn InterruptController>) -> Self {
        Self { controller, state: Mutex::default() }
    }

    /// Resets to the power-on state with `vectors` vectors (0 to 64), all masked.
    pub fn power_on(&self, vectors: u16) {
        let entry = Entry { address: 0, data: 0, masked: true };
        self.with(|state| *state = State { table: vec![entry; vectors.min(64).into()], ..State::default() });
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> u16 {
        self.with(|state| state.table.len() as u16)
    }

    /// Applies the driver's writes to the capabilities: `msi` is MSI's address and data if it is
    /// enabled, `msix_control` the first 32 bits of the MSI-X capability.
    pub fn configure(&self, msi: Option<(u64, u32)>, msix_control: u32) {
        self.send(|state| {
            state.msi = msi;
            state.msix = msix_control & MSIX_ENABLE != 0;
            state.all_masked = msix_control & MSIX_MASK != 0;
            state.drain()
        });
    }

    /// Whether interrupts use INTA: neither MSI nor MSI-X is enabled.
    pub fn is_legacy(&self) -> bool {
        self.with(|state| !state.msix && state.msi.is_none())
    }

    /// Signals `vector`, or MSI's only message. Returns `false` if the caller must use INTA
    /// instead.
    pub fn signal(&self, vector: u16) -> bool {
        let mut legacy = false;
        self.send(|state| {
            if !state.msix {
                legacy = state.msi.is_none();
                return state.msi.into_iter().collect();
            }
            if usize::from(vector) < state.table.len() {
                state.pending |= 1 << vector;
            }
            state.drain()
        });
        !legacy
    }

    /// Handles an access at `offset` in the memory BAR.
    pub fn mmio(&self, offset: u32, access: &mut MmioAccess) -> Result<(), MmioRefused> {
        let refused = MmioRefused::from(&*access);
        let mut result = Ok(());
        self.send(|state| {
            let entry = state.table.get_mut(offset as usize / 16);
            match (entry, offset) {
                (Some(_), _) if !offset.is_multiple_of(4) => result = Err(refused),
                (Some(entry), _) => {
                    table_access(entry, offset, access);
                    return state.drain();
                }
                (None, PENDING) => answer(access, state.pending as u32),
                (None, offset) if offset == PENDING + 4 => answer(access, (state.pending >> 32) as u32),
                _ if access.direction == Direction::In => access.answer_ones(),
                _ => {}
            }
            Vec::new()
        });
        result
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock())
    }

    /// Runs `f` under the lock, then sends the returned messages without it.
    fn send(&self, f: impl FnOnce(&mut State) -> Vec<(u64, u32)>) {
        for (address, data) in self.with(f) {
            self.controller.message(address, data);
        }
    }
}

fn answer(access: &mut MmioAccess, value: u32) {
    if access.direction == Direction::In {
        access.answer_dword(value);
    }
}

fn table_access(entry: &mut Entry, offset: u32, access: &mut MmioAccess) {
    let (low, high) = (entry.address as u32, (entry.address >> 32) as u32);
    let register = offset / 4 % 4;
    if access.direction == Direction::In {
        access.answer_dword([low, high, entry.data, u32::from(entry.masked)][register as usize]);
        return;
    }
    let value = access.data as u32;
    match register {
        0 => entry.address = u64::from(high) << 32 | u64::from(value),
        1 => entry.address = u64::from(value) << 32 | u64::from(low),
        2 => entry.data = value,
        _ => entry.masked = value & MASKED != 0,
    }
}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messages").field("state", &self.state).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Sink(Mutex<Vec<(u64, u32)>>);

    impl InterruptController for Sink {
        fn assert_irq(&self, _: u8) {}

        fn deassert_irq(&self, _: u8) {}

        fn message(&self, address: u64, data: u32) {
            self.0.lock().push((address, data));
        }
    }

    fn messages(vectors: u16) -> (Messages, Arc<Sink>) {
        let sink = Arc::new(Sink::default());
        let messages = Messages::new(Arc::clone(&sink) as _);
        messages.power_on(vectors);
        (messages, sink)
    }

    fn set(messages: &Messages, offset: u32, value: u32) {
        messages.mmio(offset, &mut MmioAccess::write(offset.into(), 4, value.into())).unwrap();
    }

    fn get(messages: &Messages, offset: u32) -> u32 {
        let mut access = MmioAccess::read(offset.into(), 4);
        messages.mmio(offset, &mut access).unwrap();
        access.value() as u32
    }

    fn sent(sink: &Sink) -> Vec<(u64, u32)> {
        std::mem::take(&mut sink.0.lock())
    }

    #[test]
    fn the_capabilities_describe_the_vectors() {
        let [msi, msix] = capabilities(3);
        assert_eq!((msi.len(), &msi[..4]), (16, &[5, 0, 0x80, 0][..]));
        assert_eq!(msix, [0x11, 0, 2, 0, 1, 0, 0, 0, 1, 0x80, 0, 0]);
    }

    #[test]
    fn inta_is_used_until_msi_is_enabled() {
        let (messages, sink) = messages(2);
        assert!(messages.is_legacy() && !messages.signal(0));
        messages.configure(Some((0xfee0_0000, 0x41)), 0);
        assert!(!messages.is_legacy() && messages.signal(NO_VECTOR));
        assert_eq!(sent(&sink), [(0xfee0_0000, 0x41)]);
    }

    #[test]
    fn a_masked_vector_waits_and_no_vector_is_dropped() {
        let (messages, sink) = messages(2);
        messages.configure(None, MSIX_ENABLE);
        for (offset, value) in [(0x10, 0xfee0_1000), (0x14, 0), (0x18, 0x52)] {
            set(&messages, offset, value);
            assert_eq!(get(&messages, offset), value);
        }
        assert_eq!(get(&messages, 0x1c), 1, "masked at first");
        assert!(messages.signal(1) && messages.signal(NO_VECTOR) && messages.signal(2));
        assert_eq!((sent(&sink), get(&messages, PENDING)), (vec![], 2));
        set(&messages, 0x1c, 0);
        assert_eq!((sent(&sink), get(&messages, PENDING)), (vec![(0xfee0_1000, 0x52)], 0));
        messages.configure(None, MSIX_ENABLE | MSIX_MASK);
        messages.signal(1);
        assert_eq!(sent(&sink), []);
        messages.configure(None, MSIX_ENABLE);
        assert_eq!(sent(&sink), [(0xfee0_1000, 0x52)]);
    }

    #[test]
    fn accesses_outside_the_table_read_ones_or_are_refused() {
        let (messages, _) = messages(2);
        assert_eq!(get(&messages, 0x20), u32::MAX);
        assert_eq!(get(&messages, PENDING + 4), 0);
        assert!(messages.mmio(2, &mut MmioAccess::read(2, 2)).is_err());
    }

    proptest! {
        #[test]
        fn no_access_panics(steps in prop::collection::vec((0u32..0x1_0000, any::<u64>(), 0u8..5), 0..200)) {
            let (messages, _) = messages(64);
            for (offset, data, what) in steps {
                match what {
                    0 => drop(messages.mmio(offset, &mut MmioAccess::write(offset.into(), 4, data))),
                    1 => drop(messages.mmio(offset & 0x7ff, &mut MmioAccess::write(0, 4, data))),
                    2 => drop(messages.mmio(offset, &mut MmioAccess::read(offset.into(), 8))),
                    3 => messages.configure((data & 1 != 0).then_some((data, 1)), data as u32),
                    _ => drop(messages.signal(offset as u16 & 0x7f)),
                }
            }
        }
    }
}
