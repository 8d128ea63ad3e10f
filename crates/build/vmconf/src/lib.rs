//! vm.conf(5), the configuration of OpenBSD's vmd(8): read as vmd reads it, judged for Linux guests, and written.
//!
//! - [`read`] takes a file and what it includes, and goes on after an error, so that all of them are found at once.
//! - [`check()`] judges what was read: what vmd refuses, and what a Linux guest suffers from.
//! - [`Proposal`] writes a stanza and the steps of vmctl(8) for a disk image.
//! - [`notes`] says what differs from one generation of vmd to the next.
//!
//! The grammar is that of OpenBSD 7.8. Those of 7.6 and 7.7 lack `seves`, older ones `sev`, too; that is judged by
//! the check, not by the reader.

mod accounts;
mod check;
mod finding;
mod host_files;
mod lexer;
mod mac;
mod model;
mod network;
mod parser;
mod proposal;
mod registry;
mod release;
mod script;
mod shell;
mod size;
mod source;
mod ssh_keys;
#[cfg(test)]
mod tests;
mod write;

pub use check::{Check, check};
pub use finding::{Finding, Located, Severity};
pub use mac::MacAddress;
pub use model::{
    BootDevice, Config, DiskFormat, InstanceOption, Interface, Owner, Statement, Switch, SwitchOption, Vm,
    VmOption,
};
pub use parser::{read, read_text};
pub use proposal::{Disk, Network, NewSwitch, Proposal, is_wireless};
pub use release::{NEWEST_GRAMMAR, notes};
pub use shell::Unwritable;
pub use size::{MAX_MEMORY, parse_size, show_size};
pub use source::{Place, Source, Span, Spanned, printable};
pub use ssh_keys::{SshKeys, SshKeysError};

/// Disks that a VM can have (`VM_MAX_DISKS_PER_VM`).
pub const MAX_DISKS: usize = 4;
/// Network interfaces that a VM can have (`VM_MAX_NICS_PER_VM`).
pub const MAX_INTERFACES: usize = 4;
