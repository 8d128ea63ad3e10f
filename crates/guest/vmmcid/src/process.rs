//! Child processes with a time limit.

use std::{
    fmt, io,
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};

/// PATH of child processes.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Failure of a child process.
#[derive(Debug)]
pub enum Failure {
    /// It could not be started.
    NotStarted(io::Error),
    /// It exited with an error or by a signal.
    Ended(ExitStatus),
    /// It was killed because it took too long.
    TooLong(Duration),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(error) => write!(f, "cannot be run: {error}"),
            Self::Ended(status) => write!(f, "ended with {status}"),
            Self::TooLong(limit) => {
                write!(f, "was killed: it took longer than {}", humantime::format_duration(*limit))
            }
        }
    }
}

/// Runs a program until it exits or its time limit passes; then it is killed with its children. Its output goes where
/// the daemon's messages go.
pub fn run(command: &mut Command, limit: Duration) -> Result<(), Failure> {
    command.stdin(Stdio::null()).stdout(io::stderr()).process_group(0);
    let mut child = command.spawn().map_err(Failure::NotStarted)?;
    let pid = Pid::from_child(&child);
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(child.wait()));
    match ended.recv_timeout(limit) {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(Failure::Ended(status)),
        Ok(Err(error)) => Err(Failure::NotStarted(error)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let _ = kill_process_group(pid, Signal::KILL);
            Err(Failure::TooLong(limit))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<(), Failure> {
        run(Command::new("sh").args(["-c", script]), limit)
    }

    #[test]
    fn its_end_is_told() {
        let long = Duration::from_mins(1);
        assert!(shell("exit 0", long).is_ok());
        assert!(matches!(shell("exit 3", long), Err(Failure::Ended(status)) if status.code() == Some(3)));
        assert!(matches!(run(&mut Command::new("/nowhere/x"), long), Err(Failure::NotStarted(_))));
    }

    #[test]
    fn what_hangs_is_killed_with_its_children() {
        let failure = shell("sleep 1000 & wait", Duration::from_millis(50)).unwrap_err();
        assert!(failure.to_string().contains("took longer than 50ms"), "{failure}");
    }
}
