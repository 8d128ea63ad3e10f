//! What lives where in a PC's physical address space, for diagnoses.

/// A range of addresses that PCs use for something that a vmd VM does not have.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    start: u64,
    end: u64,
    /// What is there.
    pub name: &'static str,
    /// What keeps a guest away from it.
    pub advice: &'static str,
}

const fn place(start: u64, end: u64, name: &'static str, advice: &'static str) -> Place {
    Place { start, end, name, advice }
}

/// Narrow ranges before the wide ones that contain them.
const PLACES: &[Place] = &[
    place(
        0xa_0000,
        0xc_0000,
        "VGA frame buffer",
        "vmd has memory there but no VGA: use the serial console (`console=ttyS0`)",
    ),
    place(
        0xfec0_0000,
        0xfec0_1000,
        "I/O APIC",
        "vmd has none before 8.0: the guest must heed that no MADT or MP table names one (`noapic`)",
    ),
    place(
        0xfec1_0000,
        0xfec2_0000,
        "AMD FCH (SPI controller)",
        "leave the driver out: it must not touch the SPI controller without finding its PCI function",
    ),
    place(0xfed0_0000, 0xfed0_0400, "HPET", "vmd has none: do not force it (`hpet=disable`)"),
    place(
        0xfed1_0000,
        0xfed2_0000,
        "Intel MCH and root complex registers",
        "leave drivers for Intel chipsets out of the kernel",
    ),
    place(0xfed4_0000, 0xfed4_5000, "TPM", "vmd has none: leave tpm_tis out, or boot with `tpm_tis.force=0`"),
    place(
        0xfed8_0000,
        0xfed9_0000,
        "AMD FCH's power management registers (ACPI MMIO)",
        "Linux 6.16 and later read them on AMD CPUs without asking whether there is an FCH: boot with \
         `initcall_blacklist=print_s5_reset_status_mmio`, or use a kernel configured for vmd",
    ),
    place(0xfed9_0000, 0xfeda_0000, "Intel VT-d remapping registers", "boot with `intel_iommu=off`"),
    place(
        0xfee0_0000,
        0xfee0_1000,
        "local APIC",
        "vmd has none before 8.0 and CPUID says so: boot with `nolapic`",
    ),
    place(
        0xfeb8_0000,
        0xfec0_0000,
        "memory BARs of PCI devices",
        "vmd's devices have no memory BARs: the guest uses an address that nothing gave it",
    ),
    place(
        0xe000_0000,
        0xf000_0000,
        "PCI configuration space (MMCONFIG)",
        "vmd has configuration mechanism 1 only: boot with `pci=nommconf`",
    ),
    place(
        0xf000_0000,
        0xffc0_0000,
        "PCI memory window or chipset",
        "vmd's devices have no memory BARs: leave drivers for this hardware out of the kernel",
    ),
];

/// The place at `address`.
pub(crate) fn find(address: u64) -> Option<&'static Place> {
    PLACES.iter().find(|place| (place.start..place.end).contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_places_are_named() {
        for (address, name) in [
            (0xfed8_0300, "AMD FCH"),
            (0xfed0_00f0, "HPET"),
            (0xfee0_0020, "local APIC"),
            (0xfec0_0010, "I/O APIC"),
            (0xfed4_0000, "TPM"),
            (0xb_8000, "VGA"),
            (0xf123_4567, "PCI memory window"),
        ] {
            assert!(find(address).unwrap().name.contains(name), "{address:#x}");
        }
        assert_eq!(find(0x4000_0000), None);
        assert_eq!(find(0xffff_fff0), None);
    }

    #[test]
    fn narrow_places_come_before_the_wide_ones_that_hold_them() {
        for (i, narrow) in PLACES.iter().enumerate() {
            assert!(narrow.start < narrow.end);
            for wide in &PLACES[..i] {
                let hides = wide.start <= narrow.start && narrow.end <= wide.end;
                assert!(!hides, "{} hides {}", wide.name, narrow.name);
            }
        }
    }
}
