//! The command line, which `vmmlinux doctor` and `vmmlinux-doctor` share.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use miette::IntoDiagnostic;

use crate::{Guest, Measured, Severity, System, examine};

/// How wide the report is where nobody tells, and at most: longer lines are hard to read.
const WIDTH: usize = 100;

/// What can be asked for.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Leave out what has to be measured
    #[arg(long)]
    quick: bool,
    /// How long to measure, in seconds: the longer, the surer is the clock's rate
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(3..=3600), conflicts_with = "quick")]
    seconds: u64,
    /// The running kernel's configuration [default: /proc/config.gz, or /boot/config- with the kernel's release]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Leave findings out that are less than this
    #[arg(long, value_enum, default_value = "ok")]
    min: Severity,
}

impl Args {
    /// Examines this system and prints the report. The exit status is [`Report::exit_status`](crate::Report::exit_status).
    pub fn run(&self) -> miette::Result<ExitCode> {
        let mut guest = Guest::look(System::here(), self.config.as_deref());
        if guest.host.is_vmd() && !self.quick {
            if io::stderr().is_terminal() && !self.json {
                support::note!("measuring for {} s …", self.seconds);
            }
            guest.measured = Some(Measured::take(&guest.system, self.seconds));
        }
        let report = examine(&guest);
        let text = if self.json {
            let mut shown = report.clone();
            shown.findings.retain(|finding| finding.severity >= self.min);
            serde_json::to_string_pretty(&shown).into_diagnostic()? + "\n"
        } else {
            report.in_words(self.min, width())
        };
        // This takes the colours out unless they go to a terminal.
        support::write(&mut anstream::stdout(), text.as_bytes())?;
        Ok(ExitCode::from(report.exit_status()))
    }
}

fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_col));
    // A serial line knows no width.
    if columns == 0 { WIDTH } else { columns.min(WIDTH) }
}
