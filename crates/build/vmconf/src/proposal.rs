//! What goes into vm.conf(5) for a disk image: a VM, or a template and its instances.

use vmd_release::Generation;

use crate::model::{
    DiskFormat, InstanceOption, Interface, Owner, Statement, Switch, SwitchOption, Vm, VmOption,
};

/// A disk image on this machine, and what becomes of it on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its path here.
    pub path: String,
    /// Its format here.
    pub format: DiskFormat,
    /// The format that it is to have on the host.
    pub on_host: DiskFormat,
}

/// What the guest's first network interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// There is none.
    None,
    /// A network of its own, with DHCP from vmd.
    Local,
    /// A virtual switch.
    Switch {
        /// The switch's name.
        name: String,
        /// What it is, if the switch is to be declared.
        declared: Option<NewSwitch>,
    },
}

/// A switch that is to be declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSwitch {
    /// The veb(4) or bridge(4) that it is.
    pub interface: String,
    /// The host's Ethernet interface whose network the guests join. Without one they have a network of their own, and
    /// the host forwards and translates.
    pub uplink: Option<String>,
}

/// The drivers of wireless interfaces, as the interfaces' names begin.
const WIRELESS: [&str; 33] = [
    "acx", "an", "ath", "athn", "atu", "bwfm", "bwi", "ipw", "iwi", "iwm", "iwn", "iwx", "malo", "mtw",
    "mwx", "otus", "pgt", "qwx", "qwz", "ral", "rsu", "rtw", "rtwn", "rum", "run", "uath", "upgt", "ural",
    "urtw", "urtwn", "wi", "wpi", "zyd",
];

/// Whether an interface of OpenBSD's is a wireless one, by its name. A bridge cannot have it as a port: an access point
/// takes frames of one address from each station.
pub fn is_wireless(interface: &str) -> bool {
    WIRELESS.contains(&interface.trim_end_matches(|c: char| c.is_ascii_digit()))
}

/// A VM that is proposed.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The VM's name.
    pub name: String,
    /// Bytes of memory.
    pub memory: i64,
    /// The disk that it boots from.
    pub disk: Disk,
    /// Bytes of an empty second disk, if there is to be one.
    pub data: Option<i64>,
    /// An ISO image here.
    pub cdrom: Option<String>,
    /// Its network.
    pub network: Network,
    /// Who may start and stop it.
    pub owner: Option<Owner>,
    /// Whether vmd starts it, or its instances, by itself.
    pub autostart: bool,
    /// Whether it is a template: vmd does not start it, and its owner may make instances of it.
    pub template: bool,
    /// The names of the instances to declare. A VM that has any is a template.
    pub instances: Vec<String>,
    /// The directory for images on the host.
    pub home: String,
    /// SSH keys to let in as root, as in an `authorized_keys` file.
    pub ssh_keys: Option<String>,
    /// Whether the guest answers `vmctl stop`: it has a driver for vmmci, or vmmcid. One without is killed by it.
    pub answers_stop: bool,
    /// The generations whose peculiarities are told.
    pub hosts: Vec<Generation>,
}

impl Proposal {
    /// A VM as vmd makes it by default, on a network of its own.
    pub fn new(name: impl Into<String>, disk: Disk) -> Self {
        Self {
            name: name.into(),
            memory: 512 << 20,
            disk,
            data: None,
            cdrom: None,
            network: Network::Local,
            owner: None,
            autostart: false,
            template: false,
            instances: Vec::new(),
            home: "/var/vmm".to_owned(),
            ssh_keys: None,
            answers_stop: true,
            hosts: Vec::new(),
        }
    }

    /// Whether the VM is a template.
    pub fn is_template(&self) -> bool {
        self.template || !self.instances.is_empty()
    }

    /// The VMs that run: the VM, or its instances.
    pub(crate) fn running(&self) -> Vec<&str> {
        if self.is_template() {
            self.instances.iter().map(String::as_str).collect()
        } else {
            vec![&self.name]
        }
    }

    /// The file on the host that becomes of one here.
    pub(crate) fn on_host(&self, path: &str) -> String {
        format!("{}/{}", self.home, path.rsplit('/').next().unwrap_or(path))
    }

    /// The image on the host, in the format that it has here.
    pub(crate) fn image(&self) -> String {
        self.on_host(&self.disk.path)
    }

    /// The same image in another format.
    pub(crate) fn converted(&self, format: DiskFormat) -> String {
        let image = self.image();
        let stem = image.rsplit_once('.').map_or(image.as_str(), |(stem, _)| stem);
        format!("{stem}.{}", format.extension())
    }

    /// The image that the VM runs.
    pub(crate) fn image_to_run(&self) -> String {
        if self.disk.on_host == self.disk.format { self.image() } else { self.converted(self.disk.on_host) }
    }

    /// The disk of an instance, which begins with what the template's image holds.
    pub(crate) fn instance_disk(&self, instance: &str) -> String {
        format!("{}/{instance}.qcow2", self.home)
    }

    /// The empty second disk of a VM or an instance.
    pub(crate) fn data_disk(&self, name: &str) -> String {
        format!("{}/{name}-data.qcow2", self.home)
    }

    /// What goes into vm.conf: the switch, if it is to be declared, the VM, and its instances.
    pub fn statements(&self) -> Vec<Statement> {
        let declared = match &self.network {
            Network::Switch { name, declared: Some(NewSwitch { interface, .. }) } => {
                let options = vec![SwitchOption::Interface(interface.as_str().into()).into()];
                Some(Statement::Switch(Switch { name: name.as_str().into(), options }))
            }
            _ => None,
        };
        let vms = std::iter::once(self.vm()).chain(self.instances.iter().map(|name| self.instance(name)));
        declared.into_iter().chain(vms.map(Statement::Vm)).collect()
    }

    fn vm(&self) -> Vm {
        let mut options = vec![
            VmOption::Enable(self.autostart && !self.is_template()),
            VmOption::Memory(self.memory),
            // Without a format vmd finds out by the first bytes, which the guest may write.
            disk_option(self.image_to_run(), self.disk.on_host),
        ];
        if self.data.is_some() && !self.is_template() {
            options.push(disk_option(self.data_disk(&self.name), DiskFormat::Qcow2));
        }
        options.extend(self.cdrom.as_ref().map(|cdrom| VmOption::Cdrom(self.on_host(cdrom).into())));
        options.extend(self.interface());
        options.extend(self.owner.clone().map(VmOption::Owner));
        if let (true, Some(owner)) = (self.is_template(), &self.owner) {
            options.push(VmOption::AllowInstance(vec![
                InstanceOption::Disk,
                InstanceOption::Memory,
                InstanceOption::Owner(owner.clone()),
            ]));
        }
        let options = options.into_iter().map(Into::into).collect();
        Vm { name: self.name.as_str().into(), parent: None, options }
    }

    /// An instance. It has an interface of its own, because a copied one has the template's address, and the owner,
    /// because a group is not inherited.
    fn instance(&self, name: &str) -> Vm {
        let mut options =
            vec![VmOption::Enable(self.autostart), disk_option(self.instance_disk(name), DiskFormat::Qcow2)];
        if self.data.is_some() {
            options.push(disk_option(self.data_disk(name), DiskFormat::Qcow2));
        }
        options.extend(self.interface());
        options.extend(self.owner.clone().map(VmOption::Owner));
        let options = options.into_iter().map(Into::into).collect();
        Vm { name: name.into(), parent: Some(self.name.as_str().into()), options }
    }

    fn interface(&self) -> Option<VmOption> {
        let interface = match &self.network {
            Network::None => return None,
            Network::Local => Interface { local: true, ..Interface::default() },
            Network::Switch { name, .. } => {
                Interface { switch: Some(name.as_str().into()), ..Interface::default() }
            }
        };
        Some(VmOption::Interface(interface))
    }
}

fn disk_option(path: String, format: DiskFormat) -> VmOption {
    VmOption::Disk { path: path.into(), format: Some(format.into()) }
}
