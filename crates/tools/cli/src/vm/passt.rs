//! passt(1): the host's network for a guest, without privileges.

use std::{path::PathBuf, process::Command, time::Instant};

use miette::{IntoDiagnostic, WrapErr, miette};
use vmm_control::place;

/// Starts passt for a machine and returns its socket. passt ends by itself when the machine hangs up.
pub(crate) fn start(name: &str) -> miette::Result<PathBuf> {
    let socket = place::directory()?.join(format!("{name}.passt"));
    let _ = std::fs::remove_file(&socket);
    let begin = Instant::now();
    // It goes to the background when its socket is there.
    let output = Command::new("passt")
        .args(["--quiet", "--one-off", "--socket"])
        .arg(&socket)
        .output()
        .into_diagnostic()
        .wrap_err("cannot run passt, which connects `-i=user` to the host's network")
        .map_err(|report| {
            miette!(help = "install the package passt, or use -i=local or --accel nested", "{report:?}")
        })?;
    if !output.status.success() {
        return Err(miette!(
            "passt failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    tracing::debug!(elapsed = ?begin.elapsed(), "passt is up");
    Ok(socket)
}
