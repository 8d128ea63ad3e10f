//! ACPI of vmd(8) from 8.0 on: the tables that vmd writes into guest memory and the power
//! management block at I/O port 0xb000.
//!
//! vmd has no HPET: the sources of 8.0 contain its header and the code for its table and leave the
//! table out "until vmd provides the device" (acpi.c 1.4). It has no GPE block, no fixed reset
//! register (FADT flags are 0: reboot goes through port 0x64 or 0xcf9, see [`crate::bus::reset`])
//! and no sleep state but S5, and raises no SCI: the fixed power button that the FADT announces
//! cannot be pressed.

mod dsdt;
pub mod pm;
pub mod tables;

/// PM1a event block: status and enable, two bytes each.
pub const PM1A_EVENT: u16 = 0xb000;
/// PM1a control register, two bytes.
pub const PM1A_CONTROL: u16 = 0xb008;
/// The power management timer, four bytes.
pub const PM_TIMER: u16 = 0xb00c;

/// The sleep type of S5 in the control register, as `_S5` announces it.
const SLEEP_TYPE_S5: u8 = 5;

/// First address of the memory that vmd reserves for its tables, just below the MMIO window.
pub const AREA: u64 = 0xefff_0000;
/// Size in bytes of [`AREA`]: reserved in e820; RAM ends below it.
pub const AREA_SIZE: u64 = 0x1_0000;
