//! Port I/O as vmd sees it.

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
    /// From a number of bytes: 1, 2 or 4; others do not exist on the I/O bus.
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

    /// The bits that an access of this width carries.
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

/// One IN or OUT of the guest on its way through the machine.
///
/// vmm hands vmd the whole of EAX with every access, IN or OUT, and loads EAX from the same word afterwards. A device
/// that does not touch the word on an IN therefore leaves EAX as it was, and one that stores 32 bits changes all of
/// EAX whatever the width of the access (`exit_qualification`/`vei_data` handling in vmd's x86_vm.c; seen in
/// `golden/vmmci`, register dump by width). That is why the word is carried here and not a value of the access's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAccess {
    /// The port.
    pub port: u16,
    /// How wide the instruction is.
    pub width: Width,
    /// IN or OUT.
    pub direction: Direction,
    /// EAX: what the guest writes on an OUT; what it had, and will have, on an IN.
    pub eax: u32,
}

impl PortAccess {
    /// An IN by a guest whose EAX is `eax`.
    pub const fn input(port: u16, width: Width, eax: u32) -> Self {
        Self { port, width, direction: Direction::In, eax }
    }

    /// An OUT of `eax`.
    pub const fn output(port: u16, width: Width, eax: u32) -> Self {
        Self { port, width, direction: Direction::Out, eax }
    }

    /// Answers an IN in its own width; the rest of EAX stays.
    pub const fn answer(&mut self, value: u32) {
        let mask = self.width.mask();
        self.eax = (self.eax & !mask) | (value & mask);
    }

    /// Answers an IN with 32 bits whatever its width, as most of vmd's PCI devices do.
    pub const fn answer_dword(&mut self, value: u32) {
        self.eax = value;
    }

    /// The bits that an OUT carries.
    pub const fn value(&self) -> u32 {
        self.eax & self.width.mask()
    }

    /// Stores an OUT into a register in the access's width, keeping the register's higher bits.
    pub const fn merge_into(&self, register: u32) -> u32 {
        let mask = self.width.mask();
        (register & !mask) | (self.eax & mask)
    }
}

/// A device on the I/O bus. The machine routes accesses by port; the device sees absolute port numbers.
pub trait PortDevice: Send {
    /// Handles one access. An IN that nobody answers leaves [`PortAccess::eax`] alone.
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
