//! A stanza for a disk image, and the steps to a running guest.

use std::fmt::Write as _;

use vmd_release::Generation;

use crate::{
    model::{DiskFormat, Interface, Owner, Statement, Switch, SwitchOption, Vm, VmOption},
    release::notes,
    size::show_size,
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
        /// The veb(4) or bridge(4) that it is, if the switch is to be declared.
        interface: Option<String>,
    },
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
    /// Whether vmd starts it by itself.
    pub autostart: bool,
    /// The directory for images on the host.
    pub home: String,
    /// SSH keys to let in as root, as in an `authorized_keys` file.
    pub ssh_keys: Option<String>,
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
            home: "/var/vmm".to_owned(),
            ssh_keys: None,
            hosts: Vec::new(),
        }
    }

    /// The file on the host that becomes of one here.
    fn on_host(&self, path: &str) -> String {
        format!("{}/{}", self.home, path.rsplit('/').next().unwrap_or(path))
    }

    /// The image on the host, in the format that it has here.
    fn image(&self) -> String {
        self.on_host(&self.disk.path)
    }

    /// The same image in another format.
    fn converted(&self, format: DiskFormat) -> String {
        let image = self.image();
        let stem = image.rsplit_once('.').map_or(image.as_str(), |(stem, _)| stem);
        format!("{stem}.{}", format.extension())
    }

    /// The image that the VM runs.
    fn disk(&self) -> String {
        if self.disk.on_host == self.disk.format { self.image() } else { self.converted(self.disk.on_host) }
    }

    fn data_disk(&self) -> String {
        format!("{}/{}-data.qcow2", self.home, self.name)
    }

    /// What goes into vm.conf: the switch, if it is to be declared, and the VM.
    pub fn statements(&self) -> Vec<Statement> {
        let mut statements = Vec::new();
        let mut options = vec![VmOption::Enable(self.autostart), VmOption::Memory(self.memory)];
        // vmd finds qcow2 out by itself; said aloud, a raw disk's contents cannot change its mind.
        options.push(VmOption::Disk {
            path: self.disk().into(),
            format: (self.disk.on_host == DiskFormat::Qcow2).then(|| DiskFormat::Qcow2.into()),
        });
        if self.data.is_some() {
            options.push(VmOption::Disk {
                path: self.data_disk().into(),
                format: Some(DiskFormat::Qcow2.into()),
            });
        }
        if let Some(cdrom) = &self.cdrom {
            options.push(VmOption::Cdrom(self.on_host(cdrom).into()));
        }
        match &self.network {
            Network::None => {}
            Network::Local => {
                options.push(VmOption::Interface(Interface { local: true, ..Interface::default() }));
            }
            Network::Switch { name, interface } => {
                if let Some(interface) = interface {
                    let options = vec![SwitchOption::Interface(interface.as_str().into()).into()];
                    statements.push(Statement::Switch(Switch { name: name.as_str().into(), options }));
                }
                let switch = Some(name.as_str().into());
                options.push(VmOption::Interface(Interface { switch, ..Interface::default() }));
            }
        }
        options.extend(self.owner.clone().map(VmOption::Owner));
        let options = options.into_iter().map(Into::into).collect();
        statements.push(Statement::Vm(Vm { name: self.name.as_str().into(), parent: None, options }));
        statements
    }

    /// Everything to do on this machine and on the host, as a commented script, and what differs between hosts.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.copy(&mut text);
        text.push_str(
            "\n# Everything else on that host, as root. Once:\nfw_update vmm\nrcctl enable vmd && rcctl start vmd\n\n",
        );
        self.images(&mut text);
        self.network(&mut text);
        text.push_str("# In /etc/vm.conf:\n");
        for statement in self.statements() {
            let _ = write!(text, "{statement}");
        }
        self.start(&mut text);
        self.keys(&mut text);
        for host in &self.hosts {
            let older = if *host == Generation::V7_7 { " and older" } else { "" };
            let _ = writeln!(text, "\n# OpenBSD {host}{older}:");
            for note in notes(*host) {
                text.push_str(&wrapped(note));
            }
        }
        text
    }

    fn copy(&self, text: &mut String) {
        let Self { home, .. } = self;
        let (path, image) = (&self.disk.path, self.image());
        text.push_str("# To the OpenBSD host:\n");
        let _ = match self.disk.format {
            DiskFormat::Raw => writeln!(
                text,
                "# Compressed, the holes weigh nothing; it arrives in full. A qcow2 file stays small.\n\
                 gzip -c {path} | ssh root@openbsd 'mkdir -p {home} && gunzip > {image}'"
            ),
            DiskFormat::Qcow2 => {
                writeln!(text, "ssh root@openbsd mkdir -p {home}\nscp {path} root@openbsd:{home}/")
            }
        };
        if let Some(cdrom) = &self.cdrom {
            let _ = writeln!(text, "scp {cdrom} root@openbsd:{home}/");
        }
    }

    fn images(&self, text: &mut String) {
        if self.disk.on_host != self.disk.format {
            let _ = writeln!(
                text,
                "# The image in the format that it shall have:\nvmctl create -i {}:{} {}:{}\n",
                self.disk.format,
                self.image(),
                self.disk.on_host,
                self.disk()
            );
        }
        if let Some(size) = self.data {
            let _ = writeln!(
                text,
                "# A second disk, empty; the guest sees it as /dev/vdb:\nvmctl create -s {} qcow2:{}\n",
                show_size(size),
                self.data_disk()
            );
        }
    }

    fn network(&self, text: &mut String) {
        match &self.network {
            Network::None => {}
            Network::Local => text.push_str(
                "# vmd answers the guest's DHCP itself. To let it out, forward and translate on the host:\n\
                 sysctl net.inet.ip.forwarding=1\n\
                 echo net.inet.ip.forwarding=1 >> /etc/sysctl.conf\n\
                 echo 'pass out on egress from 100.64.0.0/10 to any nat-to (egress)' >> /etc/pf.conf && pfctl -f /etc/pf.conf\n\
                 # The guest's name server is the host then. If none runs there (unbound), have pf send the questions on:\n\
                 # pass in proto { udp tcp } from 100.64.0.0/10 to any port domain rdr-to 9.9.9.9 port domain\n\n",
            ),
            Network::Switch { interface: Some(interface), .. } => {
                let _ = writeln!(
                    text,
                    "# The switch, with the network that the host's first interface is on (em0: see ifconfig):\n\
                     printf 'add em0\\nup\\n' > /etc/hostname.{interface} && sh /etc/netstart {interface}\n"
                );
            }
            Network::Switch { name, interface: None } => {
                let _ = writeln!(
                    text,
                    "# The guest's address belongs to the network of a switch; vm.conf(5) shows how to declare \"{name}\".\n"
                );
            }
        }
    }

    fn start(&self, text: &mut String) {
        let Self { name, .. } = self;
        // Reloading is root's (control.c).
        let start =
            if self.owner.is_some() { "# Start it, as the owner if you like:" } else { "# Start it:" };
        let _ = writeln!(
            text,
            "\n# Does vmd take it? Then it shall:\nvmd -n && vmctl reload\n\n{start}\nvmctl start -c {name}"
        );
        let flag = match &self.network {
            Network::None => String::new(),
            Network::Local => " -L".to_owned(),
            Network::Switch { name, .. } => format!(" -n {name}"),
        };
        let mut disks = format!(" -d {}:{}", self.disk.on_host, self.disk());
        if self.data.is_some() {
            let _ = write!(disks, " -d qcow2:{}", self.data_disk());
        }
        if let Some(cdrom) = &self.cdrom {
            let _ = write!(disks, " -r {}", self.on_host(cdrom));
        }
        let _ = writeln!(
            text,
            "\n# Or without the stanza:\nvmctl start -c{flag} -m {}{disks} {name}\n\n\
             # To leave the console: ~. (~~. over SSH). To stop the guest in order:\nvmctl stop {name}",
            show_size(self.memory)
        );
        if self.disk.on_host == self.disk.format {
            let other = match self.disk.format {
                DiskFormat::Raw => DiskFormat::Qcow2,
                DiskFormat::Qcow2 => DiskFormat::Raw,
            };
            let _ = writeln!(
                text,
                "\n# The other format, should it suit you better:\nvmctl create -i {}:{} {other}:{}",
                self.disk.format,
                self.image(),
                self.converted(other)
            );
        }
    }

    fn keys(&self, text: &mut String) {
        let Some(keys) = &self.ssh_keys else { return };
        text.push_str(
            "\n# An image that is made with `vmmlinux image --ssh-key` has the keys in it. In one that exists, once, on\n\
             # its console as root (the guest needs an SSH server; the minimal one has none):\n\
             install -d -m 700 /root/.ssh\ncat >> /root/.ssh/authorized_keys <<'END'\n",
        );
        for key in keys.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let _ = writeln!(text, "{key}");
        }
        text.push_str("END\n");
    }
}

/// A note as a comment of lines that fit a terminal.
fn wrapped(note: &str) -> String {
    let mut text = String::from("# -");
    let mut column = 3;
    for word in note.split_whitespace() {
        let length = word.chars().count() + 1;
        if column + length > 110 {
            text.push_str("\n#  ");
            column = 4;
        }
        text.push(' ');
        text.push_str(word);
        column += length;
    }
    text.push('\n');
    text
}
