//! A configuration as data.

pub use vmd_release::{BootDevice, DiskFormat};

use crate::{
    finding::Finding,
    mac::MacAddress,
    source::{Source, Span, Spanned},
};

/// A configuration that was read.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The file and those that it includes.
    pub sources: Vec<Source>,
    /// What it says, with what it includes in its place.
    pub statements: Vec<Spanned<Statement>>,
    /// What could not be read, and what reading already shows to be wrong.
    pub findings: Vec<Finding>,
}

impl Config {
    /// The VMs, in order.
    pub fn vms(&self) -> impl Iterator<Item = &Vm> {
        self.statements.iter().filter_map(|statement| match &statement.value {
            Statement::Vm(vm) => Some(vm),
            _ => None,
        })
    }

    /// The switches, in order.
    pub fn switches(&self) -> impl Iterator<Item = &Switch> {
        self.statements.iter().filter_map(|statement| match &statement.value {
            Statement::Switch(switch) => Some(switch),
            _ => None,
        })
    }
}

/// A section or a global setting.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// `local prefix ADDRESS/LENGTH`: where the addresses of local interfaces come from.
    LocalPrefix(Spanned<String>),
    /// `local inet6 [prefix ADDRESS/LENGTH]`: local interfaces have IPv6, too.
    LocalInet6(Option<Spanned<String>>),
    /// `socket owner`: whose the control socket is.
    SocketOwner(Owner),
    /// `agentx`: metrics for snmpd(8).
    Agentx {
        /// SNMPv3's context.
        context: Option<Spanned<String>>,
        /// The socket of the master.
        path: Option<Spanned<String>>,
    },
    /// `staggered start parallel N delay SECONDS`.
    StaggeredStart {
        /// VMs to start at a time.
        parallel: i64,
        /// Seconds between them.
        delay: i64,
    },
    /// `switch NAME { … }`.
    Switch(Switch),
    /// `vm NAME { … }`.
    Vm(Vm),
}

/// A virtual switch.
#[derive(Debug, Clone, PartialEq)]
pub struct Switch {
    /// Its name.
    pub name: Spanned<String>,
    /// What its block says.
    pub options: Vec<Spanned<SwitchOption>>,
}

/// An option of a switch.
#[derive(Debug, Clone, PartialEq)]
pub enum SwitchOption {
    /// `enable` or `disable`.
    Enable(bool),
    /// Interface group of its members.
    Group(Spanned<String>),
    /// The bridge(4) or veb(4) that it is.
    Interface(Spanned<String>),
    /// Frames with other source addresses than the interface's are dropped.
    LockedLladdr,
    /// Routing domain.
    Rdomain(i64),
    /// `up` or `down`.
    Up(bool),
}

impl Switch {
    /// Its bridge(4) or veb(4).
    pub fn interface(&self) -> Option<&Spanned<String>> {
        self.options.iter().rev().find_map(|option| match &option.value {
            SwitchOption::Interface(name) => Some(name),
            _ => None,
        })
    }

    /// Whether vmd sets it up.
    pub fn enabled(&self) -> bool {
        let last = self.options.iter().rev().find_map(|option| match option.value {
            SwitchOption::Enable(enable) => Some(enable),
            _ => None,
        });
        last.unwrap_or(true)
    }
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Vm {
    /// Its name.
    pub name: Spanned<String>,
    /// The VM that it is an instance of.
    pub parent: Option<Spanned<String>>,
    /// What its block says.
    pub options: Vec<Spanned<VmOption>>,
}

/// An option of a VM.
#[derive(Debug, Clone, PartialEq)]
pub enum VmOption {
    /// `enable` or `disable`: whether it is started with vmd.
    Enable(bool),
    /// AMD's Secure Encrypted Virtualization.
    Sev,
    /// The same, with encrypted registers.
    SevEs,
    /// A disk image.
    Disk {
        /// The file.
        path: Spanned<String>,
        /// Its format; found out from the file if missing.
        format: Option<Spanned<DiskFormat>>,
    },
    /// A network interface.
    Interface(Interface),
    /// `boot PATH`: an OpenBSD kernel or a BIOS image.
    Boot(Spanned<String>),
    /// `boot device`.
    BootDevice(BootDevice),
    /// An ISO image.
    Cdrom(Spanned<String>),
    /// `interfaces N`: at least so many.
    Interfaces(i64),
    /// Bytes of memory.
    Memory(i64),
    /// Who may start and stop it and use its console.
    Owner(Owner),
    /// `allow instance`: what those who make instances of it may choose.
    AllowInstance(Vec<InstanceOption>),
}

impl Vm {
    /// Its disks, in order.
    pub fn disks(&self) -> impl Iterator<Item = (&Spanned<String>, Option<&Spanned<DiskFormat>>)> {
        self.options.iter().filter_map(|option| match &option.value {
            VmOption::Disk { path, format } => Some((path, format.as_ref())),
            _ => None,
        })
    }

    /// Its network interfaces, in order.
    pub fn interfaces(&self) -> impl Iterator<Item = (&Interface, Span)> {
        self.options.iter().filter_map(|option| match &option.value {
            VmOption::Interface(interface) => Some((interface, option.at)),
            _ => None,
        })
    }

    /// The kernel or BIOS that is loaded instead of the default firmware.
    pub fn boot(&self) -> Option<&Spanned<String>> {
        self.options.iter().find_map(|option| match &option.value {
            VmOption::Boot(path) => Some(path),
            _ => None,
        })
    }

    /// Its CD-ROM; an empty path is none.
    pub fn cdrom(&self) -> Option<&Spanned<String>> {
        self.options.iter().find_map(|option| match &option.value {
            VmOption::Cdrom(path) if !path.is_empty() => Some(path),
            _ => None,
        })
    }

    /// The last owner that is named.
    pub fn owner(&self) -> Option<Spanned<&Owner>> {
        self.options.iter().rev().find_map(|option| match &option.value {
            VmOption::Owner(owner) => Some(Spanned::new(owner, option.at)),
            _ => None,
        })
    }

    /// The number of interfaces that there are at least.
    pub fn least_interfaces(&self) -> Option<Spanned<i64>> {
        self.options.iter().find_map(|option| match option.value {
            VmOption::Interfaces(count) => Some(Spanned::new(count, option.at)),
            _ => None,
        })
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Interface {
    /// vmd makes up its network and answers DHCP.
    pub local: bool,
    /// `tap`, or one tap(4) interface.
    pub name: Option<Spanned<String>>,
    /// The switch that it is on.
    pub switch: Option<Spanned<String>>,
    /// Interface group.
    pub group: Option<Spanned<String>>,
    /// The guest's address, instead of one that vmd makes up.
    pub lladdr: Option<Spanned<MacAddress>>,
    /// Frames with another source address are dropped.
    pub locked: bool,
    /// Routing domain.
    pub rdomain: Option<i64>,
    /// `up` or `down`.
    pub up: Option<bool>,
}

/// A user, a group, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A user's number.
    Uid(i64),
    /// Names.
    Named {
        /// The user.
        user: Option<String>,
        /// The group.
        group: Option<String>,
    },
}

impl Owner {
    /// Reads `user`, `user:group`, `:group` or a number.
    pub fn parse(text: &str) -> Self {
        if let Ok(uid) = text.parse() {
            return Self::Uid(uid);
        }
        Self::named(text)
    }

    pub(crate) fn named(text: &str) -> Self {
        let some = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        match text.split_once(':') {
            Some((user, group)) => Self::Named { user: some(user), group: some(group) },
            None => Self::Named { user: some(text), group: None },
        }
    }
}

/// The options that a creator of instances may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceOption {
    /// The kernel or BIOS.
    Boot,
    /// The memory.
    Memory,
    /// The network interfaces.
    Interface,
    /// The disks.
    Disk,
    /// The ISO image.
    Cdrom,
    /// Further instances.
    Instance,
    /// Who that is.
    Owner(Owner),
}
