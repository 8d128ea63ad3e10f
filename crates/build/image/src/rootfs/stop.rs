//! Whether a guest answers `vmctl stop`.

use std::{io::Read, path::Path};

use crate::{
    error::{Error, Result},
    kernel::Kernel,
};

use super::contents::visit;

/// Where vmmcid's packages and other installations have it.
const DAEMON: [&str; 3] = ["usr/sbin/vmmcid", "sbin/vmmcid", "usr/local/sbin/vmmcid"];

/// Whether the kernel's configuration has the driver for vmmci, or the root file system in `archive` has vmmcid. The
/// configuration is beside the kernel, or in the archive's /boot.
pub(crate) fn is_answered(kernel: &Kernel, archive: &Path) -> Result<bool> {
    let mut answered = has_driver(&kernel.configuration());
    let installed = Path::new("boot").join(format!("config-{}", kernel.release()));
    visit(archive, |path, entry| {
        if path == installed {
            let mut text = String::new();
            entry.read_to_string(&mut text).map_err(Error::io("read", archive))?;
            answered |= has_driver(&text);
        }
        answered |= DAEMON.iter().any(|daemon| path == Path::new(daemon));
        Ok(())
    })?;
    Ok(answered)
}

fn has_driver(configuration: &str) -> bool {
    configuration.lines().any(|line| matches!(line, "CONFIG_OPENBSD_VMMCI=y" | "CONFIG_OPENBSD_VMMCI=m"))
}
