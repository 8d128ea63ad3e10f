//! Concessions to Debian's stock SeaBIOS, which knows QEMU and not vmd. OpenBSD's build needs none
//! of them, and no guest sees any.
//!
//! - **Host bridge's subsystem.** If the subsystem ID of the host bridge is 1af4:1100, SeaBIOS
//!   takes the VM for QEMU's and uses fw_cfg, the serial console and virtio disks. vmd's is
//!   0b5d:0000, which OpenBSD's build knows. Reads of that register by an instruction in the ROM
//!   answer 1af4:1100. All other reads, and so all reads by a guest, answer vmd's value.
//! - **Interrupt lines.** SeaBIOS routes interrupts for QEMU's chipsets only. On a bridge that it
//!   does not know it overwrites the interrupt line registers that vmd has set; OpenBSD's build
//!   does not. Its writes are dropped while only the firmware runs.
//! - **String reads of fw_cfg's data port.** SeaBIOS reads fw_cfg's signature with REP INSB before
//!   it knows of the DMA interface; OpenBSD's build reads byte by byte, because vmd cannot emulate
//!   string instructions. String reads by an instruction in the ROM are emulated item by item. All
//!   other string instructions end the VM.
//! - **CD-ROM buffers.** SeaBIOS asks for 36 bytes of INQUIRY in a buffer on its stack. vmd's drive
//!   writes 96 and so overwrites SeaBIOS' return address. The drive keeps to the buffer's length
//!   while only the firmware runs.
//! - **More items in fw_cfg** while only the firmware runs:
//!   - The number of processors (item 0x05). SeaBIOS starts all processors and waits for that many
//!     before it frees the code that they run.
//!   - 256 possible processors (item 0x0f). With fewer, SeaBIOS writes an MP table and an interrupt
//!     routing table, and reads the local APIC for them, where vmd has no memory; OpenBSD's build
//!     writes neither.
//!   - SMBIOS tables, which SeaBIOS then does not make itself. They are those of OpenBSD's build
//!     ([`smbios`]), so that a guest sees the same tables as on vmd.
//!   - `etc/sercon-port`: the screen is the serial port. OpenBSD's build has SGABIOS for that.
//! - **RSDP** (8.0). SeaBIOS moves the EBDA, in which vmd puts the RSDP, and leaves the RSDP
//!   behind. QEMU's loader script has it copy the RSDP to the next place that guests search, below
//!   1 MiB.

use devices::{
    bus::{Direction, PortAccess},
    legacy::fw_cfg::{self, FwCfg},
};

use super::smbios;

/// Configuration address of the host bridge's subsystem register (bus 0, device 0, function 0,
/// offset 0x2c).
const HOST_BRIDGE_SUBSYSTEM: u32 = 0x8000_002c;
/// QEMU's subsystem: vendor Red Hat (Qumranet), ID 0x1100.
const QEMU: u32 = 0x1100_1af4;

/// Offset of the interrupt line register in configuration space.
const INTERRUPT_LINE: u32 = 0x3c;
/// fw_cfg's item for the number of processors, 16 bits.
const CPUS: u16 = 0x05;
/// fw_cfg's item for the number of possible processors, 16 bits.
const MAX_CPUS: u16 = 0x0f;
/// Smallest number of possible processors for which SeaBIOS writes neither MP table nor interrupt
/// routing table.
const TOO_MANY_CPUS: u16 = 256;
/// First port of COM1.
const SERIAL_PORT: u16 = 0x3f8;

/// State of the concessions to a firmware that is not OpenBSD's.
#[derive(Debug)]
pub(crate) struct StockFirmware {
    /// Last value written to 0xcf8.
    config_address: u32,
    /// Only the firmware has run so far.
    alone: bool,
}

impl StockFirmware {
    /// The concessions at power-on of a VM with `memory` bytes and `cpus` vCPUs. Adds to `fw_cfg`
    /// what vmd's lacks; `has_acpi` tells whether it has the RSDP.
    pub(crate) fn new(fw_cfg: &mut FwCfg, memory: u64, cpus: u8, has_acpi: bool) -> Self {
        let tables = smbios::Tables::new(memory);
        fw_cfg.add_item(CPUS, u16::from(cpus).to_le_bytes().to_vec());
        fw_cfg.add_item(MAX_CPUS, TOO_MANY_CPUS.to_le_bytes().to_vec());
        fw_cfg.add_file("etc/smbios/smbios-anchor", tables.anchor());
        fw_cfg.add_file("etc/smbios/smbios-tables", tables.into_bytes());
        fw_cfg.add_file("etc/sercon-port", SERIAL_PORT.to_le_bytes().to_vec());
        if has_acpi {
            fw_cfg.add_file("etc/table-loader", copy_below_1_mib(fw_cfg::RSDP_FILE));
        }
        Self::at_power_on()
    }

    const fn at_power_on() -> Self {
        Self { config_address: 0, alone: true }
    }

    /// Ends the concessions that last only while nothing but the firmware runs.
    pub(crate) const fn end(&mut self) {
        self.alone = false;
    }

    /// Answers an access by the instruction at linear address `rip` if it needs a concession.
    /// Returns whether it did.
    pub(crate) fn access(&mut self, access: &mut PortAccess, rip: u64) -> bool {
        match (access.port, access.direction) {
            (0xcf8, Direction::Out) => {
                self.config_address = access.merge_into(self.config_address);
                false
            }
            (0xcfc..=0xcff, Direction::In) if self.config_address == HOST_BRIDGE_SUBSYSTEM && in_rom(rip) => {
                access.answer(QEMU >> (8 * (access.port - 0xcfc)));
                true
            }
            (0xcfc, Direction::Out) => self.alone && self.config_address & 0xfc == INTERRUPT_LINE,
            _ => false,
        }
    }

    /// Whether a string instruction at `rip` that accesses `port` is emulated, item by item.
    pub(crate) const fn allows_string_io(port: u16, direction: Direction, rip: u64) -> bool {
        port == fw_cfg::DATA && matches!(direction, Direction::In) && in_rom(rip)
    }
}

/// Whether an exit at linear address `rip` shows that code other than the firmware runs.
///
/// SeaBIOS runs in its ROM (0xc0000 to 1 MiB, and at 4 GiB) and, during initialisation, at the end
/// of low memory. A boot loader runs below the ROM, a kernel that is entered without one in the
/// upper half of the address space.
pub(crate) const fn has_left_firmware(rip: u64) -> bool {
    rip < 0xc_0000 || rip >> 63 != 0
}

/// Loader script that has SeaBIOS copy `file` of fw_cfg into its segment below 1 MiB.
fn copy_below_1_mib(file: &str) -> Vec<u8> {
    // One entry: "allocate", the file's name in 56 bytes, an alignment of 16, "below 1 MiB"; 128
    // bytes in all.
    const ALLOCATE: u32 = 1;
    const BELOW_1_MIB: u8 = 2;
    let mut entry = ALLOCATE.to_le_bytes().to_vec();
    entry.extend(file.bytes());
    entry.resize(60, 0);
    entry.extend(16u32.to_le_bytes());
    entry.push(BELOW_1_MIB);
    entry.resize(128, 0);
    entry
}

/// Whether `rip` is in the firmware's ROM: in its copy below 1 MiB, or in the last 256 KiB below 4
/// GiB.
const fn in_rom(rip: u64) -> bool {
    matches!(rip, 0xc_0000..0x10_0000 | 0xfffc_0000..0x1_0000_0000)
}

#[cfg(test)]
mod tests {
    use devices::bus::Width;

    use super::*;

    fn read(firmware: &mut StockFirmware, port: u16, width: Width, rip: u64) -> Option<u32> {
        let mut access = PortAccess::input(port, width, 0);
        firmware.access(&mut access, rip).then_some(access.eax)
    }

    #[test]
    fn only_the_rom_sees_qemus_subsystem() {
        let mut firmware = StockFirmware::at_power_on();
        assert!(
            !firmware.access(&mut PortAccess::output(0xcf8, Width::Dword, HOST_BRIDGE_SUBSYSTEM), 0xf_0000)
        );
        assert_eq!(read(&mut firmware, 0xcfc, Width::Word, 0xf_1234), Some(0x1af4));
        assert_eq!(read(&mut firmware, 0xcfe, Width::Word, 0xffff_1234), Some(0x1100));
        assert_eq!(read(&mut firmware, 0xcfc, Width::Dword, 0xe_0000), Some(0x1100_1af4));
        for rip in [0x7c00, 0x10_0000, 0xffff_ffff_8100_0000, 0x1ffa_0000] {
            assert_eq!(read(&mut firmware, 0xcfc, Width::Word, rip), None, "{rip:#x}");
        }
    }

    #[test]
    fn interrupt_lines_are_protected_only_while_the_firmware_runs_alone() {
        let mut firmware = StockFirmware::at_power_on();
        let write = |firmware: &mut StockFirmware, address| {
            firmware.access(&mut PortAccess::output(0xcf8, Width::Dword, address), 0x1ffa_0000);
            firmware.access(&mut PortAccess::output(0xcfc, Width::Byte, 0xff), 0x1ffa_0000)
        };
        assert!(write(&mut firmware, 0x8000_083c));
        assert!(!write(&mut firmware, 0x8000_0804));
        firmware.end();
        assert!(!write(&mut firmware, 0x8000_083c));
    }

    #[test]
    fn only_the_rom_may_read_strings_and_only_of_fw_cfg() {
        let allowed = StockFirmware::allows_string_io;
        assert!(allowed(fw_cfg::DATA, Direction::In, 0xe_ba67));
        assert!(!allowed(fw_cfg::DATA, Direction::In, 0x7c00));
        assert!(!allowed(fw_cfg::DATA, Direction::Out, 0xe_ba67));
        assert!(!allowed(0x1f0, Direction::In, 0xe_ba67));
    }

    #[test]
    fn other_registers_are_vmds_for_the_rom_too() {
        let mut firmware = StockFirmware::at_power_on();
        for address in [0x8000_0000, 0x8000_0028, 0x8000_082c, 0x2c] {
            firmware.access(&mut PortAccess::output(0xcf8, Width::Dword, address), 0xf_0000);
            assert_eq!(read(&mut firmware, 0xcfc, Width::Word, 0xf_0000), None, "{address:#x}");
        }
    }

    #[test]
    fn a_loader_or_kernel_ends_the_firmware_and_its_own_places_do_not() {
        for (rip, left) in [
            (0xf_fff0, false),
            (0x1ffa_0000, false),
            (0xffff_1234, false),
            (0xe_9000, false),
            (0x7c00, true),
            (0x8_0000, true),
            (0xffff_ffff_8100_0000, true),
        ] {
            assert_eq!(has_left_firmware(rip), left, "{rip:#x}");
        }
    }
}
