//! Output to a closed pipe, as in `vmmlinux … | head`.

use std::{
    io,
    path::Path,
    process::{Command, Output},
};

/// The program, for a user who runs no VM: with a runtime directory of its own.
fn vmmlinux(arguments: &str, runtime: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmmlinux"));
    command.args(arguments.split_whitespace()).env("XDG_RUNTIME_DIR", runtime);
    command
}

/// The writing end of a pipe whose reading end is closed.
fn closed_pipe() -> io::PipeWriter {
    io::pipe().unwrap().1
}

#[test]
fn a_closed_pipe_changes_neither_status_nor_errors() {
    let runtime = tempfile::tempdir().unwrap();
    let vmmlinux = |line| vmmlinux(line, runtime.path());
    for line in [
        "",
        "--help",
        "completions bash",
        "config list",
        "config audit ../../../kernel/config/audit.toml",
        "ctl --json",
        "ctl nobody",
        "doctor --quick",
        "run",
        "setup --list --for machine",
        "vmconf check Cargo.toml",
        "vmconf raw:x.img",
        "vmconf releases",
    ] {
        let read = vmmlinux(line).output().unwrap();
        let Output { status, stderr, .. } = vmmlinux(line).stdout(closed_pipe()).output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        assert_eq!(status, read.status, "vmmlinux {line}: {said}");
        assert_eq!(said, String::from_utf8_lossy(&read.stderr), "vmmlinux {line}");
        // As with `2>&1 | head`.
        let status = vmmlinux(line).stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap();
        assert_eq!(status, read.status, "vmmlinux {line}");
    }
}
