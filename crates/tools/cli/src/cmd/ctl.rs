//! `vmmlinux ctl`: control running machines, in the words of vmctl(8).

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
use vmm_control::{Answer, Client, Command, Status, place};

use crate::args::duration;

/// Arguments of `vmmlinux ctl`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine's name; without it, all that run are shown
    name: Option<String>,
    #[command(subcommand)]
    order: Option<Order>,
    /// Show the status as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Order {
    /// Ask the guest to go down
    Stop {
        /// End it at once
        #[arg(short, long)]
        force: bool,
        /// Wait until it has ended
        #[arg(short, long)]
        wait: bool,
    },
    /// Ask the guest to go down and start again
    Reboot,
    /// Stop the virtual processor; clocks go on
    Pause,
    /// Let it run again
    Unpause,
    /// Close the host's lid: the virtual processor stops, and when it goes on the host's clock is later
    Suspend {
        /// How much later, as in 3h or 90s
        #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
        length: Duration,
        /// What the host's TSC does meanwhile: `stands`, `runs` (suspend to idle) or `resets` (S3 on most computers)
        #[arg(long, value_name = "WHAT", default_value = "stands")]
        tsc: SleepingTsc,
    },
    /// For tests of drivers: show values in the control device's command register, as no vmd does
    ///
    /// Reads lines of two numbers: the value, and how often the interrupt line is raised. All ones are a device that
    /// is gone.
    #[command(hide = true)]
    ShowCommands,
    /// Show how things are
    Status,
    /// Wait until the guest has ended; the exit status is that of `vmmlinux run`
    Wait,
    /// Be at the console; `~.` at the beginning of a line leaves it
    Console,
}

impl Args {
    /// Carries the order out.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let Some(name) = self.name else {
            let statuses = all()?;
            return show(&statuses, self.json);
        };
        let mut client = Client::connect(&name)?;
        match self.order.unwrap_or(Order::Status) {
            Order::Stop { force, wait } => {
                note(&name, &client.call(Command::Stop { force })?);
                if wait {
                    client.call(Command::Wait)?;
                }
            }
            Order::Reboot => note(&name, &client.call(Command::Reboot)?),
            Order::Pause => drop(client.call(Command::Pause)?),
            Order::Unpause => drop(client.call(Command::Unpause)?),
            Order::Suspend { length, tsc } => drop(client.call(Command::Suspend { length, tsc })?),
            Order::ShowCommands => show_commands(&mut client)?,
            Order::Status => return show(&[status(&mut client)?], self.json),
            Order::Wait => {
                let Answer::Ended(ending) = client.call(Command::Wait)? else {
                    return Err(miette!("{name} does not tell how it ended"));
                };
                support::note!("vmmlinux: {name}: {}", ending.text);
                return Ok(ExitCode::from(ending.status));
            }
            Order::Console => return console(client),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Passes on the lines of the standard input.
fn show_commands(client: &mut Client) -> miette::Result<()> {
    for line in std::io::stdin().lines() {
        let line = line.into_diagnostic()?;
        let numbers = line
            .split_once(' ')
            .and_then(|(value, interrupts)| Some((value.parse().ok()?, interrupts.trim().parse().ok()?)));
        let (value, interrupts) = numbers
            .ok_or_else(|| miette!("`{line}` is not a value and a number of interrupts, as in `2 1`"))?;
        client.call(Command::ShowCommand { value, interrupts })?;
    }
    Ok(())
}

/// Shows what there is to know about an order that was carried out.
fn note(name: &str, answer: &Answer) {
    if let Answer::Note(text) = answer {
        support::note!("vmmlinux: {name}: {text}");
    }
}

fn status(client: &mut Client) -> miette::Result<Status> {
    match client.call(Command::Status)? {
        Answer::Status(status) => Ok(*status),
        other => Err(miette!("the machine answers {other:?} when asked for its status")),
    }
}

/// The status of every machine that answers.
fn all() -> miette::Result<Vec<Status>> {
    let names = place::running(&place::directory()?)?;
    // One that is being set up has a name and no socket yet.
    let answering = names.iter().filter_map(|name| Client::connect(name).ok());
    Ok(answering.filter_map(|mut client| status(&mut client).ok()).collect())
}

fn show(statuses: &[Status], json: bool) -> miette::Result<ExitCode> {
    let text =
        if json { serde_json::to_string_pretty(statuses).into_diagnostic()? + "\n" } else { table(statuses) };
    support::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A table as `vmctl status` has it, with what is ours between.
fn table(statuses: &[Status]) -> String {
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

/// Passes bytes between the terminal and the console, until either goes.
fn console(client: Client) -> miette::Result<ExitCode> {
    let stream = client.console()?;
    if io::stdin().is_terminal() {
        support::note!("vmmlinux: connected; `~.` at the beginning of a line leaves");
    }
    let raw = runner::raw_mode().into_diagnostic().wrap_err("cannot set up the terminal")?;
    let share = || stream.try_clone().into_diagnostic().wrap_err("cannot share the console's connection");
    let (mut typing, mut reading) = (share()?, share()?);
    let keyboard = move || {
        let left = runner::forward_input(|bytes| typing.write_all(bytes));
        // The end of piped input leaves the guest's output to be read.
        let how = if matches!(left, Ok(false)) { Shutdown::Write } else { Shutdown::Both };
        let _ = typing.shutdown(how);
    };
    thread::Builder::new().name("input".to_owned()).spawn(keyboard).into_diagnostic()?;
    let result = io::copy(&mut reading, &mut runner::UnbufferedStdout);
    drop(raw);
    match result {
        // Nobody reads: as good as leaving.
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
    use vmm_control::State;

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
        let status = |name: &str, pid| Status {
            name: name.to_owned(),
            pid,
            host: Generation::V7_8,
            accel: "nested".to_owned(),
            state: State::Running,
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
