//! The devices that answer a guest's accesses, as statistics name them.

/// A device that answers port or memory accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceId {
    /// The concessions to stock firmware, which answer before the device would.
    StockFirmware,
    /// ACPI power management.
    Pm,
    /// The two 8259s.
    Pic,
    /// The 8253.
    Pit,
    /// The MC146818.
    Rtc,
    /// COM1.
    Uart,
    /// QEMU's firmware configuration device.
    FwCfg,
    /// PCI configuration space.
    Pci,
    /// The I/O BARs of virtio devices and vmmci.
    Virtio,
    /// The IOAPIC.
    IoApic,
    /// The local APICs.
    Lapic,
    /// The memory BARs: tables of MSI-X vectors.
    PciMemory,
    /// No device: reads answer all ones, writes do nothing.
    Unclaimed,
}

impl DeviceId {
    /// All of them, each at the index that it is as `usize`.
    pub(crate) const ALL: [Self; 13] = [
        Self::StockFirmware,
        Self::Pm,
        Self::Pic,
        Self::Pit,
        Self::Rtc,
        Self::Uart,
        Self::FwCfg,
        Self::Pci,
        Self::Virtio,
        Self::IoApic,
        Self::Lapic,
        Self::PciMemory,
        Self::Unclaimed,
    ];

    /// The device's name in statistics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::StockFirmware => "concession to stock firmware",
            Self::Pm => "pm",
            Self::Pic => "pic",
            Self::Pit => "pit",
            Self::Rtc => "rtc",
            Self::Uart => "uart",
            Self::FwCfg => "fw_cfg",
            Self::Pci => "pci",
            Self::Virtio => "virtio",
            Self::IoApic => "ioapic",
            Self::Lapic => "lapic",
            Self::PciMemory => "pci memory",
            Self::Unclaimed => "nobody",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_its_own_index() {
        for (index, device) in DeviceId::ALL.into_iter().enumerate() {
            assert_eq!(device as usize, index);
        }
    }
}
