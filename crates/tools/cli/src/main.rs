//! The `vmmlinux` command: one file per subcommand in `cmd/`.

mod args;
mod cmd;
mod disk_images;
mod file_magic;
#[cfg(target_os = "linux")]
mod kernel_args;
#[cfg(target_os = "linux")]
mod progress_bar;
#[cfg_attr(target_os = "openbsd", path = "welcome_openbsd.rs")]
mod welcome;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

/// Linux as a first-class guest of OpenBSD's vmm(4)/vmd(8).
///
/// Without a subcommand, it reports what this machine can do and suggests the next step.
#[derive(Parser)]
#[command(name = "vmmlinux", version, propagate_version = true)]
struct Cli {
    /// Log more: -v for information, -vv for debugging (`RUST_LOG` overrides)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Option<cmd::Command>,
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if runner::in_helper_vm() {
        runner::run_in_helper_vm();
    }
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .init();
    run(cli.command, level).unwrap_or_else(|report| {
        support::note!("{report:?}");
        ExitCode::FAILURE
    })
}

fn run(command: Option<cmd::Command>, log_filter: &str) -> miette::Result<ExitCode> {
    #[cfg(target_os = "openbsd")]
    support::sandbox::enter(&match &command {
        Some(command) => command.access(),
        None => welcome::access(),
    })?;
    command.map_or_else(welcome::run, |command| command.run(Cli::command, log_filter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        manuals::write(Cli::command(), dir.path()).unwrap();
        for subcommand in Cli::command().get_subcommands() {
            let page = dir.path().join(format!("vmmlinux-{}.1", subcommand.get_name()));
            assert!(page.is_file(), "{}", page.display());
        }
        let page = std::fs::read_to_string(dir.path().join("vmmlinux-run.1")).unwrap();
        assert!(page.contains("Exit status:") && page.contains(".SH OPTIONS"), "{page}");
    }

    #[test]
    fn the_port_for_openbsd_lists_manual_pages_that_there_are() {
        let dir = tempfile::tempdir().unwrap();
        manuals::write(Cli::command(), dir.path()).unwrap();
        let list = include_str!("../../../../packaging/openbsd/pkg/PLIST");

        let listed: Vec<_> = list.lines().filter_map(|line| line.strip_prefix("@man man/man1/")).collect();
        let missing: Vec<_> = listed.iter().filter(|page| !dir.path().join(page).is_file()).collect();

        assert!(listed.contains(&"vmmlinux-vmconf-check.1"), "{list}");
        assert!(missing.is_empty(), "{missing:?}");
    }
}
