//! The command line.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser, Subcommand};
use miette::{IntoDiagnostic, WrapErr, miette};
use serde::Serialize;
use vmmci_sysfs::{Bar, FUNCTIONS, Function, offset_in_words};

use crate::{
    check,
    config::{self, Chrony, Config},
    log::{Log, To},
    status, supervisor, worker,
};

/// Handle the host's commands and keep its time in a Linux guest of OpenBSD's vmd(8) whose kernel has no driver for vmmci.
#[derive(Debug, Parser)]
#[command(name = "vmmcid", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon, in the foreground
    Run(Run),
    /// Show the daemon's status
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the offset of the guest's clock from the host's
    Offset {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check the daemon's requirements without changing anything
    Test {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The configuration
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Exit with 0 if the device exists and no kernel driver has it (for service managers)
    Needed,
    /// Announce a power-off to the host (for the very end of a shutdown)
    PoweringOff,
    /// Print shell completions
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    #[command(hide = true)]
    Worker,
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Configuration file [default: /etc/vmmcid.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Destination of messages
    #[arg(long, value_enum, default_value_t)]
    log: To,
    /// Poll interval of the command register: 500ms to 1500ms
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    poll_interval: Option<Duration>,
    /// Time from the host's command to a forced shutdown: 10s to 100s
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    force_after: Option<Duration>,
    /// Do not set the clock
    #[arg(long)]
    no_set_clock: bool,
    /// Interval between comparisons of the clocks without the host's asking: 15s or more, 0s for never
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    follow: Option<Duration>,
    /// Directory with before-stop.d and after-resume.d
    #[arg(long, value_name = "DIR")]
    hooks: Option<PathBuf>,
    /// Send chrony the host's time through this socket
    #[arg(long, value_name = "SOCKET")]
    chrony: Option<PathBuf>,
    /// Interval between samples for chrony
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "chrony")]
    chrony_interval: Option<Duration>,
}

impl Run {
    /// Returns the configuration file's settings, overridden by the command line's.
    fn read(&self) -> Result<Config, config::Error> {
        let mut config = Config::read(self.config.as_deref())?;
        config.poll_interval = self.poll_interval.unwrap_or(config.poll_interval);
        config.force_after = self.force_after.unwrap_or(config.force_after);
        config.follow = self.follow.unwrap_or(config.follow);
        config.set_clock &= !self.no_set_clock;
        if let Some(hooks) = &self.hooks {
            config.hooks.clone_from(hooks);
        }
        if let Some(socket) = &self.chrony {
            let interval = self.chrony_interval.unwrap_or(Chrony::INTERVAL);
            config.chrony = Some(Chrony { socket: socket.clone(), interval });
        }
        config.check()?;
        Ok(config)
    }
}

impl Cli {
    /// Runs the command. The exit status is 0 after success, 1 after a failure, 2 if the command line or the
    /// configuration is wrong, and 3 if there is no device for the daemon.
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Run(run) => return daemon(&run),
            Command::Worker => return worker::run(),
            Command::Status { json } => status(json),
            Command::Offset { json } => offset(json),
            Command::Test { json, config } => test(json, config.as_deref()),
            Command::Needed => return needed(),
            Command::PoweringOff => powering_off(),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "vmmcid", &mut script);
                print(&String::from_utf8_lossy(&script))
            }
        };
        result.unwrap_or_else(|report| {
            support::note!("{report:?}");
            ExitCode::FAILURE
        })
    }
}

fn daemon(run: &Run) -> ExitCode {
    let Err(error) = supervisor::run(&|| run.read(), Log::new(run.log)) else { return ExitCode::SUCCESS };
    let status = error.exit_status();
    support::note!("{:?}", miette::Report::from(error));
    ExitCode::from(status)
}

fn print(text: &str) -> miette::Result<ExitCode> {
    support::print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a value as JSON, or in words.
fn show(json: bool, value: &impl Serialize, words: &str) -> miette::Result<ExitCode> {
    if json { print(&(serde_json::to_string_pretty(value).into_diagnostic()? + "\n")) } else { print(words) }
}

fn ask() -> miette::Result<Option<status::Status>> {
    status::ask(Path::new(status::SOCKET))
        .into_diagnostic()
        .wrap_err_with(|| format!("the daemon does not answer at {}", status::SOCKET))
}

fn status(json: bool) -> miette::Result<ExitCode> {
    let status = ask()?.ok_or_else(|| {
        miette!(
            help = "start it: `systemctl start vmmcid` or `rc-service vmmcid start`; `vmmcid test` says whether it can run",
            "the daemon does not run"
        )
    })?;
    show(json, &status, &status.in_words())
}

fn offset(json: bool) -> miette::Result<ExitCode> {
    let measured = if let Some(status) = ask()? {
        status.offset
    } else {
        // Without the daemon, root reads the registers; nothing is written to the device.
        let bar = Bar::new(Function::find(Path::new(FUNCTIONS))?.peek()?.bar);
        bar.offset(3)
    };
    let offset = measured.ok_or_else(|| {
        miette!(help = "vmd(8) has done so since OpenBSD 6.3", "the host's time is missing or implausible")
    })?;
    if json {
        // On one line, for scripts.
        print(&(serde_json::to_string(&offset).into_diagnostic()? + "\n"))
    } else {
        print(&format!("{}\n", offset_in_words(&offset)))
    }
}

fn test(json: bool, config: Option<&Path>) -> miette::Result<ExitCode> {
    let checks = check::all(config);
    let mut text = String::new();
    for check in &checks {
        let _ = writeln!(text, "{:<5}{:<13} {}", check.verdict.word(), check.name, check.text);
    }
    show(json, &checks, &text)?;
    let failed = checks.iter().any(|check| check.verdict == check::Verdict::Fails);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn needed() -> ExitCode {
    let why = match Function::find(Path::new(FUNCTIONS)).map(|function| function.driver()) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(driver)) => format!("the kernel's driver {driver} has the device"),
        Err(_) => "this is not a guest of OpenBSD's vmd(8)".to_owned(),
    };
    // Service managers need the status even if printing fails.
    let _ = support::print(&format!("{why}: vmmcid is not needed\n"));
    ExitCode::FAILURE
}

fn powering_off() -> miette::Result<ExitCode> {
    let device = Function::find(Path::new(FUNCTIONS))?.open()?;
    let bar = Bar::new(device.bar);
    // While a stop is pending the host expects the power-off.
    vmmci_protocol::power_off(&bar);
    match bar.failure() {
        None => Ok(ExitCode::SUCCESS),
        Some(kind) => Err(miette!("the device cannot be reached: {kind}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_in_order() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_go_over_the_file_and_are_checked_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "poll-interval = '1s'\nforce-after = '60s'\n").unwrap();
        let run = |more: &[&str]| {
            let first = ["vmmcid", "run", "--config", path.to_str().unwrap()];
            let words = first.iter().chain(more);
            let Command::Run(run) = Cli::parse_from(words).command else { panic!() };
            run.read()
        };
        let config = run(&["--poll-interval", "500ms", "--no-set-clock"]).unwrap();
        assert_eq!((config.poll_interval.as_millis(), config.force_after.as_secs()), (500, 60));
        assert!(!config.set_clock);
        let config = run(&["--chrony", "/run/c", "--chrony-interval", "32s"]).unwrap();
        assert_eq!(config.chrony.unwrap().interval.as_secs(), 32);
        assert_eq!(run(&["--follow", "1m"]).unwrap().follow.as_secs(), 60);
        assert!(run(&["--poll-interval", "5s"]).is_err());
    }
}
