//! `vmmlinux run --detach`: the machine in a process of its own that outlives the terminal.

use std::{
    env,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt as _,
    process::{self, ExitCode, Stdio},
    thread,
    time::Duration,
};

use miette::{IntoDiagnostic, WrapErr, miette};
use rustix::fs::{MemfdFlags, memfd_create};
use vmm_control::{Answer, Client, Command};

/// Tells the child that it is the one to stay.
const VARIABLE: &str = "VMMLINUX_DETACHED";

/// The machine's name, if this process is the one that stays.
pub(crate) fn detached() -> Option<String> {
    env::var(VARIABLE).ok()
}

/// Starts this program again, with the same arguments, in the background; returns when the machine's control socket
/// answers, or shows why it will not.
pub(crate) fn detach(name: &str) -> miette::Result<ExitCode> {
    let memory = || memfd_create("vmmlinux-errors", MemfdFlags::CLOEXEC).map(File::from);
    let mut errors = memory().into_diagnostic().wrap_err("cannot create a file in memory")?;
    let shared = errors.try_clone().into_diagnostic().wrap_err("cannot share a file in memory")?;
    let mut child = process::Command::new("/proc/self/exe")
        .args(env::args_os().skip(1))
        .env(VARIABLE, name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(shared)
        // Not in the terminal's foreground: its ^C is not meant for the machine.
        .process_group(0)
        .spawn()
        .into_diagnostic()
        .wrap_err("cannot start the machine's process")?;
    loop {
        if let Some(status) =
            child.try_wait().into_diagnostic().wrap_err("cannot wait for the machine's process")?
        {
            let mut text = String::new();
            let _ = errors.seek(SeekFrom::Start(0)).and_then(|_| errors.read_to_string(&mut text));
            support::note!("{}", text.trim_end());
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return code.map(ExitCode::from).ok_or_else(|| miette!("the machine's process ended: {status}"));
        }
        // Not another machine that has the name already.
        let status = Client::connect(name).and_then(|mut client| client.call(Command::Status));
        if matches!(status, Ok(Answer::Status(status)) if status.pid == child.id()) {
            support::print(&format!("{name}\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(Duration::from_millis(50));
    }
}
