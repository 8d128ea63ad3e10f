//! `vmmlinux ctl`: control running VMs, in the words of vmctl(8).

use std::{
    io::{self, IsTerminal, Write},
    net::Shutdown,
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::Subcommand;
use miette::{IntoDiagnostic, WrapErr, miette};
use vmd_release::SleepingTsc;
use vmm_control::{Answer, Client, Command, VmStatus, runtime_dir};

use crate::args::duration;

/// Arguments of `vmmlinux ctl`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the VM; without it, the status of all running VMs is shown
    name: Option<String>,
    #[command(subcommand)]
    command: Option<CtlCommand>,
    /// Show the status as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum CtlCommand {
    /// Ask the guest to shut down
    Stop {
        /// Stop the VM at once, without asking the guest, and wait until it has ended
        #[arg(short, long)]
        force: bool,
        /// Wait until the VM has ended
        #[arg(short, long)]
        wait: bool,
    },
    /// Ask the guest to reboot
    Reboot,
    /// Stop the vCPUs; clocks keep running
    Pause,
    /// Resume the vCPUs after a pause
    Unpause,
    /// Emulate a suspend of the host: the vCPUs stop, and the host's clock is later when they resume
    Suspend {
        /// Length of the suspend on the host's clock, such as 3h or 90s
        #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
        length: Duration,
        /// The host's TSC during the suspend: `stands` still, `runs` on (suspend to idle) or `resets` (S3 on most computers)
        #[arg(long, value_name = "WHAT", default_value = "stands")]
        tsc: SleepingTsc,
    },
    /// Show arbitrary values in the control device's command register, for tests of drivers
    ///
    /// Reads lines of two numbers from standard input: the value, and the number of interrupts to raise. A value of
    /// all ones looks like a device that was removed.
    #[command(hide = true)]
    ShowCommands,
    /// Show the VM's status
    Status,
    /// Wait until the guest has ended; exits with the status of `vmmlinux run`
    Wait,
    /// Attach to the console; `~.` at the beginning of a line detaches
    Console,
}

impl Args {
    /// Carries out the command.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let Some(name) = self.name else {
            let statuses = all()?;
            return show(&statuses, self.json);
        };
        let mut client = Client::connect(&name)?;
        match self.command.unwrap_or(CtlCommand::Status) {
            CtlCommand::Stop { force, wait } => {
                note(&name, &client.call(Command::Stop { force })?);
                // A forced stop is answered when the guest has ended; its process may be gone a moment later.
                if wait && !force {
                    client.call(Command::Wait)?;
                }
            }
            CtlCommand::Reboot => note(&name, &client.call(Command::Reboot)?),
            CtlCommand::Pause => drop(client.call(Command::Pause)?),
            CtlCommand::Unpause => drop(client.call(Command::Unpause)?),
            CtlCommand::Suspend { length, tsc } => drop(client.call(Command::Suspend { length, tsc })?),
            CtlCommand::ShowCommands => show_commands(&mut client)?,
            CtlCommand::Status => return show(&[status(&mut client)?], self.json),
            CtlCommand::Wait => {
                let Answer::Ended(ending) = client.call(Command::Wait)? else {
                    return Err(miette!("{name} answered a wait without an exit report"));
                };
                support::note!("vmmlinux: {name}: {}", ending.text);
                return Ok(ExitCode::from(ending.status));
            }
            CtlCommand::Console => return console(client),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Forwards the lines of standard input as values of the command register.
fn show_commands(client: &mut Client) -> miette::Result<()> {
    for line in std::io::stdin().lines() {
        let line = line.into_diagnostic()?;
        let numbers = line
            .split_once(' ')
            .and_then(|(value, interrupts)| Some((value.parse().ok()?, interrupts.trim().parse().ok()?)));
        let (value, interrupts) = numbers
            .ok_or_else(|| miette!("`{line}` is not a value and a number of interrupts, such as `2 1`"))?;
        client.call(Command::ShowCommand { value, interrupts })?;
    }
    Ok(())
}

/// Prints the note of an answer on standard error.
fn note(name: &str, answer: &Answer) {
    if let Answer::Note(text) = answer {
        support::note!("vmmlinux: {name}: {text}");
    }
}

fn status(client: &mut Client) -> miette::Result<VmStatus> {
    match client.call(Command::Status)? {
        Answer::Status(status) => Ok(*status),
        other => Err(miette!("the VM answered a status request with {other:?}")),
    }
}

/// The status of every VM that answers.
fn all() -> miette::Result<Vec<VmStatus>> {
    let names = runtime_dir::running(&runtime_dir::directory()?)?;
    // A VM that is being set up has a name and no socket yet.
    let answering = names.iter().filter_map(|name| Client::connect(name).ok());
    Ok(answering.filter_map(|mut client| status(&mut client).ok()).collect())
}

fn show(statuses: &[VmStatus], json: bool) -> miette::Result<ExitCode> {
    let text =
        if json { serde_json::to_string_pretty(statuses).into_diagnostic()? + "\n" } else { table(statuses) };
    support::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A table in the form of `vmctl status`, with our own columns in the middle.
fn table(statuses: &[VmStatus]) -> String {
    let mut rows =
        vec![["PID", "VCPUS", "MAXMEM", "HOST", "ACCEL", "UPTIME", "STATE", "NAME"].map(str::to_owned)];
    rows.extend(statuses.iter().map(|status| {
        [
            status.pid.to_string(),
            status.vcpus.to_string(),
            format!("{}M", status.memory),
            status.host.to_string(),
            status.accel.clone(),
            humantime::format_duration(Duration::from_secs(status.uptime_ms / 1000)).to_string(),
            status.state.as_str().to_owned(),
            status.name.clone(),
        ]
    }));
    let widths: Vec<usize> =
        (0..8).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 8]| {
        let (name, cells) = row.split_last().expect("eight cells");
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$} "));
        cells.chain([format!("{name}\n")]).collect::<String>()
    };
    rows.iter().map(line).collect()
}

/// Passes bytes between the terminal and the console until one of them ends.
fn console(client: Client) -> miette::Result<ExitCode> {
    let stream = client.console()?;
    if io::stdin().is_terminal() {
        support::note!("vmmlinux: attached; type `~.` at the beginning of a line to detach");
    }
    let raw = runner::raw_mode().into_diagnostic().wrap_err("cannot set up the terminal")?;
    let share = || stream.try_clone().into_diagnostic().wrap_err("cannot share the console's connection");
    let (mut typing, typed, mut reading) = (share()?, share()?, share()?);
    let keyboard = move || {
        let left = runner::forward_input(move |bytes| typing.write_all(bytes));
        // After the end of piped input, the guest's output is still shown.
        let how = if matches!(left, Ok(false)) { Shutdown::Write } else { Shutdown::Both };
        let _ = typed.shutdown(how);
    };
    thread::Builder::new().name("input".to_owned()).spawn(keyboard).into_diagnostic()?;
    let result = io::copy(&mut reading, &mut runner::UnbufferedStdout);
    drop(raw);
    match result {
        // The reader of standard output has closed its pipe: the same as detaching.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        other => {
            other.into_diagnostic().wrap_err("the console's connection broke")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use vmd_release::Generation;
    use vmm_control::VmState;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        super::super::parse(&format!("ctl {line}"))
    }

    #[test]
    fn the_forms_of_the_manual() {
        for line in [
            "",
            "--json",
            "a stop",
            "a stop -fw",
            "a suspend --for 3h --tsc resets",
            "a status --json",
            "a",
            "a wait",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        assert!(parse("a suspend").is_err());
        assert!(parse("a suspend --for long").is_err());
    }

    #[test]
    fn the_table_is_aligned() {
        let status = |name: &str, pid| VmStatus {
            name: name.to_owned(),
            pid,
            host: Generation::V7_8,
            accel: "nested".to_owned(),
            state: VmState::Running,
            vcpus: 1,
            memory: 512,
            disks: vec![],
            nics: vec![],
            uptime_ms: 61_500,
        };
        let text = table(&[status("a", 7), status("bsd", 12345)]);
        assert_eq!(
            text,
            "  PID VCPUS MAXMEM HOST  ACCEL UPTIME   STATE NAME\n    7     1   512M  7.8 nested  1m 1s running a\n\
             12345     1   512M  7.8 nested  1m 1s running bsd\n"
        );
    }
}
