//! `vmmlinux` without a subcommand on an OpenBSD host: suggests the next step.

use std::{path::Path, process::ExitCode};

use support::sandbox::Access;

/// vmd's configuration.
const VM_CONF: &str = "/etc/vm.conf";

/// The file that is looked for.
pub(crate) fn access() -> Access<'static> {
    Access::Read(vec![Path::new(VM_CONF)])
}

/// Prints whether the host has a vm.conf and the next steps.
pub(crate) fn run() -> miette::Result<ExitCode> {
    let (found, check) = if Path::new(VM_CONF).is_file() {
        (VM_CONF, "  vmmlinux vmconf check        check it, and what it names, for Linux guests\n")
    } else {
        ("no vm.conf yet", "")
    };
    support::print(&format!(
        "vmmlinux {}: Linux as a guest of OpenBSD's vmm(4)/vmd(8)\n\nThis host:\n  vmd       {found}\n\nNext:\n{check}  \
         vmmlinux vmconf IMAGE        write the stanza and the commands for a disk image\n  \
         vmmlinux config audit FILE   audit a kernel's configuration for vmd\n  \
         vmmlinux --help              all subcommands\n",
        env!("CARGO_PKG_VERSION")
    ))?;
    Ok(ExitCode::SUCCESS)
}
