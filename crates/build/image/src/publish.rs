//! Outputs: checked before the work, moved to their places after it.

use std::{fs, io, path::Path};

use tempfile::TempPath;

use crate::error::{Error, Result};

/// How the names of scratch directories begin.
pub(crate) const SCRATCH: &str = ".vmmlinux-image-";

/// Refuses an output that exists, unless with `force`, and names that cannot be told to a user or to vmd.
pub(crate) fn check_output(output: &Path, force: bool) -> Result<()> {
    let name = output.to_string_lossy();
    let bad = |why: &str| Error::setting("path for an image", &name, why);
    if output.to_str().is_none() {
        Err(bad("it is not UTF-8, and vm.conf(5) cannot be sure to have it"))
    } else if name.chars().any(char::is_control) {
        Err(bad("it has control characters"))
    } else if !force && fs::symlink_metadata(output).is_ok() {
        Err(Error::OutputExists { path: output.to_owned() })
    } else {
        Ok(())
    }
}

/// The directory of an output.
pub(crate) fn directory(output: &Path) -> &Path {
    match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Moves the finished file to its place; without `force` never over another one, however late that one came.
pub(crate) fn publish(finished: &Path, output: &Path, force: bool) -> Result<()> {
    let finished = TempPath::try_from_path(finished).map_err(Error::io("write", output))?;
    let moved = if force { finished.persist(output) } else { finished.persist_noclobber(output) };
    moved.map_err(|failed| match failed.error.kind() {
        io::ErrorKind::AlreadyExists => Error::OutputExists { path: output.to_owned() },
        _ => Error::io("write", output)(failed.error),
    })
}
