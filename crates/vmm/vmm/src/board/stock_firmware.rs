//! Every concession that lets Debian's stock SeaBIOS, which knows QEMU and not vmd, boot a guest here. OpenBSD's own
//! build needs none of them, and no guest sees any.
//!
//! - **The host bridge's subsystem.** SeaBIOS takes the machine for QEMU's, and then uses fw_cfg, the serial console
//!   and virtio disks, when the host bridge's subsystem is 1af4:1100; vmd's says 0b5d:0000, which OpenBSD's build
//!   knows. Reads of that register by an instruction in the ROM answer 1af4:1100. Reads from anywhere else, and so
//!   everything that a guest reads, answer what vmd's says.
//! - **Interrupt lines stay.** SeaBIOS routes interrupts for QEMU's chipsets only and writes rubbish into the interrupt
//!   line registers of functions on a bridge that it does not know, where vmd has put the right numbers; OpenBSD's
//!   build leaves them alone. Its writes are dropped until something else than the firmware runs.
//! - **String reads of fw_cfg's data port.** SeaBIOS looks for fw_cfg's signature with REP INSB before it knows of the
//!   DMA interface; OpenBSD's build reads byte by byte, since vmd cannot emulate string instructions. Such reads by an
//!   instruction in the ROM are answered item by item. From anywhere else they end the VM, as all others do.
//! - **The CD-ROM drive keeps to the firmware's buffers** until something else than the firmware runs. SeaBIOS asks for
//!   36 bytes of INQUIRY, onto its stack, and vmd's drive writes 96, and the firmware returns to nowhere.
//! - **fw_cfg has more to say** until something else than the firmware runs:
//!   - How many processors there are (item 0x05). SeaBIOS starts all of them and waits until so many have come, before it
//!     takes the code back that it starts them with.
//!   - 256 possible processors (item 0x0f). SeaBIOS writes an MP table and an interrupt routing table for machines
//!     with fewer, and on the way reads the local APIC, where vmd has no memory; OpenBSD's build writes neither.
//!   - SMBIOS tables, which SeaBIOS then does not make up itself: the ones that OpenBSD's build has ([`smbios`]), so
//!     that guests see the machine that they would see on vmd.
//!   - `etc/sercon-port`: the serial line is to be the screen. OpenBSD's build has SGABIOS for that.
//! - **The RSDP's place** (8.0). SeaBIOS moves the EBDA, where vmd's RSDP is found, and leaves it behind. Through
//!   QEMU's loader script it is asked to copy the RSDP to where guests look next, below 1 MiB.

use devices::{
    bus::{Direction, PortAccess},
    legacy::fw_cfg::{self, FwCfg},
};

use super::smbios;

/// Configuration address of the host bridge's subsystem register (bus 0, device 0, function 0, offset 0x2c).
const HOST_BRIDGE_SUBSYSTEM: u32 = 0x8000_002c;
/// Red Hat's (Qumranet's) vendor ID and QEMU's subsystem.
const QEMU: u32 = 0x1100_1af4;

/// Offset of the interrupt line register in configuration space.
const INTERRUPT_LINE: u32 = 0x3c;
/// fw_cfg's item that says how many processors there are, 16 bits.
const CPUS: u16 = 0x05;
/// fw_cfg's item that says how many processors there may be, 16 bits.
const MAX_CPUS: u16 = 0x0f;
/// The fewest possible processors with which SeaBIOS writes neither MP table nor interrupt routing table.
const TOO_MANY_CPUS: u16 = 256;
/// COM1.
const SERIAL_PORT: u16 = 0x3f8;

/// The concessions, for a machine whose firmware is not OpenBSD's.
#[derive(Debug)]
pub(crate) struct StockFirmware {
    /// What was last written to 0xcf8.
    config_address: u32,
    /// Nothing but the firmware has run yet.
    alone: bool,
}

impl StockFirmware {
    /// At power-on.
    pub(crate) const fn new() -> Self {
        Self { config_address: 0, alone: true }
    }

    /// Something else than the firmware runs now.
    pub(crate) const fn is_done(&mut self) {
        self.alone = false;
    }

    /// Tells the firmware of a machine with `memory` bytes and so many processors what vmd's fw_cfg does not;
    /// `has_acpi` if that has the RSDP.
    pub(crate) fn inform(fw_cfg: &mut FwCfg, memory: u64, cpus: u8, has_acpi: bool) {
        let tables = smbios::Tables::new(memory);
        fw_cfg.add_item(CPUS, u16::from(cpus).to_le_bytes().to_vec());
        fw_cfg.add_item(MAX_CPUS, TOO_MANY_CPUS.to_le_bytes().to_vec());
        fw_cfg.add_file("etc/smbios/smbios-anchor", tables.anchor());
        fw_cfg.add_file("etc/smbios/smbios-tables", tables.into_bytes());
        fw_cfg.add_file("etc/sercon-port", SERIAL_PORT.to_le_bytes().to_vec());
        if has_acpi {
            fw_cfg.add_file("etc/table-loader", copy_below_1_mib(fw_cfg::RSDP_FILE));
        }
    }

    /// Looks at an access by an instruction at linear address `rip`. Returns whether it has answered.
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

    /// Whether a string instruction at `rip` that accesses `port` is answered item by item.
    pub(crate) const fn allows_string_io(port: u16, direction: Direction, rip: u64) -> bool {
        port == fw_cfg::DATA && matches!(direction, Direction::In) && in_rom(rip)
    }
}

/// The loader script that makes SeaBIOS copy `file` of fw_cfg's into its segment below 1 MiB.
fn copy_below_1_mib(file: &str) -> Vec<u8> {
    // One entry: "allocate", the file's name in 56 bytes, an alignment of 16, "below 1 MiB"; 128 bytes in all.
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

/// Whether the instruction at `rip` is the firmware's: below 1 MiB where its copy ends, or in the last 256 KiB below
/// 4 GiB.
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
        let mut firmware = StockFirmware::new();
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
    fn interrupt_lines_are_kept_from_the_firmware_and_from_nobody_else() {
        let mut firmware = StockFirmware::new();
        let write = |firmware: &mut StockFirmware, address| {
            firmware.access(&mut PortAccess::output(0xcf8, Width::Dword, address), 0x1ffa_0000);
            firmware.access(&mut PortAccess::output(0xcfc, Width::Byte, 0xff), 0x1ffa_0000)
        };
        assert!(write(&mut firmware, 0x8000_083c));
        assert!(!write(&mut firmware, 0x8000_0804));
        firmware.is_done();
        assert!(!write(&mut firmware, 0x8000_083c));
    }

    #[test]
    fn only_the_rom_reads_strings_and_only_fw_cfgs() {
        let allowed = StockFirmware::allows_string_io;
        assert!(allowed(fw_cfg::DATA, Direction::In, 0xe_ba67));
        assert!(!allowed(fw_cfg::DATA, Direction::In, 0x7c00));
        assert!(!allowed(fw_cfg::DATA, Direction::Out, 0xe_ba67));
        assert!(!allowed(0x1f0, Direction::In, 0xe_ba67));
    }

    #[test]
    fn other_registers_are_vmds_for_the_rom_too() {
        let mut firmware = StockFirmware::new();
        for address in [0x8000_0000, 0x8000_0028, 0x8000_082c, 0x2c] {
            firmware.access(&mut PortAccess::output(0xcf8, Width::Dword, address), 0xf_0000);
            assert_eq!(read(&mut firmware, 0xcfc, Width::Word, 0xf_0000), None, "{address:#x}");
        }
    }
}
