//! The ports that reset a PC: the keyboard controller's command port and the PIIX reset control
//! register.
//!
//! Up to 7.9 vmd has neither and a guest resets by a triple fault. 8.0 checks for two writes before
//! it dispatches an OUT (`vcpu_exit_reset` in x86_vm.c): a byte 0xfe to 0x64, and a byte with the
//! full-reset bits to 0xcf9. Both ports read as ones. The available sources do not define "full
//! reset"; this model requires both of the chip's bits, 0x02 (system reset) and 0x04 (start it).

use crate::bus::{Direction, PortAccess, Width};

/// The keyboard controller's command port.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// PIIX reset control.
pub const RESET_CONTROL: u16 = 0xcf9;

const PULSE_RESET_LINE: u32 = 0xfe;
const FULL_RESET: u32 = 0x06;

/// Whether `access` resets the VM on 8.0. The board checks this before it dispatches the access to
/// a device.
pub fn asks_for_reset(access: &PortAccess) -> bool {
    access.direction == Direction::Out
        && access.width == Width::Byte
        && match access.port {
            KEYBOARD_COMMAND => access.value() == PULSE_RESET_LINE,
            RESET_CONTROL => access.value() & FULL_RESET == FULL_RESET,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_byte_writes_reset() {
        for (port, width, value, resets) in [
            (0x64, Width::Byte, 0xfe, true),
            (0x64, Width::Byte, 0xab_cdfe, true),
            (0x64, Width::Byte, 0xff, false),
            (0x64, Width::Word, 0xfe, false),
            (0x60, Width::Byte, 0xfe, false),
            (0xcf9, Width::Byte, 0x06, true),
            (0xcf9, Width::Byte, 0xff, true),
            (0xcf9, Width::Byte, 0x02, false),
            (0xcf9, Width::Dword, 0x06, false),
            (0xcf8, Width::Byte, 0x06, false),
        ] {
            assert_eq!(
                asks_for_reset(&PortAccess::output(port, width, value)),
                resets,
                "{port:#x} {value:#x}"
            );
        }
        assert!(!asks_for_reset(&PortAccess::input(0x64, Width::Byte, 0xfe)));
    }
}
