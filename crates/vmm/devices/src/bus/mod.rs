//! Port I/O as vmd sees it; memory-mapped I/O is in [`mmio`], the reset ports in [`reset`].

pub mod mmio;
pub mod reset;

/// Width of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
}

impl Width {
    /// The width of an access of `bytes` bytes: 1, 2 or 4. `None` for every other number: the I/O
    /// bus has no such access.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            _ => None,
        }
    }

    /// Number of bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
        }
    }

    /// Bit mask of an access of this width.
    pub const fn mask(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => 0xffff_ffff,
        }
    }
}

/// Direction of a port access, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The guest reads.
    In,
    /// The guest writes.
    Out,
}

/// One IN or OUT of the guest, from the vCPU exit to the device and back.
///
/// vmm hands vmd all of EAX with every access, IN or OUT, and loads EAX from the same word
/// afterwards. A device that does not write the word on an IN therefore leaves EAX unchanged, and a
/// device that stores 32 bits changes all of EAX whatever the width of the access
/// (`exit_qualification`/`vei_data` handling in vmd's x86_vm.c; seen in `golden/vmmci`, register
/// dump by width). For this reason the access carries the whole word instead of a value of its own
/// width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// The port.
    pub port: u16,
    /// Operand width of the instruction.
    pub width: Width,
    /// IN or OUT.
    pub direction: Direction,
    /// EAX. OUT: the value that the guest writes. IN: the value before the access, replaced by the
    /// answer.
    pub eax: u32,
}

impl PortAccess {
    /// An IN from `port` by a guest whose EAX is `eax`.
    pub const fn input(port: u16, width: Width, eax: u32) -> Self {
        Self { port, width, direction: Direction::In, eax }
    }

    /// An OUT of `eax` to `port`.
    pub const fn output(port: u16, width: Width, eax: u32) -> Self {
        Self { port, width, direction: Direction::Out, eax }
    }

    /// Answers an IN in its own width; the higher bits of EAX keep their value.
    pub const fn answer(&mut self, value: u32) {
        let mask = self.width.mask();
        self.eax = (self.eax & !mask) | (value & mask);
    }

    /// Answers an IN with 32 bits whatever its width, as most of vmd's PCI devices do.
    pub const fn answer_dword(&mut self, value: u32) {
        self.eax = value;
    }

    /// The value that an OUT carries: EAX cut to the access's width.
    pub const fn value(&self) -> u32 {
        self.eax & self.width.mask()
    }

    /// Returns `register` with its low bits replaced by the value of this OUT; bits beyond the
    /// access's width keep their value.
    pub const fn merge_into(&self, register: u32) -> u32 {
        let mask = self.width.mask();
        (register & !mask) | (self.eax & mask)
    }
}

/// A device on the I/O bus. The board routes accesses by port; the device sees absolute port
/// numbers.
pub trait PortDevice: Send {
    /// Handles one access. A device that does not answer an IN leaves [`PortAccess::eax`]
    /// unchanged.
    fn access(&mut self, access: &mut PortAccess);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_changes_only_its_width() {
        let mut io = PortAccess::input(0x3f8, Width::Byte, 0x1122_3344);
        io.answer(0xffff_ffff);
        assert_eq!(io.eax, 0x1122_33ff);
        io.answer_dword(7);
        assert_eq!(io.eax, 7);
    }

    #[test]
    fn an_unanswered_in_leaves_eax() {
        let io = PortAccess::input(0x1000, Width::Word, 0xdead_beef);
        assert_eq!(io.eax, 0xdead_beef);
    }

    #[test]
    fn an_out_carries_its_width_and_keeps_the_registers_rest() {
        let io = PortAccess::output(0xcf8, Width::Word, 0x1122_3344);
        assert_eq!(io.value(), 0x3344);
        assert_eq!(io.merge_into(0xaabb_ccdd), 0xaabb_3344);
    }
}
