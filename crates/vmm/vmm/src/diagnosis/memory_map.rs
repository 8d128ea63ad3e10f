//! Memory map of a PC: the devices at addresses where a vmd VM has none.

/// A range of physical addresses at which PCs have a device that a vmd VM lacks.
#[derive(Debug, PartialEq, Eq)]
pub struct PcRange {
    start: u64,
    end: u64,
    /// The device.
    pub name: &'static str,
    /// How to keep a guest from accessing it.
    pub advice: &'static str,
}

const fn range(start: u64, end: u64, name: &'static str, advice: &'static str) -> PcRange {
    PcRange { start, end, name, advice }
}

/// Narrow ranges before the wide ones that contain them.
const PC_RANGES: &[PcRange] = &[
    range(
        0xa_0000,
        0xc_0000,
        "VGA frame buffer",
        "vmd has memory there but no VGA: use the serial console (`console=ttyS0`)",
    ),
    range(
        0xfec0_0000,
        0xfec0_1000,
        "I/O APIC",
        "vmd has none before 8.0: the guest must heed that no MADT or MP table names one (`noapic`)",
    ),
    range(
        0xfec1_0000,
        0xfec2_0000,
        "AMD FCH (SPI controller)",
        "leave the driver out: it must not touch the SPI controller without finding its PCI function",
    ),
    range(0xfed0_0000, 0xfed0_0400, "HPET", "vmd has none: do not force it (`hpet=disable`)"),
    range(
        0xfed1_0000,
        0xfed2_0000,
        "Intel MCH and root complex registers",
        "leave drivers for Intel chipsets out of the kernel",
    ),
    range(0xfed4_0000, 0xfed4_5000, "TPM", "vmd has none: leave tpm_tis out, or boot with `tpm_tis.force=0`"),
    range(
        0xfed8_0000,
        0xfed9_0000,
        "AMD FCH's power management registers (ACPI MMIO)",
        "Linux 6.16 and later read them on AMD CPUs without asking whether there is an FCH: boot with \
         `initcall_blacklist=print_s5_reset_status_mmio`, or use a kernel configured for vmd",
    ),
    range(0xfed9_0000, 0xfeda_0000, "Intel VT-d remapping registers", "boot with `intel_iommu=off`"),
    range(
        0xfee0_0000,
        0xfee0_1000,
        "local APIC",
        "vmd has none before 8.0 and CPUID says so: boot with `nolapic`",
    ),
    range(
        0xfeb8_0000,
        0xfec0_0000,
        "memory BARs of PCI devices",
        "vmd's devices have no memory BARs: the guest uses an address that no device has",
    ),
    range(
        0xe000_0000,
        0xf000_0000,
        "PCI configuration space (MMCONFIG)",
        "vmd has configuration mechanism 1 only: boot with `pci=nommconf`",
    ),
    range(
        0xf000_0000,
        0xffc0_0000,
        "PCI memory window or chipset",
        "vmd's devices have no memory BARs: leave drivers for this hardware out of the kernel",
    ),
];

/// The narrowest known range that contains `address`.
pub(crate) fn find(address: u64) -> Option<&'static PcRange> {
    PC_RANGES.iter().find(|range| (range.start..range.end).contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ranges_are_named() {
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
    fn narrow_ranges_come_before_the_wide_ones_that_contain_them() {
        for (i, narrow) in PC_RANGES.iter().enumerate() {
            assert!(narrow.start < narrow.end);
            for wide in &PC_RANGES[..i] {
                let hides = wide.start <= narrow.start && narrow.end <= wide.end;
                assert!(!hides, "{} hides {}", wide.name, narrow.name);
            }
        }
    }
}
