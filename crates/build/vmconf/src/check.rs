//! Judging a configuration: what vmd refuses, and what a Linux guest suffers from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read, Seek, SeekFrom},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use vmd_release::Generation;

use crate::{
    MAX_DISKS, MAX_INTERFACES,
    finding::{Finding, Severity},
    model::{
        BootDevice, Config, DiskFormat, Interface, Owner, Span, Spanned, Statement, Switch, Vm, VmOption,
    },
    size::{MAX_MEMORY, show_size},
};

/// Names of VMs have at most so many bytes (`VMM_MAX_NAME_LEN`, less the end).
const LONGEST_NAME: usize = 63;
/// Interrupt lines that vmd has for PCI devices (`PCI_MAX_PIC_IRQS`).
const INTERRUPT_LINES: usize = 10;
/// Debian's kernels keep 48 to 54 MB for themselves and need 37 MB more by the time init runs (docs: the bench).
const LITTLE_MEMORY: i64 = 128 << 20;
/// The first bytes of a qcow2 file.
const QCOW2: &[u8] = b"QFI\xfb";

/// How to judge.
#[derive(Debug, Clone, Default)]
pub struct Check {
    /// The generations that the file is for; without any, what older ones lack is not mentioned.
    pub hosts: Vec<Generation>,
    /// The root directory below which the images are, to look at them: `/` on the host itself.
    pub root: Option<PathBuf>,
}

/// Everything that is wrong with a configuration: what was found when it was read, and what judging it finds.
/// In the order of the files.
pub fn check(config: &Config, options: &Check) -> Vec<Finding> {
    let mut judge = Judge { config, options, findings: config.findings.clone() };
    judge.globals();
    let switches = judge.switches();
    judge.names();
    judge.shared_disks();
    judge.addresses();
    for statement in &config.statements {
        if let Statement::Vm(vm) = &statement.value {
            judge.vm(vm, &switches, statement.at);
        }
    }
    judge.findings.sort_by_key(|finding| (finding.at.source, finding.at.start, finding.severity));
    judge.findings
}

struct Judge<'a> {
    config: &'a Config,
    options: &'a Check,
    findings: Vec<Finding>,
}

impl<'a> Judge<'a> {
    fn error(&mut self, at: Span, message: impl Into<String>, label: impl Into<String>, help: &str) {
        self.found(Severity::Error, at, message, label, help);
    }

    fn warning(&mut self, at: Span, message: impl Into<String>, label: impl Into<String>, help: &str) {
        self.found(Severity::Warning, at, message, label, help);
    }

    fn note(&mut self, at: Span, message: impl Into<String>, label: impl Into<String>, help: &str) {
        self.found(Severity::Note, at, message, label, help);
    }

    fn found(
        &mut self,
        severity: Severity,
        at: Span,
        message: impl Into<String>,
        label: impl Into<String>,
        help: &str,
    ) {
        let finding = Finding::new(severity, at, message, label);
        self.findings.push(if help.is_empty() { finding } else { finding.help(help) });
    }

    fn globals(&mut self) {
        for statement in &self.config.statements {
            match &statement.value {
                Statement::LocalPrefix(prefix) => {
                    if let Err(why) = ipv4_prefix(prefix) {
                        self.error(
                            prefix.at,
                            format!("vmd refuses this prefix: {why}"),
                            "here",
                            "16 bits are vmd's own, for the VM and its interface: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16",
                        );
                    }
                }
                Statement::LocalInet6(Some(prefix)) => {
                    if let Err(why) = ipv6_prefix(prefix) {
                        self.error(
                            prefix.at,
                            format!("vmd refuses this prefix: {why}"),
                            "here",
                            "as in fd00:1234::/48",
                        );
                    }
                }
                Statement::Agentx { path: Some(path), .. } if !path.starts_with('/') => {
                    self.error(path.at, "the socket's path is not a whole path", "begins with a slash", "");
                }
                _ => {}
            }
        }
    }

    /// Judges the switches and gives the enabled ones, each with its place.
    fn switches(&mut self) -> BTreeMap<&'a str, &'a Switch> {
        let mut switches = BTreeMap::new();
        for switch in self.config.switches() {
            match switch.interface() {
                None => self.error(
                    switch.name.at,
                    format!("the switch \"{}\" has no interface", switch.name.value),
                    "vmd refuses it",
                    "name the bridge(4) or veb(4) that it is: interface veb0",
                ),
                Some(name) if !is_numbered(name, &["bridge", "veb"]) => self.error(
                    name.at,
                    format!("`{}` cannot be a switch", name.value),
                    "vmd takes bridge(4) and veb(4)",
                    "make a veb(4) (/etc/hostname.veb0), add the network's interface to it, and name that",
                ),
                Some(_) => {}
            }
            for option in &switch.options {
                match &option.value {
                    crate::SwitchOption::Group(group) => self.group(group),
                    crate::SwitchOption::Rdomain(id) => self.rdomain(*id, option.at),
                    _ => {}
                }
            }
            if switch.enabled() && switches.insert(switch.name.as_str(), switch).is_some() {
                self.warning(
                    switch.name.at,
                    format!("there are two switches \"{}\"", switch.name.value),
                    "the second one",
                    "interfaces go to the first",
                );
            }
        }
        switches
    }

    fn group(&mut self, group: &Spanned<String>) {
        if group.len() > 15 || group.ends_with(|c: char| c.is_ascii_digit()) {
            self.error(
                group.at,
                format!("`{}` is no name for an interface group", group.value),
                "vmd refuses it",
                "at most 15 characters, and no digit at the end: ifconfig(8)",
            );
        }
    }

    fn rdomain(&mut self, id: i64, at: Span) {
        if !(0..=255).contains(&id) {
            self.error(at, format!("there is no routing domain {id}"), "0 to 255", "");
        }
    }

    fn names(&mut self) {
        let mut seen = BTreeSet::new();
        for vm in self.config.vms() {
            let name = &vm.name;
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            if name.is_empty() || name.starts_with(['-', '.', '_']) || !name.chars().all(good) {
                self.error(
                    name.at,
                    format!("\"{}\" is no name for a VM", name.escape_debug()),
                    "vmd refuses it",
                    "letters, digits, dots, dashes and underscores, with a letter first",
                );
            } else if name.len() > LONGEST_NAME {
                self.error(
                    name.at,
                    "the VM's name is too long",
                    format!("more than {LONGEST_NAME} bytes"),
                    "",
                );
            } else if name.starts_with(|c: char| c.is_ascii_digit()) {
                self.warning(
                    name.at,
                    "vmctl takes a name that begins with a digit for a number",
                    "begin with a letter",
                    "",
                );
            }
            if !seen.insert(name.as_str()) {
                self.warning(
                    name.at,
                    format!("there is a VM \"{}\" already", name.value),
                    "vmd passes over this one",
                    "give it another name",
                );
            }
            if let Some(parent) = &vm.parent
                && !seen.contains(parent.as_str())
            {
                self.error(
                    parent.at,
                    format!("there is no VM \"{}\" above to make an instance of", parent.value),
                    "not known yet",
                    "a VM is declared before its instances",
                );
            }
        }
    }

    /// vmd locks the images that it opens: of two VMs with the same one, the second does not start.
    fn shared_disks(&mut self) {
        let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
        for vm in self.config.vms() {
            for (path, _) in vm.disks() {
                if let Some(other) = seen.insert(path, &vm.name) {
                    let (message, label) = if other == vm.name.value {
                        (format!("{} is in this VM twice", path.value), "vmd cannot lock it twice")
                    } else {
                        (format!("{} is a disk of \"{other}\", too", path.value), "only one of them can run")
                    };
                    let help =
                        "make a disk of its own: vmctl create -b BASE qcow2:DISK shares what is not written";
                    self.warning(path.at, message, label, help);
                }
            }
        }
    }

    fn addresses(&mut self) {
        let mut seen = BTreeSet::new();
        for vm in self.config.vms() {
            for (interface, _) in vm.interfaces() {
                let Some(address) = &interface.lladdr else { continue };
                if address.is_multicast() {
                    self.error(
                        address.at,
                        format!("{} is a group's address", address.value),
                        "Linux does not take it",
                        "the first byte of an interface's address is even",
                    );
                } else if address.0 != [0; 6] && !seen.insert(address.0) {
                    self.warning(
                        address.at,
                        format!("{} is another interface's address, too", address.value),
                        "the second one",
                        "on one network that is trouble: change the last byte",
                    );
                }
            }
        }
    }

    fn vm(&mut self, vm: &Vm, switches: &BTreeMap<&str, &Switch>, at: Span) {
        let openbsd = vm.boot().is_some_and(|path| self.boots_openbsd(path));
        self.counts(vm);
        self.memory(vm, openbsd);
        self.boot(vm, openbsd, at);
        self.interfaces(vm, switches, openbsd, at);
        let disks: Vec<_> = vm.disks().map(|(path, format)| (path.clone(), format.copied())).collect();
        for (count, (path, format)) in disks.iter().enumerate() {
            self.disk(path, format.as_ref(), count == 0 && vm.cdrom().is_none() && !openbsd);
        }
        if let Some(path) = vm.cdrom() {
            self.whole_path(path);
            self.open(path);
        }
        for option in &vm.options {
            match &option.value {
                VmOption::Sev | VmOption::SevEs => {
                    self.generation_of(option);
                    if !openbsd {
                        self.warning(
                            option.at,
                            "SEV is made for OpenBSD guests here",
                            "for a Linux guest?",
                            "the kernels of vmmlinux are not built for encrypted memory (AMD_MEM_ENCRYPT), and no \
                             report of a Linux that runs so on vmd is known",
                        );
                    }
                }
                VmOption::Owner(Owner::Named { user: None, group: None }) => {
                    self.note(option.at, "this names no owner", "neither a user nor a group", "");
                }
                _ => {}
            }
        }
    }

    /// `sev` came with 7.6 and `seves` with 7.8.
    fn generation_of(&mut self, option: &Spanned<VmOption>) {
        if self.options.hosts.contains(&Generation::V7_7) {
            let (severity, message) = match option.value {
                VmOption::SevEs => (Severity::Error, "`seves` came with OpenBSD 7.8"),
                _ => (Severity::Note, "`sev` came with OpenBSD 7.6"),
            };
            self.found(severity, option.at, message, "a syntax error before", "");
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
                VmOption::Interfaces(_) => (&mut minimum, 1, "numbers of interfaces"),
                _ => continue,
            };
            *count += 1;
            if *count > most {
                let message = format!("\"{}\" has too many {what}", vm.name.value);
                self.error(option.at, message, format!("vmd takes {most}"), "");
            }
        }
        let least = vm.options.iter().find_map(|option| match option.value {
            VmOption::Interfaces(count) => Some((count, option.at)),
            _ => None,
        });
        if let Some((count, at)) = least {
            match usize::try_from(count) {
                Ok(count) if count <= MAX_INTERFACES => {
                    if count > interfaces {
                        self.warning(
                            at,
                            format!("{} of the interfaces lead nowhere", count - interfaces),
                            "more than the `interface`s",
                            "the host has a tap(4) for each; write an `interface` with a switch, or `local interface`",
                        );
                        interfaces = count;
                    }
                }
                _ => self.error(at, format!("a VM has at most {MAX_INTERFACES} interfaces"), "here", ""),
            }
        }
        // The entropy device and, last of all, the control device.
        let devices = disks.min(MAX_DISKS) + interfaces.min(MAX_INTERFACES) + cdroms.min(1) + 2;
        if devices > INTERRUPT_LINES {
            self.warning(
                vm.name.at,
                format!("\"{}\" has no control device (vmmci)", vm.name.value),
                format!("{devices} devices for {INTERRUPT_LINES} interrupt lines"),
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

    fn boot(&mut self, vm: &Vm, openbsd: bool, at: Span) {
        let inherits = vm.parent.is_some();
        let no_disk = vm.disks().next().is_none();
        // What could not be read may have been the disk.
        let within = |finding: &Finding| {
            finding.at.source == at.source && (at.start..=at.end).contains(&finding.at.start)
        };
        let whole = !self.config.findings.iter().any(within);
        if whole && no_disk && vm.cdrom().is_none() && vm.boot().is_none() && !inherits {
            self.error(
                vm.name.at,
                format!("\"{}\" has nothing to boot", vm.name.value),
                "no disk, no CD-ROM",
                "a Linux guest boots from a disk: `vmmlinux image` makes one",
            );
        }
        if let Some(path) = vm.boot() {
            self.whole_path(path);
            let there = self.open(path).is_some();
            if self.is_linux(path, there) {
                self.error(
                    path.at,
                    "vmd cannot boot a Linux kernel from a file",
                    "taken for a BIOS image",
                    "it loads OpenBSD's kernels only. Linux boots from the disk, with a boot loader: `vmmlinux image` \
                     makes such a disk. Take the `boot` away",
                );
            }
        }
        for option in &vm.options {
            let VmOption::BootDevice(device) = option.value else { continue };
            match device {
                BootDevice::Cdrom if vm.cdrom().is_none() && !inherits => {
                    self.error(option.at, "there is no CD-ROM to boot from", "here", "add: cdrom \"/path/to.iso\"");
                }
                BootDevice::Disk if no_disk && !inherits => {
                    self.error(option.at, "there is no disk to boot from", "here", "add: disk \"/path/to.img\"");
                }
                BootDevice::Net if !openbsd => self.error(
                    option.at,
                    "only an OpenBSD kernel boots from the network",
                    "not Linux",
                    "vmd pretends that the `boot` kernel came over the network; there is no PXE. Boot from a disk or CD-ROM",
                ),
                BootDevice::Cdrom | BootDevice::Disk if openbsd => self.warning(
                    option.at,
                    "this has no effect beside `boot`",
                    "for the BIOS only",
                    "",
                ),
                BootDevice::Cdrom => self.note(
                    option.at,
                    "the VM boots its CD-ROM each time",
                    "for an installation",
                    "`vmctl start -B cdrom` does it for once. The installer's console must be ttyS0: add \
                     console=ttyS0,115200 at its boot prompt",
                ),
                _ => {}
            }
        }
    }

    fn boots_openbsd(&self, path: &Spanned<String>) -> bool {
        let name = path.rsplit('/').next().unwrap_or_default();
        let elf = self
            .peek(path)
            .is_some_and(|start| start.starts_with(b"\x7fELF") || start.starts_with(b"\x1f\x8b"));
        name.starts_with("bsd") || elf
    }

    /// A bzImage says so; where the file is not at hand, its name tells.
    fn is_linux(&self, path: &Spanned<String>, there: bool) -> bool {
        if there && let Some(start) = self.peek(path) {
            return start.get(0x202..0x206) == Some(b"HdrS");
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        ["vmlinuz", "bzImage", "vmlinux", "linux"].iter().any(|linux| name.starts_with(linux))
    }

    fn interfaces(&mut self, vm: &Vm, switches: &BTreeMap<&str, &Switch>, openbsd: bool, vm_at: Span) {
        for (interface, at) in vm.interfaces() {
            let Interface { local, name, switch, group, lladdr, locked, rdomain, up } = interface;
            if let Some(name) = name
                && name.value != "tap"
                && !is_numbered(name, &["tap"])
            {
                let help = "`tap` takes the next free one, `tap3` that one; the switch is named in braces";
                self.error(name.at, format!("`{}` is no tap(4) interface", name.value), "here", help);
            }
            if let Some(group) = group {
                self.group(group);
            }
            if let Some(id) = rdomain {
                self.rdomain(*id, at);
            }
            if *up == Some(false) {
                self.note(at, "the interface is down", "no packet passes", "");
            }
            match switch {
                Some(switch) if *local => self.warning(
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
                None if !*local && *up != Some(false) => self.warning(
                    at,
                    "the interface leads nowhere",
                    "no switch, and not local",
                    "`local interface` has DHCP and a way out; or name a switch; or add the tap(4) to a bridge yourself",
                ),
                None => {}
            }
            if openbsd {
                continue;
            }
            if *locked && lladdr.is_none() {
                self.note(
                    at,
                    "a guest with a bridge, containers or MACVLAN of its own loses their packets",
                    "locked to one address",
                    "",
                );
            }
            if switch.is_some() && lladdr.is_none() && !*local {
                self.note(
                    at,
                    "the guest has a new address each time that vmd reads its configuration",
                    "no lladdr",
                    "for a fixed DHCP lease give it one: lladdr fe:e1:ba:d0:00:01 (the second digit even)",
                );
            }
        }
    }

    fn whole_path(&mut self, path: &Spanned<String>) {
        if !path.starts_with('/') {
            self.warning(
                path.at,
                "not a whole path",
                "looked for where vmd was started",
                "write it from the root: \"/var/vmm/…\"",
            );
        }
    }

    fn on_host(&self, path: &str) -> Option<PathBuf> {
        Some(self.options.root.as_ref()?.join(path.trim_start_matches('/')))
    }

    /// Opens a file of the host, if it is to be looked at, and complains if it is not there.
    fn open(&mut self, path: &Spanned<String>) -> Option<File> {
        match File::open(self.on_host(path)?) {
            Ok(file) => Some(file),
            Err(error) => {
                self.error(
                    path.at,
                    format!("cannot open {}: {error}", path.value),
                    "vmd refuses the file",
                    "",
                );
                None
            }
        }
    }

    /// The beginning of a file of the host.
    fn peek(&self, path: &str) -> Option<Vec<u8>> {
        start(&self.on_host(path)?)
    }

    fn disk(&mut self, path: &Spanned<String>, format: Option<&Spanned<DiskFormat>>, boots: bool) {
        self.whole_path(path);
        let named = by_name(path);
        let Some(mut file) = self.open(path) else {
            if let (Some(format), Some(named)) = (format, named)
                && format.value != named
            {
                let message = format!("{} looks like {named} by its name", path.value);
                self.warning(
                    format.at,
                    message,
                    format!("said to be {format}", format = format.value),
                    "one is wrong",
                );
            }
            return;
        };
        let start = self.peek(path).unwrap_or_default();
        let is_qcow2 = start.starts_with(QCOW2);
        match format.map(|format| format.value) {
            Some(DiskFormat::Qcow2) if !is_qcow2 => {
                let help = "take `format qcow2` away, or convert it: vmctl create -i raw:FROM qcow2:TO";
                self.error(path.at, format!("{} is no qcow2 file", path.value), "vmd ends with it", help);
                return;
            }
            Some(DiskFormat::Raw) if is_qcow2 => self.error(
                path.at,
                format!("{} is a qcow2 file", path.value),
                "said to be raw: the guest sees no partitions",
                "say `format qcow2`, or nothing",
            ),
            _ => {}
        }
        if is_qcow2 {
            let version = start.get(4..8).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
            if !(2..=3).contains(&version) {
                self.error(path.at, format!("qcow2 version {version}"), "vmd knows 2 and 3", "");
            }
            return;
        }
        let length = file.seek(SeekFrom::End(0)).unwrap_or_default();
        if length % 512 != 0 {
            self.warning(
                path.at,
                "the file is not whole sectors",
                format!("{length} bytes"),
                "was it copied to its end?",
            );
        } else if boots && start.get(510..512) != Some(&[0x55, 0xaa]) {
            self.warning(
                path.at,
                "the disk has no boot sector",
                "the BIOS finds nothing to boot",
                "`vmmlinux image` makes disks that boot; an empty one wants a CD-ROM to install from",
            );
        }
    }
}

/// The first KiB of a file.
fn start(path: &Path) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path).ok()?.take(1024).read_to_end(&mut start).ok()?;
    Some(start)
}

fn by_name(path: &str) -> Option<DiskFormat> {
    match path.rsplit('/').next()?.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
        "qcow2" | "qcow" => Some(DiskFormat::Qcow2),
        "img" | "raw" => Some(DiskFormat::Raw),
        _ => None,
    }
}

fn is_numbered(name: &str, types: &[&str]) -> bool {
    types.iter().any(|kind| {
        name.strip_prefix(kind)
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}

fn comes_after(switch: &Switch, at: Span) -> bool {
    switch.name.at.source == at.source && switch.name.at.start > at.start
}

fn has_flags(switch: &Switch) -> bool {
    use crate::SwitchOption::{LockedLladdr, Rdomain};
    switch.options.iter().any(|option| matches!(option.value, LockedLladdr | Rdomain(_)))
}

fn split_prefix(
    text: &str,
    default: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<(&str, u32), String> {
    let (address, length) = match text.rsplit_once('/') {
        None => (text, default),
        Some((address, length)) => {
            (address, length.parse().map_err(|_| "the length is no number".to_owned())?)
        }
    };
    if !range.contains(&length) {
        return Err(format!("its length must be {} to {}", range.start(), range.end()));
    }
    Ok((address, length))
}

/// An IPv4 prefix as 7.4 and later take it; the address may be cut short, as in `10/8`.
fn ipv4_prefix(text: &str) -> Result<(), String> {
    let (address, length) = split_prefix(text, 16, 1..=16)?;
    let mut octets = [0u8; 4];
    let parts: Vec<_> = address.split('.').collect();
    if parts.len() > 4 {
        return Err("it is no IPv4 address".to_owned());
    }
    for (octet, part) in octets.iter_mut().zip(parts) {
        *octet = part.parse().map_err(|_| "it is no IPv4 address".to_owned())?;
    }
    let bits = u32::from(Ipv4Addr::from(octets));
    if bits & (u32::MAX >> length) != 0 { Err("bits are set beyond its length".to_owned()) } else { Ok(()) }
}

fn ipv6_prefix(text: &str) -> Result<(), String> {
    let (address, length) = split_prefix(text, 64, 0..=64)?;
    let address: Ipv6Addr = address.parse().map_err(|_| "it is no IPv6 address".to_owned())?;
    let beyond = if length == 0 { u128::MAX } else { u128::MAX >> length };
    if u128::from(address) & beyond != 0 { Err("bits are set beyond its length".to_owned()) } else { Ok(()) }
}
