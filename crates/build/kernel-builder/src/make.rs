//! Running the kernel's make: its output to a log, its steps to the progress display, its end understood.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    error::{Error, Result, tail},
    progress::Progress,
    run,
    toolchain::Toolchain,
};

/// Variables that would leak from the environment (a make that runs us, a developer's shell) into the kernel's build.
const FOREIGN: &[&str] = &[
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
    "MAKEFILES",
    "ARCH",
    "SRCARCH",
    "CROSS_COMPILE",
    "CC",
    "HOSTCC",
    "LLVM",
    "LLVM_IAS",
    "O",
    "V",
    "C",
    "W",
    "M",
    "KCFLAGS",
    "KAFLAGS",
    "KCPPFLAGS",
    "KRUSTFLAGS",
    "HOSTCFLAGS",
    "HOSTLDFLAGS",
    "HOSTRUSTFLAGS",
    "LOCALVERSION",
    "KCONFIG_CONFIG",
    "KCONFIG_ALLCONFIG",
    "KBUILD_OUTPUT",
    "KBUILD_VERBOSE",
    "KBUILD_BUILD_VERSION",
    "INSTALL_MOD_PATH",
    "INSTALL_MOD_STRIP",
    "INSTALL_PATH",
    "RUSTFLAGS",
    "CFLAGS",
    "LDFLAGS",
];

/// The kernel's make, for one tree and build directory.
#[derive(Debug)]
pub(crate) struct Make<'a> {
    pub(crate) tree: &'a Path,
    /// make's `O=`.
    pub(crate) objects: &'a Path,
    pub(crate) toolchain: &'a Toolchain,
    /// All variables for the command line, the toolchain's included.
    pub(crate) vars: &'a [(String, String)],
    /// Seconds since 1970, for what make's package targets pack.
    pub(crate) epoch: i64,
    pub(crate) jobs: usize,
    pub(crate) log: &'a Path,
}

/// How far a make got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Steps {
    /// Steps that this run took.
    pub(crate) done: u64,
}

impl Make<'_> {
    /// Runs make for some targets, to its end or until a signal asks us to stop.
    ///
    /// `before` steps count as done, `total` is what is expected in all (0: unknown).
    pub(crate) fn run(
        &self,
        targets: &[&str],
        vars: &[(&str, String)],
        (before, total): (u64, u64),
        progress: &dyn Progress,
    ) -> Result<Steps> {
        let mut make = run::command("make");
        make.env("PATH", &self.toolchain.path).env("SOURCE_DATE_EPOCH", self.epoch.to_string());
        for name in FOREIGN {
            make.env_remove(name);
        }
        make.arg("-C").arg(self.tree).arg(format!("O={}", self.objects.display()));
        // V=1 puts every command into the log, which is how the one that failed can be shown.
        make.arg(format!("-j{}", self.jobs)).arg("V=1");
        make.args(self.vars.iter().map(|(name, value)| format!("{name}={value}")));
        make.args(vars.iter().map(|(name, value)| format!("{name}={value}")));
        make.args(targets);
        self.watch(make, targets, before, total, progress)
    }

    fn watch(
        &self,
        mut make: Command,
        targets: &[&str],
        before: u64,
        total: u64,
        progress: &dyn Progress,
    ) -> Result<Steps> {
        let spawn = |source| Error::Spawn { program: "make".to_owned(), source };
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(self.log)
            .map_err(|e| Error::io("open the log", self.log, e))?;
        let start = log.metadata().map_err(|e| Error::io("read", self.log, e))?.len();
        writeln!(log, "$ {}", run::command_line(&make)).map_err(|e| Error::io("write", self.log, e))?;
        let (reader, writer) = std::io::pipe().map_err(spawn)?;
        make.stdout(writer.try_clone().map_err(spawn)?).stderr(writer);
        // Its own process group: a Ctrl-C comes to us alone, and all that make has started gets it from us at once.
        make.process_group(0);
        tracing::debug!(?make, "run");
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(spawn)?;
        let mut child = make.spawn().map_err(spawn)?;
        // The pipe's write ends must be make's alone, or its end would not be seen.
        drop(make);
        let group = Pid::from_child(&child);
        let asked_to_stop = Arc::new(AtomicBool::new(false));
        let handle = signals.handle();
        let forward = {
            let asked = Arc::clone(&asked_to_stop);
            std::thread::spawn(move || {
                for _ in signals.forever() {
                    asked.store(true, Ordering::SeqCst);
                    // make removes the targets it was making and ends; only a group that has ended cannot be told.
                    let _ = kill_process_group(group, Signal::INT);
                }
            })
        };
        let mut done = before;
        let mut written = Ok(());
        for line in BufReader::new(reader).split(b'\n') {
            let Ok(line) = line else { break };
            if written.is_ok() {
                written = log.write_all(&line).and_then(|()| log.write_all(b"\n"));
            }
            if let Some(file) = step(&String::from_utf8_lossy(&line)) {
                done += 1;
                progress.step(done, total.max(if total > 0 { done } else { 0 }), file);
            }
        }
        let status = child.wait().map_err(spawn)?;
        handle.close();
        let _ = forward.join();
        let steps = Steps { done: done - before };
        if asked_to_stop.load(Ordering::SeqCst) || status.signal() == Some(SIGINT) {
            return Err(Error::Interrupted { log: self.log.to_owned() });
        }
        written.map_err(|e| Error::io("write", self.log, e))?;
        if status.success() {
            return Ok(steps);
        }
        Err(self.explain(targets, start))
    }

    /// Why make failed: the first target that did, the command that was to make it, the end of the log.
    fn explain(&self, targets: &[&str], start: u64) -> Error {
        let text = std::fs::read(self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[usize::try_from(start).unwrap_or(0).min(text.len())..])
            .into_owned();
        let failed = text.lines().find_map(failed_target);
        let command = failed.and_then(|target| command_for(&text, target));
        let disk_full = text.contains("No space left on device") || text.contains("File size limit exceeded");
        Error::Make {
            target: failed.map_or_else(|| targets.join(" "), str::to_owned),
            command: command.unwrap_or("not in the log").to_owned(),
            output: tail(&messages(&text), 25).into(),
            log: self.log.to_owned(),
            help: disk_full.then(|| {
                "the disk is full: free some space, then run the same command again; the build continues"
                    .to_owned()
            }),
        }
    }
}

/// The file of a line that starts a step: `  CC      init/main.o`, or with V=1 `# CC [M]  init/main.o`.
fn step(line: &str) -> Option<&str> {
    let line = line.strip_prefix("  ").or_else(|| line.strip_prefix("# "))?;
    let mut words = line.split_whitespace();
    let tool = words.next()?;
    let is_tool =
        tool.len() >= 2 && tool.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    // Between tool and file may stand a short flag: `[M]`, `L`.
    let (first, second) = (words.next()?, words.next());
    let file = second.unwrap_or(first);
    (is_tool && (second.is_none() || first.len() <= 3) && words.next().is_none()).then_some(file)
}

/// The target of `make[3]: *** [../scripts/Makefile.build:229: init/main.o] Error 1`.
fn failed_target(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("*** [")?;
    let (inside, result) = rest.rsplit_once("] ")?;
    // A directory or phony target failed only because something in it did.
    let target = inside.rsplit(": ").next()?;
    (result.starts_with("Error") || result.starts_with("Killed")).then_some(target)
}

/// The last command in the log that was to make a target.
fn command_for<'a>(log: &'a str, target: &str) -> Option<&'a str> {
    let makes = |line: &&str| {
        let line = line.trim();
        !line.starts_with(['#', '$'])
            && !line.contains("***")
            && line.split([' ', ';', '"', '\'']).any(|word| word == target)
    };
    let spells_output = |line: &&str| line.contains(&format!("-o {target}"));
    let announced = || {
        let lines: Vec<&str> = log.lines().collect();
        let at =
            lines.iter().rposition(|line| line.starts_with("# ") && line.ends_with(&format!(" {target}")))?;
        lines.get(at + 1).copied()
    };
    let commands = || log.lines().filter(makes);
    commands().rfind(spells_output).or_else(|| commands().next_back()).or_else(announced).map(str::trim)
}

/// The log without the commands that went well: messages of compilers and of make.
fn messages(log: &str) -> String {
    // A command is indented by two blanks; so are lines of source that a compiler quotes, after their number.
    let is_command = |line: &str| {
        let mut after = line.strip_prefix("  ").unwrap_or_default().chars();
        after.next().is_some_and(|c| !c.is_whitespace() && !c.is_ascii_digit() && c != '|')
    };
    let is_message = |line: &&str| {
        !(line.is_empty() || line.starts_with(['#', '$']) || line.starts_with("set -e;") || is_command(line))
    };
    let lines: Vec<&str> =
        log.lines().filter(is_message).map(|line| line.get(..300).unwrap_or(line)).collect();
    lines.join("\n")
}

/// The log's place in a build directory.
pub(crate) fn log_path(build: &Path) -> PathBuf {
    build.join("build.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
$ make -C tree O=obj V=1 all
# CC      init/main.o
  gcc -Wp,-MMD,init/.main.o.d -c -o init/main.o ../init/main.c
# CC      init/version.o
  gcc -c -o init/version.o ../init/version.c
../init/main.c: In function 'start_kernel':
../init/main.c:7:2: error: expected ';' before '}' token
    7 |  return
      |        ^
make[3]: *** [../scripts/Makefile.build:229: init/main.o] Error 1
make[2]: *** [../Makefile:1300: init] Error 2
";

    #[test]
    fn the_first_failed_target_and_its_command_are_named() {
        let target = LOG.lines().find_map(failed_target).expect("a target failed");
        assert_eq!(target, "init/main.o");
        assert_eq!(
            command_for(LOG, target),
            Some("gcc -Wp,-MMD,init/.main.o.d -c -o init/main.o ../init/main.c")
        );
    }

    #[test]
    fn a_command_that_does_not_spell_its_output_is_the_one_after_the_announcement() {
        let log = "# HOSTRUSTC scripts/gen\n  rustc --out-dir scripts/ gen.rs\nerror: no\n";
        assert_eq!(command_for(log, "scripts/gen"), Some("rustc --out-dir scripts/ gen.rs"));
    }

    #[test]
    fn messages_leave_out_commands_and_keep_what_compilers_say() {
        let messages = messages(LOG);
        assert!(!messages.contains("gcc"), "{messages}");
        assert!(messages.contains("    7 |  return\n      |        ^"), "{messages}");
    }

    #[test]
    fn steps_are_seen_with_and_without_v1() {
        assert_eq!(step("  CC      init/main.o"), Some("init/main.o"));
        assert_eq!(step("  CC [M]  fs/ext4/inode.o"), Some("fs/ext4/inode.o"));
        assert_eq!(step("# RUSTC L rust/core.o"), Some("rust/core.o"));
        assert_eq!(step("# LD      vmlinux"), Some("vmlinux"));
        assert_eq!(step("  gcc -c -o init/main.o"), None);
        assert_eq!(step("make[1]: Entering directory 'obj'"), None);
    }
}
