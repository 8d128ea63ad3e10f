//! The programs that do what no library does: found, run, and their failures told.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use rustix::process::Pid;
use support::{interrupt::Interrupt, run};

use crate::error::{Error, Result};

/// Programs this crate may run, each with the Debian package that has it.
const PACKAGES: &[(&str, &str)] = &[
    ("apt-get", "apt"),
    ("bsdcat", "libarchive-tools"),
    ("debugfs", "e2fsprogs"),
    ("dpkg-deb", "dpkg"),
    ("fakeroot", "fakeroot"),
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
    ("xorriso", "xorriso"),
];

/// Where programs are looked for, and how they are run.
#[derive(Debug, Clone)]
pub struct Tools {
    directories: Vec<PathBuf>,
    interrupt: Option<Arc<Interrupt>>,
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
        Self::in_directories(directories)
    }
}

impl Tools {
    /// Looks in these directories only.
    pub fn in_directories(directories: Vec<PathBuf>) -> Self {
        Self { directories, interrupt: None }
    }

    /// The same tools, whose runs end when a signal asks this process to stop; it is caught as long as they exist.
    pub(crate) fn interruptible(&self) -> Result<Self> {
        let interrupt =
            Interrupt::catch().map_err(Error::io("catch signals for", Path::new("this process")))?;
        Ok(Self { interrupt: Some(Arc::new(interrupt)), ..self.clone() })
    }

    /// Fails if a signal has asked this process to stop.
    pub(crate) fn check(&self) -> Result<()> {
        let asked = self.interrupt.as_ref().is_some_and(|interrupt| interrupt.is_asked());
        if asked { Err(Error::Interrupted) } else { Ok(()) }
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
        let found = self.directories.iter().map(|d| d.join(name)).find(|p| p.is_file())?;
        std::path::absolute(found).ok()
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

    /// A command for the program in the directory of `file`, where [`name`] names it. Names of directories, which are
    /// the user's, mean something to some programs: a colon to tar, a question mark to e2fsprogs.
    pub(crate) fn command_beside(&self, program: &'static str, file: &Path) -> Result<Command> {
        let mut command = self.command(program)?;
        if let Some(directory) = file.parent() {
            command.current_dir(directory);
        }
        Ok(command)
    }

    /// Runs a command to its end. A failure is an error that carries the last lines of what the program printed; a full
    /// file system is recognised in them, because no program tells it by its exit status.
    pub(crate) fn run(
        &self,
        command: &mut Command,
        tool: &'static str,
        doing: &'static str,
        output: &Path,
    ) -> Result<Output> {
        self.wait(command.stdout(Stdio::piped()), tool, doing, output)
    }

    /// Runs a command to its end, as [`Self::run`] does, with its standard output in a file.
    pub(crate) fn run_into(
        &self,
        file: File,
        command: &mut Command,
        tool: &'static str,
        doing: &'static str,
        output: &Path,
    ) -> Result<()> {
        self.wait(command.stdout(file), tool, doing, output)?;
        Ok(())
    }

    fn wait(
        &self,
        command: &mut Command,
        tool: &'static str,
        doing: &'static str,
        output: &Path,
    ) -> Result<Output> {
        tracing::debug!(?command, "{doing}");
        self.check()?;
        let program = PathBuf::from(command.get_program());
        let child =
            command.stderr(Stdio::piped()).process_group(0).spawn().map_err(Error::io("run", &program))?;
        let group = Pid::from_child(&child);
        let result = match &self.interrupt {
            Some(interrupt) => interrupt.while_running(group, || child.wait_with_output()),
            None => child.wait_with_output(),
        };
        let result = result.map_err(Error::io("run", &program))?;
        self.check()?;
        if result.status.success() {
            return Ok(result);
        }
        let mut said = String::from_utf8_lossy(&result.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&result.stderr));
        if said.contains("No space left on device") || said.contains("Disk quota exceeded") {
            return Err(Error::NoSpace { path: output.to_owned() });
        }
        let said = run::last(said.lines().filter(|line| !line.trim().is_empty()), 15);
        Err(Error::ToolFailed { tool, doing, status: result.status, said })
    }
}

/// The name of a file in its directory.
pub(crate) fn name(file: &Path) -> &OsStr {
    file.file_name().unwrap_or_default()
}

fn package(name: &'static str) -> &'static str {
    PACKAGES.iter().find(|(tool, _)| *tool == name).map_or(name, |(_, package)| package)
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
        match Tools::default().run(&mut command, "sh", "testing", Path::new("x")) {
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
        let result = Tools::default().run(&mut command, "sh", "testing", Path::new("x"));
        assert!(matches!(result, Err(Error::NoSpace { .. })));
    }
}
