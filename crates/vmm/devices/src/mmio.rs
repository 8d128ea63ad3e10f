//! Memory-mapped registers as vmd sees them (8.0 on).
//!
//! Up to 7.9 an access outside RAM ends the VM. 8.0 hands every access to 0xf0000000 – 0xffbfffff to vmd, which
//! decodes the instruction itself and calls the model that claimed the address (x86_mmio.c). A model gets the
//! operand's size and one 64-bit word, as with EAX on the I/O bus: what it stores is cut to the operand's size
//! afterwards, so that a model that always answers 32 bits serves a byte's read too.

use crate::bus::Direction;

/// First address of the window that vmm(4) hands to vmd (`PCI_MMIO_BAR_BASE` in pci.h).
pub const WINDOW_BASE: u64 = 0xf000_0000;
/// Last address of that window; the firmware's image follows.
pub const WINDOW_END: u64 = 0xffbf_ffff;

/// One read or write of memory-mapped registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioAccess {
    /// Guest-physical address.
    pub address: u64,
    /// Operand size in bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Read ([`Direction::In`]) or write ([`Direction::Out`]).
    pub direction: Direction,
    /// What the guest writes (wider than `size` says, for a register operand), or what it will read.
    pub data: u64,
}

impl MmioAccess {
    /// A read.
    pub const fn read(address: u64, size: u8) -> Self {
        Self { address, size, direction: Direction::In, data: 0 }
    }

    /// A write of `data`.
    pub const fn write(address: u64, size: u8, data: u64) -> Self {
        Self { address, size, direction: Direction::Out, data }
    }

    /// The bits that the operand has.
    pub const fn mask(&self) -> u64 {
        match self.size {
            1 => 0xff,
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }

    /// What the guest's operand gets on a read.
    pub const fn value(&self) -> u64 {
        self.data & self.mask()
    }

    /// Answers a read with 32 bits, keeping the word's higher half, as most of vmd's models do.
    pub const fn answer_dword(&mut self, value: u32) {
        self.data = (self.data & !0xffff_ffff) | value as u64;
    }

    /// Answers a read with all ones: what nobody claimed.
    pub const fn answer_ones(&mut self) {
        self.data = u64::MAX;
    }
}

/// The model refused the access. vmd forgets a refused MOV (a read leaves the register alone) and ends the VM for
/// every other instruction (`emulate_*` in x86_mmio.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device does not take an access of {size} bytes at {address:#x}")]
pub struct MmioRefused {
    /// The address.
    pub address: u64,
    /// The operand's size in bytes.
    pub size: u8,
}

impl From<&MmioAccess> for MmioRefused {
    fn from(access: &MmioAccess) -> Self {
        Self { address: access.address, size: access.size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operand_takes_its_size_of_the_word() {
        let mut io = MmioAccess::read(0xfee0_0030, 1);
        io.answer_dword(0x0006_0010);
        assert_eq!(io.value(), 0x10);
        io.size = 8;
        io.data = 0xaaaa_aaaa_0000_0000;
        io.answer_dword(0x0006_0010);
        assert_eq!(io.value(), 0xaaaa_aaaa_0006_0010);
        io.answer_ones();
        assert_eq!(io.value(), u64::MAX);
    }
}
