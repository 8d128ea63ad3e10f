//! `vmmlinux run --detach`: a background process that runs the VM and outlives the terminal.

use std::{
    env,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::fs::{MemfdFlags, memfd_create};
use vmm_control::{Answer, Client, Command as ControlCommand};

use crate::{Error, Result};

/// Set in the background process to the VM's name.
const VARIABLE: &str = "VMMLINUX_DETACHED";

/// How often the background process's control socket is tried.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What became of the background process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detached {
    /// The VM's control socket answers.
    Running,
    /// The process ended before that.
    Failed {
        /// Its exit status.
        code: u8,
        /// Its standard error.
        errors: String,
    },
}

/// The VM's name if this is the background process that [`detach`] started.
pub fn detached_name() -> Option<String> {
    env::var(VARIABLE).ok()
}

/// Starts this program again with the same arguments in the background. Returns when the control socket of the VM
/// `name` answers, or the process has ended.
pub fn detach(name: &str) -> Result<Detached> {
    let memory_file = Error::host("create a file in memory");
    let mut errors = memfd_create("vmmlinux-errors", MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|errno| memory_file(errno.into()))?;
    let shared = errors.try_clone().map_err(Error::host("share a file in memory"))?;
    let mut child = Command::new("/proc/self/exe")
        .args(env::args_os().skip(1))
        .env(VARIABLE, name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(shared)
        // Its own process group: ^C in the terminal must not reach the VM.
        .process_group(0)
        .spawn()
        .map_err(Error::host("start the VM's process"))?;
    loop {
        if let Some(status) = child.try_wait().map_err(Error::host("wait for the VM's process"))? {
            let mut text = String::new();
            let _ = errors.seek(SeekFrom::Start(0)).and_then(|_| errors.read_to_string(&mut text));
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            let code = code.ok_or(Error::Detached { status })?;
            return Ok(Detached::Failed { code, errors: text });
        }
        if answers(name, &child) {
            return Ok(Detached::Running);
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Whether the VM of that name answers from this child, and not from another process that owns the name.
fn answers(name: &str, child: &Child) -> bool {
    let status = Client::connect(name).and_then(|mut client| client.call(ControlCommand::Status));
    matches!(status, Ok(Answer::Status(status)) if status.pid == child.id())
}
