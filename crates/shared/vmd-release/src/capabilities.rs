//! What each generation of vmd(8) and vmm(4) shows to a guest: one value with a named field for
//! every difference between generations.

use crate::Generation;

/// When vmm(4) announces KVM's CPUID leaf 0x40000100 beside its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmLeaf {
    /// Never.
    Absent,
    /// Always.
    Present,
    /// If the host knows its TSC's frequency.
    WithTscFrequency,
}

/// The differences between the generations that a guest can observe. Made by
/// [`Generation::capabilities`] only.
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
    /// KVM's CPUID leaf (`vmm_handle_cpuid` in vmm_machdep.c).
    pub kvm_leaf: KvmLeaf,
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
    /// vioblk offers FLUSH (7.9).
    pub blk_flush: bool,
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

const MIB: u64 = 1 << 20;

const V7_7: Capabilities = Capabilities {
    max_vcpus: 1,
    firmware_room: 2 * MIB,
    apic: false,
    acpi: false,
    kvm_leaf: KvmLeaf::Absent,
    protection_keys: false,
    pvclock_monotonic: false,
    pvclock_wall_clock: false,
    pit_corrected: false,
    rtc_corrected: false,
    uart_corrected: false,
    pci_narrow_writes: false,
    pci_first_empty_slot_reads_zero: true,
    pci_last_bar_wins: true,
    msi: false,
    virtio_1: false,
    virtio_split_rings: false,
    rng_ignores_large_requests: false,
    blk_flush: false,
    blk_queue_off_by_one: false,
    scsi_own_process: false,
    net_checksum_offload: false,
    net_unknown_registers_read_ones: false,
    vmmci_timeout_crashes: false,
};

const V7_8: Capabilities = Capabilities {
    firmware_room: 4 * MIB,
    kvm_leaf: KvmLeaf::Present,
    protection_keys: true,
    pvclock_monotonic: true,
    pvclock_wall_clock: true,
    pci_first_empty_slot_reads_zero: false,
    pci_last_bar_wins: false,
    virtio_1: true,
    blk_queue_off_by_one: true,
    net_unknown_registers_read_ones: true,
    vmmci_timeout_crashes: true,
    ..V7_7
};

const V7_9: Capabilities = Capabilities {
    kvm_leaf: KvmLeaf::WithTscFrequency,
    blk_flush: true,
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
    pit_corrected: true,
    rtc_corrected: true,
    uart_corrected: true,
    pci_narrow_writes: true,
    msi: true,
    virtio_split_rings: true,
    rng_ignores_large_requests: true,
    net_checksum_offload: true,
    ..V7_9
};

impl Generation {
    /// What this generation shows to a guest.
    pub const fn capabilities(self) -> &'static Capabilities {
        match self {
            Self::V7_7 => &V7_7,
            Self::V7_8 => &V7_8,
            Self::V7_9 => &V7_9,
            Self::V8_0 => &V8_0,
        }
    }
}
