//! The programs that do what no library does: found, run, and their failures told.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::error::{Error, Result};

/// Programs this crate may run, each with the Debian package that has it.
const PACKAGES: &[(&str, &str)] = &[
    ("apt-get", "apt"),
    ("debugfs", "e2fsprogs"),
    ("dpkg-deb", "dpkg"),
    ("fakeroot", "fakeroot"),
    ("gzip", "gzip"),
    ("ldd", "libc-bin"),
    ("mattrib", "mtools"),
    ("mke2fs", "e2fsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("newuidmap", "uidmap"),
    ("partx", "util-linux"),
    ("qemu-img", "qemu-utils"),
    ("resize2fs", "e2fsprogs"),
    ("sfdisk", "fdisk"),
    ("syslinux", "syslinux"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// Where programs are looked for.
#[derive(Debug, Clone)]
pub struct Tools {
    directories: Vec<PathBuf>,
}

impl Default for Tools {
    /// `PATH`, and the system directories that an ordinary user's `PATH` leaves out.
    fn default() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut directories: Vec<_> = env::split_paths(&path).collect();
        for system in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
            if !directories.iter().any(|d| d == Path::new(system)) {
                directories.push(system.into());
            }
        }
        Self { directories }
    }
}

impl Tools {
    /// Looks in these directories only.
    pub fn in_directories(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }

    /// Checks that all of `names` are there, so that the user hears of every missing one at once and before anything
    /// was made.
    pub(crate) fn require(&self, names: &[&'static str]) -> Result<()> {
        let tools: Vec<_> = names
            .iter()
            .filter(|name| self.find(name).is_none())
            .map(|name| (*name, package(name)))
            .collect();
        if tools.is_empty() { Ok(()) } else { Err(Error::MissingTools { tools }) }
    }

    pub(crate) fn find(&self, name: &str) -> Option<PathBuf> {
        self.directories.iter().map(|d| d.join(name)).find(|p| p.is_file())
    }

    /// A command for the program, in the C locale and with `PATH` as we search it.
    pub(crate) fn command(&self, name: &'static str) -> Result<Command> {
        let program =
            self.find(name).ok_or_else(|| Error::MissingTools { tools: vec![(name, package(name))] })?;
        let mut command = Command::new(program);
        let path =
            env::join_paths(&self.directories).unwrap_or_else(|_| OsString::from("/usr/bin:/usr/sbin"));
        command.env("PATH", path).env("LC_ALL", "C").stdin(Stdio::null());
        Ok(command)
    }
}

fn package(name: &'static str) -> &'static str {
    PACKAGES.iter().find(|(tool, _)| *tool == name).map_or(name, |(_, package)| package)
}

/// Runs to the end. A failure is an error that carries the last lines of what the program printed; a full file
/// system is recognised in them, because no program tells it by its exit status.
pub(crate) fn run(
    command: &mut Command,
    tool: &'static str,
    doing: &'static str,
    output: &Path,
) -> Result<Output> {
    tracing::debug!(?command, "{doing}");
    let program = PathBuf::from(command.get_program());
    let result = command.output().map_err(Error::io("run", &program))?;
    if result.status.success() {
        return Ok(result);
    }
    let mut said = String::from_utf8_lossy(&result.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&result.stderr));
    if said.contains("No space left on device") || said.contains("Disk quota exceeded") {
        return Err(Error::NoSpace { path: output.to_owned() });
    }
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let said = lines[lines.len().saturating_sub(15)..].join("\n");
    Err(Error::ToolFailed { tool, doing, status: result.status, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_tool_is_named_with_its_package() {
        let empty = tempfile::tempdir().unwrap();
        let tools = Tools::in_directories(vec![empty.path().into()]);
        let Err(error) = tools.require(&["mke2fs", "syslinux", "debugfs"]) else {
            panic!("found in an empty directory")
        };
        assert_eq!(error.to_string(), "not installed: mke2fs, syslinux, debugfs");
        let help = miette::Diagnostic::help(&error).unwrap().to_string();
        assert_eq!(help, "on Debian: apt-get install e2fsprogs syslinux");
    }

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        match run(&mut command, "sh", "testing", Path::new("x")) {
            Err(Error::ToolFailed { said, status, .. }) => {
                assert_eq!(said, "out\nerr");
                assert_eq!(status.code(), Some(3));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_file_system_is_recognised_in_what_a_program_said() {
        let mut command = Command::new("sh");
        command.env("LC_ALL", "C").args(["-c", "cat /etc/passwd > /dev/full"]);
        assert!(matches!(run(&mut command, "sh", "testing", Path::new("x")), Err(Error::NoSpace { .. })));
    }
}
