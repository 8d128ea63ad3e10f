//! ACPI of vmd(8) since 8.0: the tables that vmd writes into guest memory and the power management block at I/O port
//! 0xb000.
//!
//! There is no HPET: the sources of 8.0 carry its header and the code for its table, and leave the table out "until
//! vmd provides the device" (acpi.c 1.4). There is no GPE block, no fixed reset register (FADT flags are 0: reboot
//! goes through port 0x64 or 0xcf9, see [`crate::reset`]), no sleep state but S5, and no SCI is ever raised: the fixed
//! power button that the FADT announces cannot be pressed.

mod dsdt;
pub mod pm;
pub mod tables;

/// PM1a event block: status and enable, two bytes each.
pub const PM1A_EVENT: u16 = 0xb000;
/// PM1a control register, two bytes.
pub const PM1A_CONTROL: u16 = 0xb008;
/// The power management timer, four bytes.
pub const PM_TIMER: u16 = 0xb00c;

/// The sleep type that `_S5` gives for the control register.
const SLEEP_TYPE_S5: u8 = 5;

/// First address of the memory that vmd reserves for its tables, just below the MMIO window.
pub const AREA: u64 = 0xefff_0000;
/// Number of bytes at [`AREA`]: e820 has them as reserved, and RAM ends below them.
pub const AREA_SIZE: u64 = 0x1_0000;
