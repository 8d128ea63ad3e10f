//! A run of the kernel's make: output to a log, steps to the progress display, a failure explained.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::Command,
};

use rustix::process::Pid;
use signal_hook::consts::SIGINT;
use support::{
    file,
    interrupt::Interrupt,
    make::kernel_make,
    progress::Progress,
    run::{self, tail},
};

use crate::make::{
    error::{MakeError, Result},
    log,
    toolchain::Toolchain,
};

/// The kernel's make, for one tree and build directory.
#[derive(Debug)]
pub(crate) struct Make<'a> {
    pub(crate) tree: &'a Path,
    /// make's `O=`.
    pub(crate) objects: &'a Path,
    pub(crate) toolchain: &'a Toolchain,
    /// Variables for the command line, including those of the toolchain.
    pub(crate) vars: &'a [(String, String)],
    /// SOURCE_DATE_EPOCH: the time of files in packages, in seconds since 1970.
    pub(crate) epoch: i64,
    pub(crate) jobs: usize,
    pub(crate) log: &'a Path,
}

/// The steps of a run of make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Steps {
    /// Steps taken.
    pub(crate) done: u64,
}

impl Make<'_> {
    /// Runs make for `targets` to its end or until SIGINT, SIGTERM or SIGHUP arrives.
    ///
    /// `before` is the number of steps done by earlier runs, `total` the expected number in all (0: unknown).
    pub(crate) fn run(
        &self,
        targets: &[&str],
        vars: &[(&str, String)],
        (before, total): (u64, u64),
        progress: &dyn Progress,
    ) -> Result<Steps> {
        let variables = self.vars.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let variables = variables.chain(vars.iter().map(|(name, value)| (*name, value.as_str())));
        let mut make = kernel_make(self.tree, Some(self.objects), variables);
        make.env("PATH", &self.toolchain.path).env("SOURCE_DATE_EPOCH", self.epoch.to_string());
        // V=1 writes every command to the log, so that the one that failed can be shown.
        make.arg(format!("-j{}", self.jobs)).arg("V=1").args(targets);
        self.watch(make, targets, before, total, progress)
    }

    /// Runs make in a process group of its own, so that Ctrl-C reaches only this process, which passes it on to the
    /// whole group.
    fn watch(
        &self,
        mut make: Command,
        targets: &[&str],
        before: u64,
        total: u64,
        progress: &dyn Progress,
    ) -> Result<Steps> {
        let spawn = |source| run::Error::Spawn { program: "make".to_owned(), source };
        let (mut log, start) = self.open_log(&make)?;
        let (reader, writer) = std::io::pipe().map_err(spawn)?;
        make.stdout(writer.try_clone().map_err(spawn)?).stderr(writer).process_group(0);
        tracing::debug!(?make, "run");
        let interrupt = Interrupt::catch().map_err(spawn)?;
        let mut child = make.spawn().map_err(spawn)?;
        // Closes this process's write ends of the pipe: the pipe ends when make's group has exited.
        drop(make);
        let mut done = before;
        let mut written = Ok(());
        let status = interrupt.while_running(Pid::from_child(&child), || {
            for line in BufReader::new(reader).split(b'\n') {
                let Ok(line) = line else { break };
                if written.is_ok() {
                    written = log.write_all(&line).and_then(|()| log.write_all(b"\n"));
                }
                if let Some(file) = log::step(&String::from_utf8_lossy(&line)) {
                    done += 1;
                    progress.step(done, total.max(if total > 0 { done } else { 0 }), file);
                }
            }
            child.wait().map_err(spawn)
        })?;
        if interrupt.is_asked() || status.signal() == Some(SIGINT) {
            return Err(MakeError::Interrupted { log: self.log.to_owned() });
        }
        written.map_err(|e| file::Error::new("write", self.log, e))?;
        if status.success() {
            return Ok(Steps { done: done - before });
        }
        Err(self.explain(targets, start))
    }

    /// Opens the log for appending and writes the command to it. Returns the log's length before, in bytes.
    fn open_log(&self, make: &Command) -> Result<(File, u64)> {
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(self.log)
            .map_err(|e| file::Error::new("open the log", self.log, e))?;
        let start = log.metadata().map_err(|e| file::Error::new("read", self.log, e))?.len();
        writeln!(log, "$ {}", run::command_line(make)).map_err(|e| file::Error::new("write", self.log, e))?;
        Ok((log, start))
    }

    /// The error of a failed make: the first failed target, its command and the end of the log.
    fn explain(&self, targets: &[&str], start: u64) -> MakeError {
        let text = std::fs::read(self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[usize::try_from(start).unwrap_or(0).min(text.len())..])
            .into_owned();
        let failed = text.lines().find_map(log::failed_target);
        let command = failed.and_then(|target| log::command_for(&text, target));
        let disk_full = text.contains("No space left on device") || text.contains("File size limit exceeded");
        MakeError::Failed {
            target: failed.map_or_else(|| targets.join(" "), str::to_owned),
            command: command.unwrap_or("not in the log").to_owned(),
            output: tail(&log::messages(&text), 25).into(),
            log: self.log.to_owned(),
            help: disk_full.then(|| {
                "the disk is full: free some space, then run the same command again; the build continues"
                    .to_owned()
            }),
        }
    }
}
