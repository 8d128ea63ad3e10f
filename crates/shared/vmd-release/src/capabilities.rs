//! What each generation of vmd(8) and vmm(4) shows to a guest: one value with a named field for
//! every difference between generations.

use serde::{Deserialize, Serialize};

use crate::Generation;

/// Functions whose INTx goes to the line in their guest-writable interrupt line register
/// (configuration byte 0x3c). All others keep the line that vmd assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineRegister {
    /// All functions (`pci_handle_io` in pci.c, 7.7).
    All,
    /// The entropy device, whose queue the VM process serves (virtio.c, 7.8).
    Rng,
    /// All functions whose interrupt pin register (byte 0x3d) says INTA (`pci_assert_irq` in pci.c
    /// 1.42, 8.0).
    AllWithPin,
}

/// Answers to what no available source tells about 7.9. The default is 7.8's behaviour, or 8.0's
/// where 7.8's own is excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsettled {
    /// The 8253 is 8.0's instead of 7.8's: i8253.c changed from 1.44 (7.8) to 1.50 (8.0), and a fix
    /// of the timer went in on 2026-04-06, before 7.9 (plus79.html).
    pub pit_corrected: bool,
    /// The virtio feature words 2 and 3 read as ones (a draft of 79.html) instead of zero
    /// (`virtio_io_cfg` in virtio.c, 8.0).
    pub feature_words_read_ones: bool,
}

/// The differences between the generations that a guest can observe. Made by
/// [`Generation::capabilities`] and [`Generation::capabilities_with`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent property with its own source")]
pub struct Capabilities {
    /// Largest number of vCPUs per VM: `VMM_MAX_VCPUS_PER_VM` in vmm.h from 8.0 on, 1 before.
    pub max_vcpus: u8,
    /// Size in bytes of the firmware area below 4 GiB (`create_memory_map` in x86_vm.c;
    /// PCI_MMIO_BAR_END in pci.h).
    pub firmware_room: u64,
    /// LAPICs, an IOAPIC and vmm's own CPU topology (lapic.c, i82093aa.c of September 2026).
    pub apic: bool,
    /// ACPI tables and the power management block (acpi.c 1.4).
    pub acpi: bool,
    /// End of conventional memory, the first reserved address (`LOWMEM_KB`; `create_memory_map` in
    /// x86_vm.c 1.27): 576 KiB from 7.9 on, 640 KiB before.
    pub low_memory_end: u64,
    /// KVM's CPUID leaf 0x40000100 beside vmm's own (`vmm_handle_cpuid` in vmm_machdep.c).
    pub kvm_leaf: bool,
    /// The clock bits of leaves 0x40000001 and 0x40000101 are set only if the host knows its TSC's
    /// rate (`vmm_handle_cpuid` in vmm_machdep.c, 8.0; plus79.html, 2026-02-08).
    pub clock_bits_need_tsc_rate: bool,
    /// RDMSR of SYSCFG (0xc0010010) reads 0 on AMD instead of raising #GP (`svm_handle_msr` in
    /// vmm_machdep.c; plus79.html, 2026-01-14).
    pub syscfg_reads_zero: bool,
    /// A hypercall at CPL 0 with RAX 0x1234 ends the VM instead of raising #UD (`vmx_handle_exit`,
    /// `svm_handle_exit` in vmm_machdep.c, 8.0).
    pub hypercall_ends_vm: bool,
    /// vmm saves PKRU for its guests, and shows protection keys (`vmm_handle_cpuid` in
    /// vmm_machdep.c, 7.8).
    pub protection_keys: bool,
    /// The paravirtual clock shows the host's CLOCK_MONOTONIC, and CLOCK_REALTIME otherwise
    /// (`vmm_update_pvclock` in vmm_machdep.c, 7.8).
    pub pvclock_monotonic: bool,
    /// The MSR that sets the address of the paravirtual wall clock (`vmm_pv_wall_clock` in
    /// vmm_machdep.c, 7.8).
    pub pvclock_wall_clock: bool,
    /// The 8253 replaces its input latch and pulses IRQ 0 from channel 0 only (i8253.c, 8.0).
    pub pit_corrected: bool,
    /// The periodic interrupt of the mc146818 follows its registers (mc146818.c, 8.0).
    pub rtc_corrected: bool,
    /// The 8250's interrupts follow IER and its line is lowered (ns8250.c, 8.0).
    pub uart_corrected: bool,
    /// Narrow writes to PCI configuration space reach the addressed bytes, and BARs stay aligned
    /// (pci.c, 8.0).
    pub pci_narrow_writes: bool,
    /// The first empty PCI slot reads as zeroes instead of ones (pci.c, 7.7).
    pub pci_first_empty_slot_reads_zero: bool,
    /// Of overlapping I/O BARs the last slot claims the port instead of the first (pci.c, 7.7).
    pub pci_last_bar_wins: bool,
    /// Functions whose INTx goes to the line in their interrupt line register.
    pub line_register: LineRegister,
    /// Virtio devices have MSI and MSI-X (pci.c of September 2026).
    pub msi: bool,
    /// virtio 1.x in I/O BARs instead of virtio 0.9 (virtio.c, 7.8).
    pub virtio_1: bool,
    /// The rings of a virtqueue can be anywhere; before, their distance from the table has 32 bits
    /// (`virtio_update_qa` in virtio.c).
    pub virtio_split_rings: bool,
    /// A request for more than 64 KiB of entropy is ignored; before, it ends the VM
    /// (`viornd_notifyq` in virtio.c).
    pub rng_ignores_large_requests: bool,
    /// Unknown registers of rng, vioblk and vionet read as zero where they read as ones before
    /// (`vioblk_read`, `vionet_read`, `virtio_io_notify`, 8.0).
    pub unknown_registers_read_zero: bool,
    /// The virtio feature words 2 and 3 of every device read as ones; see [`Unsettled`].
    pub feature_words_read_ones: bool,
    /// vioblk accepts queue number 1, which does not exist (`vioblk_notifyq` in vioblk.c, 7.8).
    pub blk_queue_off_by_one: bool,
    /// vioscsi has a process of its own (7.9).
    pub scsi_own_process: bool,
    /// vionet offers checksum offload for sent frames (80.html).
    pub net_checksum_offload: bool,
    /// Unknown registers of vionet read as ones instead of zero (`golden/pci/k612.v1cfg.net.txt`,
    /// 7.8).
    pub net_unknown_registers_read_ones: bool,
    /// vmd's VM process crashes when a vmmci timer fires (`vmmci_timeout` in virtio.c, 7.8).
    pub vmmci_timeout_crashes: bool,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const V7_7: Capabilities = Capabilities {
    max_vcpus: 1,
    firmware_room: 2 * MIB,
    apic: false,
    acpi: false,
    low_memory_end: 640 * KIB,
    kvm_leaf: false,
    clock_bits_need_tsc_rate: false,
    syscfg_reads_zero: false,
    hypercall_ends_vm: false,
    protection_keys: false,
    pvclock_monotonic: false,
    pvclock_wall_clock: false,
    pit_corrected: false,
    rtc_corrected: false,
    uart_corrected: false,
    pci_narrow_writes: false,
    pci_first_empty_slot_reads_zero: true,
    pci_last_bar_wins: true,
    line_register: LineRegister::All,
    msi: false,
    virtio_1: false,
    virtio_split_rings: false,
    rng_ignores_large_requests: false,
    unknown_registers_read_zero: false,
    feature_words_read_ones: false,
    blk_queue_off_by_one: false,
    scsi_own_process: false,
    net_checksum_offload: false,
    net_unknown_registers_read_ones: false,
    vmmci_timeout_crashes: false,
};

const V7_8: Capabilities = Capabilities {
    firmware_room: 4 * MIB,
    kvm_leaf: true,
    protection_keys: true,
    pvclock_monotonic: true,
    pvclock_wall_clock: true,
    pci_first_empty_slot_reads_zero: false,
    pci_last_bar_wins: false,
    line_register: LineRegister::Rng,
    virtio_1: true,
    blk_queue_off_by_one: true,
    net_unknown_registers_read_ones: true,
    vmmci_timeout_crashes: true,
    ..V7_7
};

const V7_9: Capabilities = Capabilities {
    low_memory_end: 576 * KIB,
    clock_bits_need_tsc_rate: true,
    syscfg_reads_zero: true,
    blk_queue_off_by_one: false,
    scsi_own_process: true,
    net_unknown_registers_read_ones: false,
    vmmci_timeout_crashes: false,
    ..V7_8
};

const V8_0: Capabilities = Capabilities {
    max_vcpus: 64,
    apic: true,
    acpi: true,
    hypercall_ends_vm: true,
    pit_corrected: true,
    rtc_corrected: true,
    uart_corrected: true,
    pci_narrow_writes: true,
    line_register: LineRegister::AllWithPin,
    msi: true,
    virtio_split_rings: true,
    rng_ignores_large_requests: true,
    unknown_registers_read_zero: true,
    net_checksum_offload: true,
    ..V7_9
};

impl Generation {
    /// What this generation shows to a guest, with the default answers to what is unsettled.
    pub const fn capabilities(self) -> Capabilities {
        match self {
            Self::V7_7 => V7_7,
            Self::V7_8 => V7_8,
            Self::V7_9 => V7_9,
            Self::V8_0 => V8_0,
        }
    }

    /// What this generation shows to a guest, with the given answers to what is unsettled. They
    /// change 7.9 only.
    pub const fn capabilities_with(self, unsettled: Unsettled) -> Capabilities {
        let Unsettled { pit_corrected, feature_words_read_ones } = unsettled;
        match self {
            Self::V7_9 => Capabilities { pit_corrected, feature_words_read_ones, ..V7_9 },
            _ => self.capabilities(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsettled_answers_change_7_9_only() {
        let unsettled = Unsettled { pit_corrected: true, feature_words_read_ones: true };
        for generation in [Generation::V7_7, Generation::V7_8, Generation::V8_0] {
            assert_eq!(generation.capabilities_with(unsettled), generation.capabilities());
        }
        let changed = Generation::V7_9.capabilities_with(unsettled);
        assert!(changed.pit_corrected && changed.feature_words_read_ones);
        assert_eq!(Generation::V7_9.capabilities_with(Unsettled::default()), V7_9);
    }
}
