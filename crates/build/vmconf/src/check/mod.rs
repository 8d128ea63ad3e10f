//! Judging a configuration: what vmd refuses, and what a Linux guest suffers from.

mod image;
mod prefix;
mod vm;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
};

use vmd_release::Generation;

use crate::{
    accounts::Accounts,
    finding::Finding,
    host_files::HostFiles,
    model::{Config, Owner, Statement, Switch, SwitchOption},
    registry::{Registry, is_valid_name, owners},
    source::{Span, Spanned},
};
use prefix::{ipv4_prefix, ipv6_prefix};

/// Names of VMs have at most so many bytes (`VM_NAME_MAX`, less the end).
const LONGEST_NAME: usize = 63;
/// Names of network interfaces have at most so many bytes (`IF_NAMESIZE`, less the end).
const LONGEST_INTERFACE: usize = 15;

/// How to judge.
#[derive(Debug, Clone, Default)]
pub struct Check {
    /// The generations that the file is for; without any, what older ones lack is not mentioned.
    pub hosts: Vec<Generation>,
    /// The host's root directory: images and owners are looked up below it.
    pub root: Option<PathBuf>,
}

/// Everything that is wrong with a configuration: what was found when it was read, and what judging it finds.
/// In the order of the files. Its time is proportional to the size of the configuration.
pub fn check(config: &Config, options: &Check) -> Vec<Finding> {
    let files = options.root.as_deref().map(HostFiles::new);
    let accounts = files.as_ref().map(Accounts::of).unwrap_or_default();
    let mut judge = Judge { config, options, files: files.as_ref(), findings: config.findings.clone() };
    judge.globals();
    let switches = judge.switches();
    judge.names();
    judge.addresses();
    judge.accounts(&accounts);
    let spoiled = spoiled(config);
    let mut registry = Registry::new(&accounts, files.as_ref());
    judge.shared_disks(&registry);
    for (index, statement) in config.statements.iter().enumerate() {
        if let Statement::Vm(vm) = &statement.value {
            let outcome = registry.register(vm, spoiled.contains(&index));
            judge.findings.extend(outcome.findings);
            judge.vm(vm, &outcome.vm, &switches, statement.at);
        }
    }
    judge.findings.sort_by_key(|finding| (finding.at.source, finding.at.start, finding.severity));
    judge.findings
}

/// The statements in which something could not be read.
fn spoiled(config: &Config) -> HashSet<usize> {
    let mut starts: Vec<_> =
        config.statements.iter().enumerate().map(|(index, at)| (at.at.source, at.at.start, index)).collect();
    starts.sort_unstable();
    let holding = |finding: &Finding| {
        let at = finding.at;
        let after = starts.partition_point(|(source, start, _)| (*source, *start) <= (at.source, at.start));
        let (source, _, index) = *starts.get(after.checked_sub(1)?)?;
        (source == at.source && at.start <= config.statements[index].at.end).then_some(index)
    };
    config.findings.iter().filter_map(holding).collect()
}

struct Judge<'a> {
    config: &'a Config,
    options: &'a Check,
    files: Option<&'a HostFiles>,
    findings: Vec<Finding>,
}

impl<'a> Judge<'a> {
    fn error(&mut self, at: Span, message: impl Into<String>, label: impl Into<String>, help: &str) {
        self.found(Finding::error(at, message, label), help);
    }

    fn warning(&mut self, at: Span, message: impl Into<String>, label: impl Into<String>, help: &str) {
        self.found(Finding::warning(at, message, label), help);
    }

    fn note(&mut self, at: Span, message: impl Into<String>, label: impl Into<String>, help: &str) {
        self.found(Finding::note(at, message, label), help);
    }

    fn found(&mut self, finding: Finding, help: &str) {
        self.findings.push(if help.is_empty() { finding } else { finding.help(help) });
    }

    /// Looks owners up in the host's files.
    fn accounts(&mut self, accounts: &Accounts) {
        if self.files.is_none() {
            return;
        }
        let named = self.config.statements.iter().flat_map(|statement| match &statement.value {
            Statement::SocketOwner(owner) => vec![(owner, statement.at)],
            Statement::Vm(vm) => owners(vm).collect(),
            _ => Vec::new(),
        });
        let named: Vec<(&Owner, Span)> = named.collect();
        if let Some((_, at)) = named.first()
            && !accounts.are_known()
        {
            let message = "/etc/passwd or /etc/group of the host cannot be read";
            self.note(*at, message, "owners are not looked up", "--root names the host's root directory");
        }
        for (owner, at) in named {
            if let Some((what, name)) = accounts.unknown(owner) {
                self.error(at, format!("the host has no {what} \"{name}\""), "vmd refuses the file", "");
            }
        }
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
                    "name a veb(4); `vmmlinux vmconf -i NAME=veb0 IMAGE` prints how to make one without cutting the host off",
                ),
                Some(_) => {}
            }
            for option in &switch.options {
                match &option.value {
                    SwitchOption::Group(group) => self.group(group),
                    SwitchOption::Rdomain(id) => self.rdomain(*id, option.at),
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
                format!("`{}` cannot be the name of an interface group", group.value),
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
            if !is_valid_name(name) {
                self.error(
                    name.at,
                    format!("\"{}\" cannot be the name of a VM", name.escape_debug()),
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
            // An instance with a name that is taken is refused.
            if !seen.insert(name.as_str()) && vm.parent.is_none() {
                self.warning(
                    name.at,
                    format!("there is a VM \"{}\" already", name.value),
                    "vmd passes over this one",
                    "give it another name. The first one's `boot` becomes that of this block, or none",
                );
            }
        }
    }

    /// vmd locks the images that it opens: of two VMs with the same one, the second does not start.
    fn shared_disks(&mut self, registry: &Registry) {
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        for vm in self.config.vms() {
            for (path, _) in vm.disks() {
                // Of a template and its instance vmd refuses the instance.
                if let Some(other) = seen.insert(registry.real_path(path), &vm.name) {
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
}

fn is_numbered(name: &str, types: &[&str]) -> bool {
    types.iter().any(|kind| {
        name.len() <= LONGEST_INTERFACE
            && name
                .strip_prefix(kind)
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}

fn comes_after(switch: &Switch, at: Span) -> bool {
    switch.name.at.source == at.source && switch.name.at.start > at.start
}

fn has_flags(switch: &Switch) -> bool {
    use SwitchOption::{LockedLladdr, Rdomain};
    switch.options.iter().any(|option| matches!(option.value, LockedLladdr | Rdomain(_)))
}
