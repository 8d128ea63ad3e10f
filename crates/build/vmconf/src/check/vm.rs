//! VMs: their devices, memory, boot and network interfaces.

use std::collections::BTreeMap;

use vmd_release::Generation;

use super::{Judge, comes_after, has_flags, image::start, is_numbered};
use crate::{
    MAX_DISKS, MAX_INTERFACES,
    finding::{Finding, Severity},
    model::{BootDevice, Interface, Owner, Switch, Vm, VmOption},
    registry::Registered,
    size::{MAX_MEMORY, show_size},
    source::{Span, Spanned},
};

/// Interrupt lines that vmd has for PCI devices (`PCI_MAX_PIC_IRQS`).
const INTERRUPT_LINES: usize = 10;
/// Disks, interfaces and CD-ROMs with which SeaBIOS boots, on every generation of vmd. With the entropy device and the
/// control device these are eight; a ninth's I/O ports come to 0x9000, where SeaBIOS panics (seen on vmd 7.8).
const MOST_DEVICES: usize = 6;
/// Debian's kernels keep 48 to 54 MB for themselves and need 37 MB more by the time init runs (docs: the bench).
const LITTLE_MEMORY: i64 = 128 << 20;

/// What vmd loads into a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    /// SeaBIOS, or the BIOS image that `boot` names.
    Bios,
    OpenBsd,
    /// Linux, which vmd takes for a BIOS image.
    Linux,
}

impl Judge<'_> {
    pub(super) fn vm(
        &mut self,
        vm: &Vm,
        registered: &Registered,
        switches: &BTreeMap<&str, &Switch>,
        at: Span,
    ) {
        let loaded = self.loaded(vm);
        let openbsd = loaded == Loaded::OpenBsd;
        self.counts(vm);
        self.devices(vm, registered, openbsd);
        self.memory(vm, openbsd);
        if let (Some(path), Loaded::Linux) = (vm.boot(), loaded) {
            self.error(
                path.at,
                "vmd cannot boot a Linux kernel from a file",
                "taken for a BIOS image",
                "it loads OpenBSD's kernels only. Linux boots from the disk, with a boot loader: `vmmlinux image` makes \
                 such a disk. Take the `boot` away",
            );
        }
        for option in &vm.options {
            match &option.value {
                VmOption::BootDevice(device) => self.boot_device(vm, registered, openbsd, *device, option.at),
                VmOption::Sev | VmOption::SevEs => self.sev(option, openbsd),
                VmOption::Owner(Owner::Named { user: None, group: None }) => {
                    self.note(option.at, "this names no owner", "neither a user nor a group", "");
                }
                _ => {}
            }
        }
        for (interface, at_interface) in vm.interfaces() {
            self.interface(interface, at_interface);
            self.connection(interface, at_interface, switches, at);
            if !openbsd {
                self.linux_interface(interface, at_interface);
            }
        }
        for (count, (path, format)) in vm.disks().enumerate() {
            self.disk(path, format, count == 0 && vm.cdrom().is_none() && !openbsd);
        }
        if let Some(path) = vm.cdrom() {
            self.open(path);
        }
    }

    /// What vmd loads, by the file where it is at hand, else by its name.
    fn loaded(&mut self, vm: &Vm) -> Loaded {
        let Some(path) = vm.boot() else { return Loaded::Bios };
        let name = path.rsplit('/').next().unwrap_or_default();
        let named = |names: &[&str]| names.iter().any(|start| name.starts_with(start));
        let start = self.open(path).map(|mut file| start(&mut file));
        let begins = |magic: &[u8]| start.as_ref().is_some_and(|start| start.starts_with(magic));
        if start.as_ref().map_or_else(
            || named(&["vmlinuz", "bzImage", "vmlinux", "linux"]),
            |start| start.get(0x202..0x206) == Some(b"HdrS"),
        ) {
            Loaded::Linux
        } else if named(&["bsd"]) || begins(b"\x7fELF") || begins(b"\x1f\x8b") {
            Loaded::OpenBsd
        } else {
            Loaded::Bios
        }
    }

    /// Judges `sev`, which came with 7.6, and `seves`, which came with 7.8.
    fn sev(&mut self, option: &Spanned<VmOption>, openbsd: bool) {
        if self.options.hosts.contains(&Generation::V7_7) {
            let (severity, message) = match option.value {
                VmOption::SevEs => (Severity::Error, "`seves` came with OpenBSD 7.8"),
                _ => (Severity::Note, "`sev` came with OpenBSD 7.6"),
            };
            self.found(Finding::new(severity, option.at, message, "a syntax error before"), "");
        }
        if !openbsd {
            self.warning(
                option.at,
                "SEV is made for OpenBSD guests here",
                "for a Linux guest?",
                "the kernels of vmmlinux are not built for encrypted memory (AMD_MEM_ENCRYPT), and no report of a Linux \
                 that runs so on vmd is known",
            );
        }
    }

    /// How often each option may be there.
    fn counts(&mut self, vm: &Vm) {
        let (mut disks, mut interfaces, mut memory, mut cdroms, mut boots, mut minimum) = (0, 0, 0, 0, 0, 0);
        for option in &vm.options {
            let (count, most, what) = match &option.value {
                VmOption::Disk { .. } => (&mut disks, MAX_DISKS, "disks"),
                VmOption::Interface(_) => (&mut interfaces, MAX_INTERFACES, "network interfaces"),
                VmOption::Memory(_) => (&mut memory, 1, "sizes of memory"),
                VmOption::Cdrom(_) => (&mut cdroms, 1, "CD-ROMs"),
                VmOption::Boot(_) => (&mut boots, 1, "kernels"),
                VmOption::Interfaces(count) if *count != 0 => (&mut minimum, 1, "numbers of interfaces"),
                _ => continue,
            };
            *count += 1;
            if *count > most {
                let message = format!("\"{}\" has too many {what}", vm.name.value);
                self.error(option.at, message, format!("vmd takes {most}"), "");
            }
        }
        let Some(least) = vm.least_interfaces() else { return };
        match usize::try_from(least.value) {
            Ok(count) if count > MAX_INTERFACES => {
                self.error(least.at, format!("a VM has at most {MAX_INTERFACES} interfaces"), "here", "");
            }
            Ok(count) if count > interfaces => self.warning(
                least.at,
                format!("{} of the interfaces lead nowhere", count - interfaces),
                "more than the `interface`s",
                "the host has a tap(4) for each; write an `interface` with a switch, or `local interface`",
            ),
            Ok(_) => {}
            Err(_) => {
                self.error(least.at, format!("a VM has at most {MAX_INTERFACES} interfaces"), "here", "");
            }
        }
    }

    /// Judges the number of PCI devices, inherited ones included.
    fn devices(&mut self, vm: &Vm, registered: &Registered, openbsd: bool) {
        let disks = vm.disks().count().min(MAX_DISKS);
        let interfaces = registered.interfaces().min(MAX_INTERFACES);
        let devices = disks + interfaces + usize::from(registered.has_cdrom());
        // The entropy device and, last of all, the control device.
        let all = devices + 2;
        if !openbsd && devices > MOST_DEVICES {
            self.warning(
                vm.name.at,
                format!("\"{}\" has too many devices for SeaBIOS", vm.name.value),
                format!("{devices} disks, interfaces and CD-ROMs"),
                &format!(
                    "with more than {MOST_DEVICES} of them the firmware panics before it boots: vmd logs `run ioctl \
                     failed`. Take away a disk, an interface or the CD-ROM"
                ),
            );
        }
        if openbsd && all > INTERRUPT_LINES {
            self.warning(
                vm.name.at,
                format!("\"{}\" has no control device (vmmci)", vm.name.value),
                format!("{all} devices for {INTERRUPT_LINES} interrupt lines"),
                "the last device gets none, and that is vmmci: `vmctl stop` kills the guest. Take away a disk, an \
                 interface or the CD-ROM",
            );
        }
    }

    fn memory(&mut self, vm: &Vm, openbsd: bool) {
        for option in &vm.options {
            let VmOption::Memory(bytes) = option.value else { continue };
            if bytes < 1 << 20 {
                let help = "without a unit it is bytes: did you mean M?";
                self.error(option.at, "less than a megabyte of memory", show_size(bytes), help);
            } else if bytes > MAX_MEMORY {
                self.error(
                    option.at,
                    "more memory than vmd gives a VM",
                    format!("at most {}", show_size(MAX_MEMORY)),
                    "",
                );
            } else {
                if bytes > 32 << 30 && self.options.hosts.contains(&Generation::V7_7) {
                    self.note(option.at, "before OpenBSD 7.5 a VM has at most 32G", show_size(bytes), "");
                }
                if bytes % (1 << 20) != 0 {
                    let label = format!("vmd takes {}", show_size(bytes >> 20 << 20));
                    self.note(option.at, "memory is rounded down to whole megabytes", label, "");
                }
                if bytes < LITTLE_MEMORY && !openbsd {
                    self.warning(
                        option.at,
                        format!("{} is little for Linux", show_size(bytes)),
                        "less than 128M",
                        "a stock kernel keeps some 50M for itself and has used 37M more when it is up; 512M is vmd's \
                         default and enough for a Debian",
                    );
                }
            }
        }
    }

    fn boot_device(&mut self, vm: &Vm, registered: &Registered, openbsd: bool, device: BootDevice, at: Span) {
        match device {
            BootDevice::Cdrom if !registered.has_cdrom() => {
                self.error(at, "there is no CD-ROM to boot from", "here", "add: cdrom \"/path/to.iso\"");
            }
            BootDevice::Disk if vm.disks().next().is_none() => {
                self.error(at, "there is no disk to boot from", "here", "add: disk \"/path/to.img\"");
            }
            BootDevice::Net if !openbsd => self.error(
                at,
                "only an OpenBSD kernel boots from the network",
                "not Linux",
                "vmd pretends that the `boot` kernel came over the network; there is no PXE. Boot from a disk or CD-ROM",
            ),
            BootDevice::Cdrom | BootDevice::Disk if openbsd => {
                self.warning(at, "this has no effect beside `boot`", "for the BIOS only", "");
            }
            BootDevice::Cdrom => self.note(
                at,
                "the VM boots its CD-ROM each time",
                "for an installation",
                "`vmctl start -B cdrom` does it for once. The installer's console must be ttyS0: add \
                 console=ttyS0,115200 at its boot prompt",
            ),
            _ => {}
        }
    }

    fn interface(&mut self, interface: &Interface, at: Span) {
        if let Some(name) = &interface.name
            && name.value != "tap"
            && !is_numbered(name, &["tap"])
        {
            let help = "`tap` takes the next free one, `tap3` that one; the switch is named in braces";
            self.error(name.at, format!("`{}` is not a tap(4) interface", name.value), "here", help);
        }
        if let Some(group) = &interface.group {
            self.group(group);
        }
        if let Some(id) = interface.rdomain {
            self.rdomain(id, at);
        }
        if interface.up == Some(false) {
            self.note(at, "the interface is down", "no packet passes", "");
        }
    }

    /// Judges where an interface leads.
    fn connection(
        &mut self,
        interface: &Interface,
        at: Span,
        switches: &BTreeMap<&str, &Switch>,
        vm_at: Span,
    ) {
        match &interface.switch {
            Some(switch) if interface.local => self.warning(
                switch.at,
                "a local interface on a switch",
                "has both addresses from vmd and the switch's network",
                "one of the two: `local interface`, or `interface { switch … }`",
            ),
            Some(name) => match switches.get(name.as_str()) {
                None => self.warning(
                    name.at,
                    format!("there is no switch \"{}\"", name.value),
                    "vmd leaves the interface unconnected",
                    "declare it: switch \"NAME\" { interface veb0 }",
                ),
                Some(switch) if comes_after(switch, vm_at) && has_flags(switch) => self.warning(
                    name.at,
                    "the switch is declared after this VM",
                    "its `locked lladdr` and `rdomain` do not reach this interface",
                    "put switches before VMs",
                ),
                Some(_) => {}
            },
            None if !interface.local && interface.up != Some(false) => self.warning(
                at,
                "the interface leads nowhere",
                "no switch, and not local",
                "`local interface` has DHCP and a way out; or name a switch; or add the tap(4) to a bridge yourself",
            ),
            None => {}
        }
    }

    fn linux_interface(&mut self, interface: &Interface, at: Span) {
        if interface.lladdr.is_some() {
            return;
        }
        if interface.locked {
            self.note(
                at,
                "a guest with a bridge, containers or MACVLAN of its own loses their packets",
                "locked to one address",
                "",
            );
        }
        if interface.switch.is_some() && !interface.local {
            self.note(
                at,
                "the guest has a new address each time that vmd reads its configuration",
                "no lladdr",
                "for a fixed DHCP lease give it one: lladdr fe:e1:ba:d0:00:01 (the second digit even)",
            );
        }
    }
}
