//! Device types: virtio and PCI IDs, number and size of queues.

use std::fmt;

use virtio_bindings::virtio_ids;
use vmd_release::Capabilities;

use crate::pci::Identity;

/// Red Hat (Qumranet), the vendor of all virtio devices.
const VENDOR_QUMRANET: u16 = 0x1af4;
/// OpenBSD, vmd's subsystem vendor.
const VENDOR_OPENBSD: u16 = 0x0b5d;

/// A virtio device type of vmd (`virtio_init` in virtio.c). vmmci is not one: it has no queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceType {
    /// Entropy (`viornd`).
    Rng,
    /// A network interface (`vionet`).
    Net,
    /// A disk (`vioblk`).
    Blk,
    /// The CD-ROM (`vioscsi`).
    Scsi,
}

impl DeviceType {
    /// The virtio device ID, which vmd also uses as the PCI subsystem ID.
    pub const fn virtio_id(self) -> u16 {
        (match self {
            Self::Rng => virtio_ids::VIRTIO_ID_RNG,
            Self::Net => virtio_ids::VIRTIO_ID_NET,
            Self::Blk => virtio_ids::VIRTIO_ID_BLOCK,
            Self::Scsi => virtio_ids::VIRTIO_ID_SCSI,
        }) as u16
    }

    /// The PCI device ID: transitional up to 7.7, 0x1040 + the virtio device ID from 7.8 on
    /// (`golden/pci/k612.with-net.pci.txt`).
    pub const fn pci_device(self, capabilities: &Capabilities) -> u16 {
        if capabilities.virtio_1 {
            return 0x1040 + self.virtio_id();
        }
        match self {
            Self::Net => 0x1000,
            Self::Blk => 0x1001,
            Self::Scsi => 0x1004,
            Self::Rng => 0x1005,
        }
    }

    /// The identifying registers in configuration space. The class is mass storage (SCSI) for the
    /// disks and "other system peripheral" for rng and, unlike on other hypervisors, for net. The
    /// revision is 1 from 7.8 on (`golden/pci`) and 0 before.
    pub const fn identity(self, capabilities: &Capabilities) -> Identity {
        let (class, subclass) = match self {
            Self::Rng | Self::Net => (0x08, 0x80),
            Self::Blk | Self::Scsi => (0x01, 0x00),
        };
        Identity {
            vendor: VENDOR_QUMRANET,
            device: self.pci_device(capabilities),
            revision: capabilities.virtio_1 as u8,
            class,
            subclass,
            subsystem_vendor: VENDOR_OPENBSD,
            subsystem: self.virtio_id(),
        }
    }

    /// Number of queues.
    pub const fn queues(self) -> u16 {
        match self {
            Self::Rng | Self::Blk => 1,
            Self::Net => 2,
            Self::Scsi => 3,
        }
    }

    /// Number of entries of each queue (`VIO*_QUEUE_SIZE_DEFAULT` in virtio.h).
    pub const fn queue_size(self) -> u16 {
        match self {
            Self::Rng => 64,
            Self::Blk | Self::Scsi => 128,
            Self::Net => 256,
        }
    }

    /// Length in bytes of the device configuration that the capability announces from 7.8 on;
    /// `None` for a device without one.
    pub const fn config_length(self) -> Option<u32> {
        match self {
            Self::Rng => None,
            Self::Net => Some(8),
            Self::Blk => Some(24),
            Self::Scsi => Some(36),
        }
    }

    /// Whether the device runs in vmd's VM process instead of a process of its own. The CD-ROM has
    /// its own process from 7.9 on.
    ///
    /// The guest sees the difference: a device with its own process answers every IN, because the
    /// VM process waits for a reply and puts it into EAX (`virtio_pci_io` in virtio.c); a device in
    /// the VM process may leave EAX unchanged.
    pub const fn in_vm_process(self, capabilities: &Capabilities) -> bool {
        match self {
            Self::Rng => true,
            Self::Scsi => !capabilities.scsi_own_process,
            Self::Net | Self::Blk => false,
        }
    }
}

impl fmt::Display for DeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rng => "viornd",
            Self::Net => "vionet",
            Self::Blk => "vioblk",
            Self::Scsi => "vioscsi",
        })
    }
}
