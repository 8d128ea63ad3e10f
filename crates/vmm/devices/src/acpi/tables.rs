//! ACPI tables that vmd writes into guest memory before the firmware runs (acpi.c and acpi.h of
//! September 2026).
//!
//! The RSDP is at 0x9d000, to which the BIOS data area's EBDA pointer leads; the other tables are
//! in [`super::AREA`]. vmd also passes the RSDP to the firmware through fw_cfg
//! (`fw_cfg_add_acpi_rsdp`; the available sources do not name the file). The host needs the DSDT as
//! a file (`/etc/firmware/vmm.dsdt`): without it vmd writes no FADT, and the guest has no
//! power-off.

use acpi_tables::sdt::Sdt;

use super::{AREA, PM_TIMER, PM1A_CONTROL, PM1A_EVENT, dsdt};
use crate::irqchip::{ioapic, lapic};

/// Guest physical address of the RSDP.
pub const RSDP: u64 = 0x9_d000;
/// Address of the EBDA segment in the BIOS data area; vmd points it at [`RSDP`].
pub const EBDA_POINTER: u64 = 0x40e;

const XSDT: u64 = AREA;
const MADT: u64 = AREA + 0x1000;
const FADT: u64 = AREA + 0x2000;
const DSDT: u64 = AREA + 0x3000;
const FACS: u64 = AREA + 0x4000;

const OEM_ID: [u8; 6] = *b"VMD   ";
const OEM_REVISION: u32 = 1;
/// Offset of a table header's creator: vmd's is `VMD `, revision 1.
const CREATOR: usize = 28;
/// The SCI's line. vmd never raises it as an SCI; the fifth PCI device shares it.
const SCI: u16 = 9;

/// Bytes to be written to guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Guest-physical address.
    pub address: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// All tables of a VM with `vcpus` vCPUs, and the pointer in the BIOS data area.
pub fn tables(vcpus: u8) -> Vec<Blob> {
    let blob = |address, bytes: &[u8]| Blob { address, bytes: bytes.to_vec() };
    let mut definition = header(*b"DSDT", 36, 2, *b"VMD DSDT");
    dsdt::append(&mut definition);
    definition.update_checksum();
    vec![
        blob(DSDT, definition.as_slice()),
        blob(FACS, &facs()),
        blob(FADT, fadt().as_slice()),
        blob(MADT, madt(vcpus).as_slice()),
        blob(XSDT, xsdt().as_slice()),
        blob(RSDP, &rsdp()),
        blob(EBDA_POINTER, &((RSDP >> 4) as u16).to_le_bytes()),
    ]
}

/// The RSDP; the firmware also gets it through fw_cfg.
pub fn rsdp() -> [u8; 36] {
    let mut table = [0; 36];
    table[..8].copy_from_slice(b"RSD PTR ");
    table[9..15].copy_from_slice(&OEM_ID);
    table[15] = 2;
    table[20..24].copy_from_slice(&36u32.to_le_bytes());
    table[24..32].copy_from_slice(&XSDT.to_le_bytes());
    table[8] = checksum(&table[..20]);
    table[32] = checksum(&table);
    table
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn header(signature: [u8; 4], length: u32, revision: u8, table_id: [u8; 8]) -> Sdt {
    let mut table = Sdt::new(signature, length, revision, OEM_ID, table_id, OEM_REVISION);
    table.write_bytes(CREATOR, b"VMD ");
    table.write_u32(CREATOR + 4, 1);
    table
}

/// The FACS has a header of its own and no checksum.
fn facs() -> [u8; 64] {
    let mut table = [0; 64];
    table[..4].copy_from_slice(b"FACS");
    table[4..8].copy_from_slice(&64u32.to_le_bytes());
    table[32] = 1;
    table
}

/// A generic address in I/O space.
fn io_register(table: &mut Sdt, offset: usize, bits: u8, access: u8, port: u16) {
    table.write_bytes(offset, &[1, bits, 0, access]);
    table.write_u64(offset + 4, port.into());
}

fn fadt() -> Sdt {
    let mut table = header(*b"FACP", 268, 6, *b"VMD FADT");
    // Only the 32-bit pointers are filled in.
    table.write_u32(36, FACS as u32);
    table.write_u32(40, DSDT as u32);
    // Preferred profile: desktop.
    table.write_u8(45, 1);
    table.write_u16(46, SCI);
    table.write_u32(56, PM1A_EVENT.into());
    table.write_u32(64, PM1A_CONTROL.into());
    table.write_u32(76, PM_TIMER.into());
    table.write_u8(88, 4);
    table.write_u8(89, 2);
    table.write_u8(91, 4);
    // Latencies of C2 and C3 in µs; 100 and 1000 are the largest that still announce the states.
    table.write_u16(96, 100);
    table.write_u16(98, 1000);
    // Boot architecture flags: legacy devices. 8042, VGA and MSI are not mentioned.
    table.write_u16(109, 1);
    // Minor version of the table.
    table.write_u8(131, 5);
    io_register(&mut table, 148, 32, 3, PM1A_EVENT);
    io_register(&mut table, 172, 16, 2, PM1A_CONTROL);
    io_register(&mut table, 208, 32, 3, PM_TIMER);
    table
}

fn madt(vcpus: u8) -> Sdt {
    let mut table = header(*b"APIC", 44, 1, *b"VMD MADT");
    table.write_u32(36, lapic::BASE as u32);
    // PCAT_COMPAT: the VM also has 8259s.
    table.write_u32(40, 1);
    // The IOAPIC first, then a LAPIC for each vCPU. No overrides: ISA line n is input n, the
    // timer's line included.
    table.append_slice(&[1, 12, vcpus + 1, 0]);
    table.append_slice(&(ioapic::BASE as u32).to_le_bytes());
    table.append_slice(&0u32.to_le_bytes());
    for vcpu in 0..vcpus {
        table.append_slice(&[0, 8, vcpu, vcpu, 1, 0, 0, 0]);
    }
    table
}

fn xsdt() -> Sdt {
    let mut table = header(*b"XSDT", 36, 1, *b"VMD XSDT");
    for address in [FADT, MADT] {
        table.append_slice(&address.to_le_bytes());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(signature: &[u8]) -> Blob {
        tables(2).into_iter().find(|blob| blob.bytes.starts_with(signature)).unwrap()
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn pointer(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_whole_and_the_pointers_lead_to_all_of_them() {
        let all = tables(2);
        let ebda = all.iter().find(|blob| blob.address == EBDA_POINTER).unwrap();
        assert_eq!(ebda.bytes, [0x00, 0x9d]);
        let at = |address| &all.iter().find(|blob| blob.address == address).unwrap().bytes;
        let rsdp = at(0x9d00 << 4);
        assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
        let xsdt = at(pointer(rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        assert_eq!(xsdt.len(), 36 + 16);
        let fadt = at(pointer(xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(&at(pointer(xsdt, 44))[..4], b"APIC");
        assert_eq!(&at(pointer(fadt, 36) & 0xffff_ffff)[..4], b"FACS");
        let dsdt = at(pointer(fadt, 40) & 0xffff_ffff);
        assert_eq!(&dsdt[..4], b"DSDT");
        for blob in all.iter().filter(|blob| blob.address >= AREA) {
            let length = u32::from_le_bytes(blob.bytes[4..8].try_into().unwrap());
            assert_eq!(length as usize, blob.bytes.len());
            assert!(blob.bytes.len() <= 0x1000, "the tables are a page apart");
            if !blob.bytes.starts_with(b"FACS") {
                assert_eq!(sum(&blob.bytes), 0);
                assert_eq!(&blob.bytes[10..16], b"VMD   ");
            }
        }
    }

    #[test]
    fn the_fadt_names_the_registers_twice_and_promises_nothing_else() {
        let fadt = table(b"FACP").bytes;
        assert_eq!((fadt.len(), fadt[8], fadt[131]), (268, 6, 5));
        assert_eq!(fadt[112..116], [0; 4], "no flags");
        assert_eq!(fadt[116..128], [0; 12], "no reset register");
        assert_eq!(pointer(&fadt, 132), 0);
        assert_eq!(pointer(&fadt, 140), 0);
        for (offset, bits, access, port) in [(148, 32, 3, 0xb000), (172, 16, 2, 0xb008), (208, 32, 3, 0xb00c)]
        {
            assert_eq!(fadt[offset..offset + 4], [1, bits, 0, access]);
            assert_eq!(pointer(&fadt, offset + 4), port);
        }
    }

    #[test]
    fn the_dsdt_has_s5_and_a_route_for_each_slot() {
        let dsdt = table(b"DSDT").bytes;
        let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(b"_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"));
        assert!(has(b"\x0c\xff\xff\x01\x00\x00\x00\x0a\x03"), "slot 1, INTA, fixed, line 3");
        assert!(has(b"\x0c\xff\xff\x0a\x00\x00\x00\x0a\x0f"), "slot 10, line 15");
    }

    #[test]
    fn the_madt_has_the_ioapic_and_every_vcpu() {
        let madt = table(b"APIC").bytes;
        assert_eq!(madt[36..44], [0, 0, 0xe0, 0xfe, 1, 0, 0, 0]);
        assert_eq!(madt[44..56], [1, 12, 3, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(madt[56..], [0, 8, 0, 0, 1, 0, 0, 0, 0, 8, 1, 1, 1, 0, 0, 0]);
    }
}
