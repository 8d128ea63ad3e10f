//! The command line, which `vmmlinux doctor` and `vmmlinux-doctor` share.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use miette::IntoDiagnostic;

use crate::{Guest, Measured, Severity, System, examine};

/// Width of the report in columns without a terminal, and its upper limit.
const WIDTH: usize = 100;

/// The arguments.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Skip measurements
    #[arg(long)]
    quick: bool,
    /// Seconds to measure: longer gives a smaller error of the clock's rate
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(3..=3600), conflicts_with = "quick")]
    seconds: u64,
    /// Configuration file of the running kernel [default: /proc/config.gz, or /boot/config- with the kernel's release]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Lowest severity to show
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
        // Strips colours unless the output is a terminal.
        support::write(&mut anstream::stdout(), text.as_bytes())?;
        Ok(ExitCode::from(report.exit_status()))
    }
}

fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_col));
    // A serial line has no width.
    if columns == 0 { WIDTH } else { columns.min(WIDTH) }
}
