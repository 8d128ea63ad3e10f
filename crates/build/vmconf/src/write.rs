//! Configurations as text, in the form that people write.

use std::fmt::{Display, Formatter, Result};

use crate::{
    lexer::keyword,
    model::{BootDevice, InstanceOption, Interface, Owner, Statement, Switch, SwitchOption, Vm, VmOption},
    size::show_size,
};

/// In quotes.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str("\"")?;
        let mut last = ' ';
        for c in self.0.chars() {
            // A backslash is one, unless it is before a quote or a blank.
            if c == '"' || last == '\\' && matches!(c, ' ' | '\t') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
            last = c;
        }
        f.write_str("\"")
    }
}

/// Without quotes where it can do without.
struct Word<'a>(&'a str);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let plain = self.0.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, ':' | '_' | '/'))
            && self.0.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '/' | '.' | '-'))
            && keyword(self.0).is_none();
        if plain { f.write_str(self.0) } else { Quoted(self.0).fmt(f) }
    }
}

impl Display for Owner {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Uid(uid) => write!(f, "{uid}"),
            Self::Named { user, group } => {
                let colon = if group.is_some() { ":" } else { "" };
                let text = format!(
                    "{}{colon}{}",
                    user.as_deref().unwrap_or_default(),
                    group.as_deref().unwrap_or_default()
                );
                // A number in quotes is a name.
                Word(&text).fmt(f)
            }
        }
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::LocalPrefix(prefix) => writeln!(f, "local prefix {}", Quoted(prefix)),
            Self::LocalInet6(None) => writeln!(f, "local inet6"),
            Self::LocalInet6(Some(prefix)) => writeln!(f, "local inet6 prefix {}", Quoted(prefix)),
            Self::SocketOwner(owner) => writeln!(f, "socket owner {owner}"),
            Self::Agentx { context, path } => {
                f.write_str("agentx")?;
                if let Some(context) = context {
                    write!(f, " context {}", Quoted(context))?;
                }
                if let Some(path) = path {
                    write!(f, " path {}", Quoted(path))?;
                }
                writeln!(f)
            }
            Self::StaggeredStart { parallel, delay } => {
                writeln!(f, "staggered start parallel {parallel} delay {delay}")
            }
            Self::Switch(switch) => switch.fmt(f),
            Self::Vm(vm) => vm.fmt(f),
        }
    }
}

impl Display for Switch {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "switch {} {{", Quoted(&self.name))?;
        for option in &self.options {
            writeln!(f, "\t{}", option.value)?;
        }
        writeln!(f, "}}")
    }
}

impl Display for SwitchOption {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Enable(enable) => f.write_str(if *enable { "enable" } else { "disable" }),
            Self::Group(group) => write!(f, "group {}", Word(group)),
            Self::Interface(name) => write!(f, "interface {}", Word(name)),
            Self::LockedLladdr => f.write_str("locked lladdr"),
            Self::Rdomain(id) => write!(f, "rdomain {id}"),
            Self::Up(up) => f.write_str(if *up { "up" } else { "down" }),
        }
    }
}

impl Display for Vm {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match &self.parent {
            Some(parent) => writeln!(f, "vm {} instance {} {{", Quoted(parent), Quoted(&self.name))?,
            None => writeln!(f, "vm {} {{", Quoted(&self.name))?,
        }
        for option in &self.options {
            writeln!(f, "\t{}", option.value)?;
        }
        writeln!(f, "}}")
    }
}

impl Display for VmOption {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Enable(enable) => f.write_str(if *enable { "enable" } else { "disable" }),
            Self::Sev => f.write_str("sev"),
            Self::SevEs => f.write_str("seves"),
            Self::Disk { path, format } => {
                write!(f, "disk {}", Quoted(path))?;
                format.iter().try_for_each(|format| write!(f, " format {}", format.value))
            }
            Self::Interface(interface) => interface.fmt(f),
            Self::Boot(path) => write!(f, "boot {}", Quoted(path)),
            Self::BootDevice(device) => f.write_str(match device {
                BootDevice::Cdrom => "boot device cdrom",
                BootDevice::Disk => "boot device disk",
                BootDevice::Net => "boot device net",
            }),
            Self::Cdrom(path) => write!(f, "cdrom {}", Quoted(path)),
            Self::Interfaces(count) => write!(f, "interfaces {count}"),
            Self::Memory(bytes) => write!(f, "memory {}", show_size(*bytes)),
            Self::Owner(owner) => write!(f, "owner {owner}"),
            Self::AllowInstance(options) => {
                f.write_str("allow instance { ")?;
                for (count, option) in options.iter().enumerate() {
                    write!(f, "{}{option}", if count > 0 { ", " } else { "" })?;
                }
                f.write_str(" }")
            }
        }
    }
}

impl Display for Interface {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let mut options = Vec::new();
        if let Some(switch) = &self.switch {
            options.push(format!("switch {}", Quoted(switch)));
        }
        if let Some(group) = &self.group {
            options.push(format!("group {}", Word(group)));
        }
        if self.locked {
            options.push("locked".to_owned());
        }
        if self.locked || self.lladdr.is_some() {
            options.push("lladdr".to_owned());
        }
        if let Some(address) = &self.lladdr {
            options.push(address.value.to_string());
        }
        if let Some(id) = self.rdomain {
            options.push(format!("rdomain {id}"));
        }
        if let Some(up) = self.up {
            options.push(if up { "up" } else { "down" }.to_owned());
        }
        write!(f, "{}interface", if self.local { "local " } else { "" })?;
        if let Some(name) = &self.name {
            write!(f, " {}", Word(name))?;
        }
        if options.is_empty() { Ok(()) } else { write!(f, " {{ {} }}", options.join(" ")) }
    }
}

impl Display for InstanceOption {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Boot => f.write_str("boot"),
            Self::Memory => f.write_str("memory"),
            Self::Interface => f.write_str("interface"),
            Self::Disk => f.write_str("disk"),
            Self::Cdrom => f.write_str("cdrom"),
            Self::Instance => f.write_str("instance"),
            Self::Owner(owner) => write!(f, "owner {owner}"),
        }
    }
}
