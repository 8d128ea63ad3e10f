//! What vmd makes of the VMs of a configuration when it registers them, one after the other.
//!
//! The rules are those of `vm_register()` and `vm_instance()` (vmd.c of OpenBSD 7.8) for a configuration file, which
//! root owns: permissions to make instances are not asked for.
//!
//! | what | rule |
//! |---|---|
//! | name | taken: a VM is passed over, and `boot` of the one that has it becomes that of the later block; an instance is refused |
//! | template | registered before its instances; one that was refused does not exist |
//! | memory, CD-ROM | inherited, and may be set anew |
//! | disks | not inherited; none of the template's |
//! | `boot`, `boot device`, `sev` | not inherited |
//! | interfaces | those beyond the instance's own are copied, addresses and names of tap(4) included |
//! | addresses | every address that an instance has must be that of every interface of the template |
//! | tap(4) | no name of the template's, and `tap` is a name: what is copied collides with itself |
//! | owner | a user other than root must be the template's; the group must be the template's, and none is a group of its own |
//! | `allow instance` | not in instances, but for its `owner`, which is ignored |
//! | to boot | a disk or a CD-ROM; `boot` alone is not enough |

use std::collections::HashMap;

use crate::{
    accounts::{Accounts, Id},
    finding::Finding,
    host_files::HostFiles,
    model::{InstanceOption, Owner, Vm, VmOption},
    source::{Span, Spanned},
};

/// An interface's address.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    /// As written.
    Given([u8; 6]),
    /// Made up by vmd for this interface of this VM.
    MadeUp(String, usize),
}

#[derive(Debug, Clone)]
struct Nic {
    /// `None` until vmd makes one up.
    address: Option<Address>,
    tap: Option<String>,
}

/// A VM with what it has of its own and what it inherits.
#[derive(Debug, Clone)]
pub(crate) struct Registered {
    user: Id,
    group: Id,
    nics: Vec<Nic>,
    disks: Vec<String>,
    cdrom: bool,
    boot: bool,
    /// Interfaces that are copies of the template's.
    pub(crate) copied: usize,
    /// Parts of the block could not be read.
    incomplete: bool,
}

impl Registered {
    /// Network interfaces, inherited ones included.
    pub(crate) fn interfaces(&self) -> usize {
        self.nics.len()
    }

    /// Whether it has a CD-ROM, of its own or inherited.
    pub(crate) fn has_cdrom(&self) -> bool {
        self.cdrom
    }
}

/// What vmd does with a VM.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The VM, whether vmd takes it or not.
    pub(crate) vm: Registered,
    /// Why vmd refuses it, and what surprises.
    pub(crate) findings: Vec<Finding>,
}

/// The VMs that vmd has registered so far.
#[derive(Debug)]
pub(crate) struct Registry<'a> {
    accounts: &'a Accounts,
    files: Option<&'a HostFiles>,
    taken: HashMap<String, Registered>,
}

impl<'a> Registry<'a> {
    pub(crate) fn new(accounts: &'a Accounts, files: Option<&'a HostFiles>) -> Self {
        Self { accounts, files, taken: HashMap::new() }
    }

    /// Registers the next VM. With `incomplete`, parts of its block could not be read, and what is missing is not held
    /// against it.
    pub(crate) fn register(&mut self, vm: &Vm, incomplete: bool) -> Outcome {
        let mut registered = self.own(vm, incomplete);
        let instance = vm.parent.as_ref().map(|parent| self.instance(vm, parent, &mut registered));
        let mut findings = match instance {
            Some(Err(refusal)) => return Outcome { vm: registered, findings: vec![refusal] },
            Some(Ok(findings)) => findings,
            None => Vec::new(),
        };
        // Only a VM comes here with a name that is taken.
        if self.taken.contains_key(vm.name.as_str()) {
            return Outcome { vm: registered, findings };
        }
        if !incomplete && let Some(refusal) = nothing_to_boot(vm, &registered) {
            findings.push(refusal);
            return Outcome { vm: registered, findings };
        }
        if !is_valid_name(&vm.name) {
            return Outcome { vm: registered, findings };
        }
        for (index, nic) in registered.nics.iter_mut().enumerate() {
            nic.address.get_or_insert_with(|| Address::MadeUp(vm.name.value.clone(), index));
        }
        self.taken.insert(vm.name.value.clone(), registered.clone());
        Outcome { vm: registered, findings }
    }

    /// The VM as its block has it.
    fn own(&self, vm: &Vm, incomplete: bool) -> Registered {
        let owner = vm.owner();
        let nic = |interface: &crate::Interface| Nic {
            address: interface.lladdr.filter(|at| at.0 != [0; 6]).map(|at| Address::Given(at.0)),
            tap: interface.name.as_ref().map(|name| name.value.clone()),
        };
        let mut nics: Vec<_> = vm.interfaces().map(|(interface, _)| nic(interface)).collect();
        let least = vm.least_interfaces().and_then(|least| usize::try_from(least.value).ok()).unwrap_or(0);
        nics.resize(nics.len().max(least.min(crate::MAX_INTERFACES)), Nic { address: None, tap: None });
        Registered {
            user: self.accounts.user(owner.map(|owner| owner.value)),
            group: self.accounts.group(owner.map(|owner| owner.value)),
            nics,
            disks: vm.disks().map(|(path, _)| self.real_path(path)).collect(),
            cdrom: vm.cdrom().is_some(),
            boot: vm.boot().is_some(),
            copied: 0,
            incomplete,
        }
    }

    /// The path by which vmd knows an image: after all links where the host's files are at hand, else without `//`,
    /// `.` and `..`.
    pub(crate) fn real_path(&self, path: &str) -> String {
        self.files.and_then(|files| files.real_path(path)).unwrap_or_else(|| tidy(path))
    }

    /// Has an instance inherit from its template. Fails with the reason why vmd refuses it.
    fn instance(
        &self,
        vm: &Vm,
        parent: &Spanned<String>,
        instance: &mut Registered,
    ) -> Result<Vec<Finding>, Finding> {
        let name = &vm.name;
        let Some(template) = self.taken.get(parent.as_str()) else {
            let message = format!("there is no VM \"{}\" above to make an instance of", parent.value);
            return Err(Finding::error(parent.at, message, "not registered by vmd")
                .help("a VM is declared before its instances, and vmd must have taken it"));
        };
        if self.taken.contains_key(name.as_str()) {
            let message = format!("there is a VM \"{}\" already", name.value);
            return Err(
                Finding::error(name.at, message, "vmd refuses the instance").help("give it another name")
            );
        }
        for ((path, _), disk) in vm.disks().zip(&instance.disks) {
            if template.disks.contains(disk) {
                let message = format!("{} is a disk of the template \"{}\", too", path.value, parent.value);
                return Err(Finding::error(path.at, message, "vmd refuses the instance").help(
                    "make a disk of its own: vmctl create -b BASE qcow2:DISK shares what is not written",
                ));
            }
        }
        let mut findings = Vec::new();
        inherit_interfaces(vm, parent, template, instance)?;
        if instance.copied > 0 && !template.incomplete {
            let message =
                format!("\"{}\" has the address of \"{}\" on the network", name.value, parent.value);
            findings.push(Finding::warning(name.at, message, "the template's interface is copied").help(
                "give the instance an `interface` of its own, without lladdr; all instances without one have this address",
            ));
        }
        instance.cdrom |= template.cdrom;
        inherit_owner(vm, template, instance, &mut findings)?;
        let permits = |option: &InstanceOption| !matches!(option, InstanceOption::Owner(_));
        for option in &vm.options {
            if let VmOption::AllowInstance(options) = &option.value
                && options.iter().any(permits)
            {
                return Err(Finding::error(
                    option.at,
                    "an instance cannot change who may make instances of what",
                    "vmd refuses the instance",
                )
                .help("say it in the template: instances have its permissions if it has `allow instance { instance }`"));
            }
        }
        if template.boot && !instance.boot {
            findings.push(Finding::note(
                name.at,
                "an instance does not inherit `boot`",
                "starts with the BIOS",
            ));
        }
        Ok(findings)
    }
}

/// Copies the template's interfaces beyond the instance's own, and compares addresses and names as vmd does.
fn inherit_interfaces(
    vm: &Vm,
    parent: &Spanned<String>,
    template: &Registered,
    instance: &mut Registered,
) -> Result<(), Finding> {
    let own = instance.nics.len();
    instance.nics.extend(template.nics.iter().skip(own).cloned());
    instance.copied = instance.nics.len() - own;
    if template.incomplete {
        return Ok(());
    }
    let places: Vec<_> = vm.interfaces().collect();
    for (index, nic) in instance.nics.iter().enumerate() {
        let copied = index >= own;
        let (lladdr, tap) = places.get(index).map_or((None, None), |(interface, _)| {
            (interface.lladdr.as_ref().map(|at| at.at), interface.name.as_ref().map(|name| name.at))
        });
        if let Some(address) = &nic.address
            && template.nics.iter().any(|other| other.address.as_ref() != Some(address))
        {
            let (label, help) = if copied {
                (
                    "a copied interface has an address of its own",
                    "vmd compares each with all of the template's: give the instance as many interfaces as the template has",
                )
            } else {
                (
                    "not the address of every interface of the template",
                    "leave the address away: vmd makes one up. A fixed one needs a VM that is not an instance",
                )
            };
            let message = format!("vmd refuses this instance of \"{}\" for its address", parent.value);
            return Err(Finding::error(lladdr.unwrap_or(vm.name.at), message, label).help(help));
        }
        if let Some(name) = nic.tap.as_ref().filter(|name| !name.is_empty())
            && template.nics.iter().any(|other| other.tap.as_ref() == Some(name))
        {
            let message = format!("the template \"{}\" names the interface {name}, too", parent.value);
            let help = if copied {
                "vmd copies the name and refuses it then: give the instance an `interface` of its own"
            } else {
                "leave the name away: vmd takes the next free tap(4)"
            };
            return Err(
                Finding::error(tap.unwrap_or(vm.name.at), message, "vmd refuses the instance").help(help)
            );
        }
    }
    Ok(())
}

/// Has an instance inherit user and group, or compares them.
fn inherit_owner(
    vm: &Vm,
    template: &Registered,
    instance: &mut Registered,
    findings: &mut Vec<Finding>,
) -> Result<(), Finding> {
    let at = vm.owner().map_or(vm.name.at, |owner| owner.at);
    let pairs = [
        ("user", &mut instance.user, &template.user, "name the template's owner, or none"),
        (
            "group",
            &mut instance.group,
            &template.group,
            "repeat the template's `owner`: an instance without a group does not inherit one",
        ),
    ];
    for (what, own, parents, help) in pairs {
        if *own == Id::Number(0) {
            own.clone_from(parents);
            continue;
        }
        // The user is inherited if there is none, and so is never compared as missing.
        match own.is(parents) {
            Some(true) => {}
            Some(false) => {
                let message = format!("the instance's {what} is not the template's");
                return Err(Finding::error(at, message, "vmd refuses the instance").help(help));
            }
            None => findings.push(
                Finding::warning(
                    at,
                    format!("vmd refuses the instance unless its {what} is the template's"),
                    "a name here and a number there",
                )
                .help("write the same in both, or check with --root and the host's /etc"),
            ),
        }
    }
    Ok(())
}

/// Why vmd finds nothing to boot from.
fn nothing_to_boot(vm: &Vm, registered: &Registered) -> Option<Finding> {
    let has_devices = vm.options.iter().any(|option| {
        use VmOption::{Boot, Cdrom, Disk, Interface, Interfaces, Memory};
        matches!(option.value, Boot(_) | Cdrom(_) | Disk { .. } | Interface(_) | Interfaces(_) | Memory(_))
    });
    if has_devices && (registered.cdrom || !registered.disks.is_empty()) {
        return None;
    }
    let message = format!("\"{}\" has nothing to boot", vm.name.value);
    let (label, help) = match &vm.parent {
        Some(_) if registered.cdrom => (
            "no device and no memory of its own",
            "vmd looks at the instance's own options first: give it a disk, an interface or memory",
        ),
        Some(_) => {
            ("disks are not inherited", "give the instance a disk: vmctl create -b BASE qcow2:DISK makes one")
        }
        None if registered.boot => (
            "`boot` alone, without disk or CD-ROM",
            "vmd refuses it when the VM is registered, and `vmd -n` does not notice: add a disk",
        ),
        None => ("no disk, no CD-ROM", "a Linux guest boots from a disk: `vmmlinux image` makes one"),
    };
    Some(Finding::error(vm.name.at, message, label).help(help))
}

/// Whether vmd takes a VM with this name.
pub(crate) fn is_valid_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty() && !name.starts_with(['-', '.', '_']) && name.chars().all(good)
}

/// An absolute path without `//`, `.` and `..`; a relative one begins at `/`.
fn tidy(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The place of the option that names an owner, for each owner of a VM.
pub(crate) fn owners(vm: &Vm) -> impl Iterator<Item = (&Owner, Span)> {
    vm.options.iter().flat_map(|option| {
        let owners: Vec<_> = match &option.value {
            VmOption::Owner(owner) => vec![owner],
            VmOption::AllowInstance(options) => options
                .iter()
                .filter_map(|option| match option {
                    InstanceOption::Owner(owner) => Some(owner),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        owners.into_iter().map(|owner| (owner, option.at))
    })
}
