//! passt(1): the host's network for a guest, without privileges.

use std::{path::PathBuf, process::Command, time::Instant};

use vmm_control::runtime_dir;

use crate::{Error, Result};

/// Starts passt for the VM `name` and returns its socket. passt exits when the VM closes the connection.
pub(crate) fn start(name: &str) -> Result<PathBuf> {
    let socket = runtime_dir::directory()?.join(format!("{name}.passt"));
    let _ = std::fs::remove_file(&socket);
    let begin = Instant::now();
    // passt forks to the background once the socket exists: this call returns then.
    let output = Command::new("passt")
        .args(["--quiet", "--one-off", "--socket"])
        .arg(&socket)
        .output()
        .map_err(|source| Error::NoPasst { source })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Passt { status: output.status, message });
    }
    tracing::debug!(elapsed = ?begin.elapsed(), "passt is up");
    Ok(socket)
}
