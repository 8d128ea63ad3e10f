//! Detection of the host: which generation of vmd the guest runs on.
//!
//! | | up to 7.7 | 7.8 | 7.9 | 8.0 |
//! |---|---|---|---|---|
//! | CPUID 0x40000000 | `OpenBSDVMM58` | the same | the same | the same |
//! | CPUID 0x40000100 | nothing | `KVMKVMKVM` | the same | the same |
//! | its clock bits | | always | where the TSC's rate is known | as 7.9 |
//! | virtio | legacy | 1.x | 1.x | 1.x |
//! | low memory ends at | 0xa0000 | 0xa0000 | 0x90000 | 0x90000 |
//! | RDMSR of SYSCFG, on AMD | #GP | #GP | 0 | 0 |
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
/// End of low memory from 7.9 on; before, it ends at 0xa0000 or where the firmware has put its own.
const LOW_MEMORY_END_7_9: u64 = 0x9_0000;
/// AMD's MSR that 7.9 added.
const SYSCFG: u64 = 0xc001_0010;
/// The clocks in leaves 0x40000001 and 0x40000101, EAX.
const CLOCKS: u32 = 1 << 3;
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
                revision: number("revision").and_then(|r| u8::try_from(r).ok()).unwrap_or(0),
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
            match self.is_7_9(system) {
                Some(true) => vec![Generation::V7_9],
                Some(false) => vec![Generation::V7_8],
                None => vec![Generation::V7_8, Generation::V7_9],
            }
        };
    }

    /// Tells 7.9 from 7.8, with the evidence; `None` if nothing that can be read tells.
    fn is_7_9(&mut self, system: &System) -> Option<bool> {
        if let Some(end) = low_memory_end(system) {
            let newer = end <= LOW_MEMORY_END_7_9;
            let since = if newer { "as from 7.9 on" } else { "as up to 7.8" };
            self.evidence.push(format!("low memory ends at {end:#x}, {since}"));
            return Some(newer);
        }
        if let Some(readable) = self.amd.then(|| system.msr(SYSCFG)).flatten() {
            let says = if readable { "can be read, as from 7.9 on" } else { "cannot be read, as up to 7.8" };
            self.evidence.push(format!("the MSR SYSCFG {says}"));
            return Some(readable);
        }
        if system.cpuid(0x4000_0001)[0] & CLOCKS == 0 {
            self.evidence.push("vmm announces no clock, which 7.8 always does".to_owned());
            return Some(true);
        }
        self.evidence.push(
            "7.8 and 7.9 cannot be told apart: neither memory map nor boot messages can be read".to_owned(),
        );
        None
    }
}

/// End of the RAM that begins at 0 in the firmware's memory map: from sysfs, or else from the boot
/// messages.
fn low_memory_end(system: &System) -> Option<u64> {
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let directory = "sys/firmware/memmap";
    let in_sysfs = system.names(directory).into_iter().find_map(|name| {
        let text = |file: &str| system.text(format!("{directory}/{name}/{file}"));
        let low = text("type")? == "System RAM" && hex(&text("start")?)? == 0;
        low.then(|| hex(&text("end")?)).flatten()
    });
    let last = in_sysfs.or_else(|| {
        let log = system.kernel_messages().ok()?;
        let (_, rest) = log.split_once("BIOS-e820: [mem 0x0000000000000000-")?;
        hex(rest.split_once(']')?.0)
    })?;
    last.checked_add(1)
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
