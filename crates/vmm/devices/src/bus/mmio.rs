//! Memory-mapped registers as vmd sees them (8.0 on).
//!
//! Up to 7.9 an access outside RAM ends the VM. 8.0 hands every access to 0xf0000000 – 0xffbfffff
//! to vmd, which decodes the instruction itself and calls the model that claimed the address
//! (x86_mmio.c). The model gets the operand's size and one 64-bit word, as with EAX on the I/O bus.
//! vmd cuts the word to the operand's size afterwards, so a model that always answers 32 bits also
//! serves a one-byte read.

use crate::bus::Direction;

/// First address of the window that vmm(4) hands to vmd (`PCI_MMIO_BAR_BASE` in pci.h).
pub const WINDOW_BASE: u64 = 0xf000_0000;
/// Last address of the window; the firmware image follows.
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
    /// Write: the value that the guest writes, which for a register operand can be wider than
    /// `size`. Read: the answer.
    pub data: u64,
}

impl MmioAccess {
    /// A read of `size` bytes.
    pub const fn read(address: u64, size: u8) -> Self {
        Self { address, size, direction: Direction::In, data: 0 }
    }

    /// A write of `size` bytes of `data`.
    pub const fn write(address: u64, size: u8, data: u64) -> Self {
        Self { address, size, direction: Direction::Out, data }
    }

    /// Bit mask of the operand.
    pub const fn mask(&self) -> u64 {
        match self.size {
            1 => 0xff,
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }

    /// The value that a read puts into the guest's operand.
    pub const fn value(&self) -> u64 {
        self.data & self.mask()
    }

    /// Answers a read with 32 bits and keeps the word's higher half, as most of vmd's models do.
    pub const fn answer_dword(&mut self, value: u32) {
        self.data = (self.data & !0xffff_ffff) | value as u64;
    }

    /// Answers a read with all ones: the answer at an unclaimed address.
    pub const fn answer_ones(&mut self) {
        self.data = u64::MAX;
    }
}

/// The model refused the access. vmd ignores a refused MOV (a read leaves the register unchanged)
/// and ends the VM for every other instruction (`emulate_*` in x86_mmio.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device refuses an access of {size} bytes at {address:#x}")]
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
    fn a_read_returns_the_word_cut_to_the_operand_size() {
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
