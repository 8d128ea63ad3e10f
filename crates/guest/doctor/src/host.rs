//! Detection of the host: which generation of vmd the guest runs on.
//!
//! | | up to 7.7 | 7.8 | 7.9 | 8.0 |
//! |---|---|---|---|---|
//! | CPUID 0x40000000 | `OpenBSDVMM58` | the same | the same | the same |
//! | CPUID 0x40000100 | nothing | `KVMKVMKVM` | where the TSC's rate is known | as 7.9 |
//! | virtio | legacy | 1.x | 1.x, disks can be flushed | as 7.9 |
//! | local APIC, ACPI | no | no | no | yes |

use std::fmt;

use serde::Serialize;
use vmd_release::Generation;
use vmmci_protocol::{DEVICE_ID, VENDOR_ID};

use crate::System;

/// vmd's host bridge.
const HOST_BRIDGE: u16 = 0x0666;
/// The vendor of virtio devices.
const VIRTIO: u16 = 0x1af4;
/// Among the features of a virtio disk (virtio 1.2, 5.2.3).
const VIRTIO_BLK_F_FLUSH: usize = 9;
/// CPUID leaf 1, EDX.
const APIC: u32 = 1 << 9;

/// A function of the guest's PCI bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PciFunction {
    /// As `0000:00:03.0`.
    pub(crate) address: String,
    /// Vendor ID.
    pub(crate) vendor: u16,
    /// Device ID.
    pub(crate) device: u16,
    /// Subsystem ID.
    pub(crate) subsystem: u16,
    /// Revision ID.
    pub(crate) revision: u8,
    /// The bound driver.
    pub(crate) driver: Option<String>,
}

/// What kind of virtio device a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VirtioFunction {
    /// virtio's number of the kind: 1 network, 2 disk, 4 entropy, 8 SCSI.
    pub(crate) kind: u16,
    /// Whether it speaks virtio 0.9 and not 1.x.
    pub(crate) legacy: bool,
}

impl PciFunction {
    /// Returns all functions.
    pub(crate) fn all(system: &System) -> Vec<Self> {
        let directory = "sys/bus/pci/devices";
        let function = |address: String| {
            let path = format!("{directory}/{address}");
            let number = |name: &str| {
                let text = system.text(format!("{path}/{name}"))?;
                u16::from_str_radix(text.trim_start_matches("0x"), 16).ok()
            };
            Some(Self {
                vendor: number("vendor")?,
                device: number("device")?,
                subsystem: number("subsystem_device").unwrap_or(0),
                revision: number("revision").unwrap_or(0) as u8,
                driver: system.link(format!("{path}/driver")),
                address,
            })
        };
        system.names(directory).into_iter().filter_map(function).collect()
    }

    /// Which virtio device it is, if it is one (virtio 1.2, 4.1.2).
    pub(crate) fn virtio(&self) -> Option<VirtioFunction> {
        match (self.vendor, self.device) {
            (VIRTIO, 0x1000..=0x103f) => Some(VirtioFunction { kind: self.subsystem, legacy: true }),
            (VIRTIO, device @ 0x1040..=0x107f) => {
                Some(VirtioFunction { kind: device - 0x1040, legacy: false })
            }
            _ => None,
        }
    }
}

/// The host as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Host {
    /// The possible generations of vmd: one if known for sure, none if the host is not vmd.
    pub vmd: Vec<Generation>,
    /// Evidence.
    pub evidence: Vec<String>,
    /// The hypervisor's CPUID signature; none on bare metal.
    pub hypervisor: Option<String>,
    /// Whether the TSC is invariant.
    pub invariant_tsc: bool,
    /// Whether the processor is AMD's.
    pub amd: bool,
}

/// The twelve letters of EBX, ECX, EDX.
fn signature(system: &System, leaf: u32, order: [usize; 3]) -> String {
    let registers = system.cpuid(leaf);
    let bytes: Vec<u8> = order.iter().flat_map(|register| registers[*register].to_le_bytes()).collect();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
}

impl Host {
    /// Whether the host is vmd.
    pub fn is_vmd(&self) -> bool {
        !self.vmd.is_empty()
    }

    /// Whether every possible generation is at most this one.
    pub fn at_most(&self, generation: Generation) -> bool {
        self.vmd.last().is_some_and(|newest| *newest <= generation)
    }

    /// Whether every possible generation is at least this one.
    pub fn at_least(&self, generation: Generation) -> bool {
        self.vmd.first().is_some_and(|oldest| *oldest >= generation)
    }

    /// Whether the guest has ACPI and APICs.
    pub fn has_acpi(&self) -> bool {
        self.at_least(Generation::V8_0)
    }

    /// Detects the host.
    pub fn recognise(system: &System) -> Self {
        let hypervisor_bit = system.cpuid(1)[2] >> 31 == 1;
        let name = if hypervisor_bit { signature(system, 0x4000_0000, [1, 2, 3]) } else { String::new() };
        let functions = PciFunction::all(system);
        let has = |device| functions.iter().any(|f| (f.vendor, f.device) == (VENDOR_ID, device));
        let mut host = Self {
            hypervisor: (!name.is_empty()).then(|| name.clone()),
            invariant_tsc: system.cpuid(0x8000_0000)[0] >= 0x8000_0007
                && system.cpuid(0x8000_0007)[3] >> 8 & 1 == 1,
            amd: matches!(signature(system, 0, [1, 3, 2]).as_str(), "AuthenticAMD" | "HygonGenuine"),
            ..Self::default()
        };
        let vmm = name == "OpenBSDVMM58";
        let bridge = has(HOST_BRIDGE);
        host.evidence.push(match &host.hypervisor {
            Some(name) => format!("CPUID leaf 0x40000000 says {name}"),
            None => "CPUID shows no hypervisor".to_owned(),
        });
        host.evidence.push(format!(
            "vmd's host bridge ({VENDOR_ID:04x}:{HOST_BRIDGE:04x}) is {}, its control device ({VENDOR_ID:04x}:{DEVICE_ID:04x}) is {}",
            if bridge { "there" } else { "not there" },
            if has(DEVICE_ID) { "there" } else { "not there" },
        ));
        if let (Some(vendor), Some(product)) =
            (system.text("sys/class/dmi/id/sys_vendor"), system.text("sys/class/dmi/id/product_name"))
        {
            host.evidence.push(format!("SMBIOS says {vendor} {product}"));
        }
        if vmm || bridge {
            host.generation(system, &functions);
        }
        host
    }

    /// Narrows the possible generations down.
    fn generation(&mut self, system: &System, functions: &[PciFunction]) {
        let kvm = signature(system, 0x4000_0100, [1, 2, 3]) == "KVMKVMKVM";
        let apic = system.cpuid(1)[3] & APIC != 0;
        let acpi = !system.names("sys/firmware/acpi/tables").is_empty();
        let virtio: Vec<_> = functions.iter().filter_map(PciFunction::virtio).collect();
        let legacy = virtio.iter().any(|device| device.legacy);
        let modern = virtio.iter().any(|device| !device.legacy);
        let mut say = |text: &str| self.evidence.push(text.to_owned());
        say(if kvm { "CPUID leaf 0x40000100 says KVMKVMKVM" } else { "there is no KVM leaf at 0x40000100" });
        say(match (modern, legacy) {
            (true, _) => "virtio devices are of version 1.x",
            (false, true) => "virtio devices are legacy ones",
            (false, false) => "there are no virtio devices",
        });
        say(match (apic, acpi) {
            (true, true) => "there are a local APIC and ACPI tables",
            (true, false) => "there is a local APIC; the kernel shows no ACPI tables",
            (false, _) => "there is neither local APIC nor ACPI",
        });
        self.vmd = if apic || acpi {
            vec![Generation::V8_0]
        } else if legacy || !(kvm || modern) {
            vec![Generation::V7_7]
        } else {
            let flush = disk_flush(system);
            match flush {
                Some(true) => say("its disks can be flushed, which 7.8's cannot"),
                Some(false) => say("its disks cannot be flushed, which 7.9's can"),
                None => say("there is no disk in use that would tell 7.8 from 7.9"),
            }
            match (kvm, flush) {
                (false, _) | (_, Some(true)) => vec![Generation::V7_9],
                (true, Some(false)) => vec![Generation::V7_8],
                (true, None) => vec![Generation::V7_8, Generation::V7_9],
            }
        };
    }
}

/// Whether virtio disks that a driver has taken agreed on flushing.
fn disk_flush(system: &System) -> Option<bool> {
    let directory = "sys/bus/virtio/devices";
    system.names(directory).into_iter().find_map(|name| {
        let path = format!("{directory}/{name}");
        if system.text(format!("{path}/device"))? != "0x0002" {
            return None;
        }
        system.link(format!("{path}/driver"))?;
        Some(system.text(format!("{path}/features"))?.as_bytes().get(VIRTIO_BLK_F_FLUSH)? == &b'1')
    })
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.vmd.as_slice(), &self.hypervisor) {
            ([], None) => f.write_str("not in a virtual machine"),
            ([], Some(hypervisor)) => write!(f, "not a guest of vmd(8), but of {hypervisor}"),
            ([Generation::V7_7], _) => f.write_str("guest of vmd(8) of OpenBSD 7.7 or older"),
            ([one], _) => write!(f, "guest of vmd(8) of OpenBSD {one}"),
            (several, _) => {
                let names: Vec<_> = several.iter().map(ToString::to_string).collect();
                write!(f, "guest of vmd(8) of OpenBSD {}", names.join(" or "))
            }
        }
    }
}
