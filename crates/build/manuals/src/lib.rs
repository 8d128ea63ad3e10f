//! Manual pages made from the definition of a command line.

use std::{fs, path::Path};

use support::file::{Error, Result};

/// Writes the manual pages of a command and its subcommands: vmmlinux.1, vmmlinux-run.1 and so on. Creates the directory.
pub fn write(command: clap::Command, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::new("create", dir, e))?;
    // The pages of `help` would be empty.
    clap_mangen::generate_to(command.disable_help_subcommand(true), dir)
        .map_err(|e| Error::new("write manual pages to", dir, e))
}
