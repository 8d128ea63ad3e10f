//! Child processes with a time limit.

use std::{
    fmt,
    io::{self, BufRead, BufReader, PipeReader, Read},
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

/// Upper limit of a line of output in bytes; longer ones are split.
const LONGEST_LINE: u64 = 1024;
/// Time to wait for the rest of a program's output once it has exited: a child of it may have the pipe still.
const LAST_LINES: Duration = Duration::from_millis(250);

/// Runs a program until it exits or its time limit passes; then it is killed with its children. Its output goes where
/// the daemon's messages go.
pub fn run(command: &mut Command, limit: Duration) -> Result<(), Failure> {
    command.stdout(io::stderr()).stderr(io::stderr());
    wait(command, limit)
}

/// Runs a program like [`run`]. Lines of its output go to `line`, which is dropped after the last one.
///
/// The pipe is read until its end even after the program has exited, in a thread of its own: nothing that writes to it is
/// held up, and nothing that keeps it open holds up the daemon.
pub fn run_with_output(
    command: &mut Command,
    limit: Duration,
    line: impl FnMut(&str) + Send + 'static,
) -> Result<(), Failure> {
    let (output, to) = io::pipe().map_err(Failure::NotStarted)?;
    command.stdout(to.try_clone().map_err(Failure::NotStarted)?).stderr(to);
    let (done, read) = mpsc::channel();
    thread::spawn(move || {
        pass_lines(output, line);
        done.send(())
    });
    let result = wait(command, limit);
    // The pipe ends only when the command's own ends are closed, too.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let _ = read.recv_timeout(LAST_LINES);
    result
}

fn pass_lines(output: PipeReader, mut line: impl FnMut(&str)) {
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    while matches!(output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes), Ok(1..)) {
        line(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
}

fn wait(command: &mut Command, limit: Duration) -> Result<(), Failure> {
    command.stdin(Stdio::null()).process_group(0);
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

    /// The lines of a script's output, which come in after it has ended, too.
    fn lines(script: &str) -> mpsc::Receiver<String> {
        let (to, from) = mpsc::channel();
        let line = move |line: &str| to.send(line.to_owned()).unwrap();
        run_with_output(Command::new("sh").args(["-c", script]), Duration::from_mins(1), line).unwrap();
        from
    }

    #[test]
    fn lines_of_both_streams_are_passed_on_in_order() {
        let all: Vec<_> = lines("echo a; echo b >&2; printf c").iter().collect();

        assert_eq!(all, ["a", "b", "c"]);
    }

    #[test]
    fn a_line_without_an_end_is_passed_on_in_pieces() {
        let lines = lines("head -c 3000 /dev/zero | tr '\\0' x");

        let pieces: Vec<_> = lines.iter().map(|piece| piece.len()).collect();

        assert_eq!(pieces, [1024, 1024, 952]);
    }

    #[test]
    fn a_child_that_keeps_the_output_holds_nothing_up() {
        let lines = lines("echo a; sleep 1000 & echo $!");

        let [first, child] = [(); 2].map(|()| lines.recv().unwrap());
        assert_eq!(first, "a");
        let child = Pid::from_raw(child.parse().unwrap()).unwrap();
        assert!(rustix::process::kill_process(child, Signal::KILL).is_ok(), "it had not ended");
    }

    #[test]
    fn what_hangs_is_killed_with_its_children() {
        let failure = shell("sleep 1000 & wait", Duration::from_millis(50)).unwrap_err();
        assert!(failure.to_string().contains("took longer than 50ms"), "{failure}");
    }
}
