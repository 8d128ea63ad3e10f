//! Programs that nobody reads: `vmmlinux … | head`.

use std::{
    io,
    process::{Command, Output},
};

fn vmmlinux(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmmlinux"));
    command.args(arguments.split_whitespace());
    command
}

/// A pipe's writing end whose reader has left.
fn unread() -> io::PipeWriter {
    io::pipe().unwrap().1
}

#[test]
fn what_nobody_reads_changes_nothing() {
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
        let Output { status, stderr, .. } = vmmlinux(line).stdout(unread()).output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        assert_eq!(status, read.status, "vmmlinux {line}: {said}");
        assert_eq!(said, String::from_utf8_lossy(&read.stderr), "vmmlinux {line}");
        // As in `2>&1 | head`.
        let status = vmmlinux(line).stdout(unread()).stderr(unread()).status().unwrap();
        assert_eq!(status, read.status, "vmmlinux {line}");
    }
}
