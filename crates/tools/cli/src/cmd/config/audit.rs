//! `vmmlinux config audit`: judges the configuration of any kernel for vmd guests.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use kconfig::{Audit, DotConfig, Host, Rules, Severity};
use miette::IntoDiagnostic;

/// Exit statuses of an audit by its worst finding; 1 means that the file could not be audited.
const EXIT_HARM: u8 = 2;
const EXIT_FATAL: u8 = 3;

/// Arguments of `vmmlinux config audit`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Configuration file
    file: PathBuf,
    /// OpenBSD releases of the host to audit for [default: all]
    #[arg(long, value_delimiter = ',', value_name = "HOST")]
    host: Vec<Host>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Lowest severity to print
    #[arg(long, value_enum, default_value = "note")]
    min: Min,
}

impl Args {
    /// The configuration file.
    #[cfg(target_os = "openbsd")]
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Writes the findings.
    pub(super) fn run(self, out: &mut Vec<u8>) -> miette::Result<ExitCode> {
        audit(out, &self.file, self.host, self.json, self.min.into())
    }
}

/// The least severity to print.
#[derive(Clone, Copy, ValueEnum)]
enum Min {
    /// Everything
    Note,
    /// What does not work or works badly, and worse
    Harm,
    /// What keeps the guest from running
    Fatal,
}

impl From<Min> for Severity {
    fn from(min: Min) -> Self {
        match min {
            Min::Note => Self::Note,
            Min::Harm => Self::Harm,
            Min::Fatal => Self::Fatal,
        }
    }
}

fn audit(
    out: &mut Vec<u8>,
    file: &Path,
    hosts: Vec<Host>,
    json: bool,
    min: Severity,
) -> miette::Result<ExitCode> {
    let config = DotConfig::load(file)?;
    let hosts: BTreeSet<Host> = if hosts.is_empty() { Host::ALL.into() } else { hosts.into_iter().collect() };
    let mut audit = Rules::builtin()?.audit(&config, &hosts);
    let worst = hosts.iter().filter_map(|host| audit.worst(*host)).max();
    if json {
        audit.findings.retain(|finding| finding.severity >= min);
        serde_json::to_writer_pretty(&mut *out, &audit).into_diagnostic()?;
        out.push(b'\n');
    } else {
        print_audit(out, file, &audit, min).into_diagnostic()?;
    }
    Ok(match worst {
        Some(Severity::Fatal) => EXIT_FATAL.into(),
        Some(Severity::Harm) => EXIT_HARM.into(),
        Some(Severity::Note) | None => ExitCode::SUCCESS,
    })
}

fn print_audit(out: &mut Vec<u8>, file: &Path, audit: &Audit, min: Severity) -> io::Result<()> {
    let version = audit.kernel.as_deref().unwrap_or("of unknown version (not in the header of the file)");
    writeln!(out, "{}: Linux {version}", file.display())?;
    if !audit.whole {
        writeln!(
            out,
            "This is not a whole configuration (a defconfig, or a file written by hand): what it does not mention has the \
             kernel's default, which depends on the version, and is not judged. To judge all of it, give the .config that \
             the kernel's make completes it to: `make olddefconfig`, or out/NAME/config of `vmmlinux build --config {}`.",
            file.display()
        )?;
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(100);
    }
    table.set_header(["", "", "hosts", "finding"]);
    for finding in audit.findings.iter().filter(|finding| finding.severity >= min) {
        let hosts: Vec<_> = finding.hosts.iter().map(|host| host.as_str()).collect();
        let symbols: Vec<_> = finding.symbols.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut text = format!("{} ({}). {}", finding.what, symbols.join(", "), finding.why);
        if let Some(remedy) = &finding.remedy {
            text = format!("{text}\n-> {remedy}");
        }
        let hosts = if finding.hosts == audit.hosts { "all".to_owned() } else { hosts.join("\n") };
        table.add_row([finding.severity.as_str().to_owned(), finding.class.as_str().to_owned(), hosts, text]);
    }
    writeln!(out, "{table}\n")?;
    for host in &audit.hosts {
        let verdict = match audit.worst(*host) {
            Some(Severity::Fatal) => "does not run as it is",
            Some(Severity::Harm) => "runs, with harm",
            Some(Severity::Note) | None if audit.whole => "runs well",
            Some(Severity::Note) | None => "nothing that speaks against it, as far as the file says",
        };
        let count = |severity| audit.count(*host, severity);
        writeln!(
            out,
            "vmd {host}: {verdict} ({} fatal, {} harm, {} notes)",
            count(Severity::Fatal),
            count(Severity::Harm),
            count(Severity::Note)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kconfig::{Fragments, Selection};

    use super::*;

    #[test]
    fn an_audit_ends_with_the_worst_finding() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            Fragments::builtin().unwrap().requests(&Selection::new("6.12")).to_config(),
        )
        .unwrap();
        let mut out = Vec::new();
        let code = audit(&mut out, file.path(), vec![Host::V7_8], false, Severity::Note).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains("fatal  "), "{text}");
        assert_eq!(code, ExitCode::SUCCESS, "{text}");
        std::fs::write(file.path(), "CONFIG_PTP_1588_CLOCK_KVM=y\n").unwrap();
        let code = audit(&mut Vec::new(), file.path(), vec![Host::V7_8], true, Severity::Note).unwrap();
        assert_eq!(code, EXIT_FATAL.into());
    }

    #[test]
    fn a_defconfig_is_told_from_a_whole_configuration() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let said = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            let mut out = Vec::new();
            let code = audit(&mut out, file.path(), vec![Host::V7_8], false, Severity::Note).unwrap();
            (code, String::from_utf8(out).unwrap())
        };
        let (code, text) = said("CONFIG_LOCALVERSION=\"-mine\"\nCONFIG_VIRTIO_NET=y\n");
        assert!(
            text.contains("not a whole configuration") && text.contains("0 fatal, 0 harm, 0 notes"),
            "{text}"
        );
        assert_eq!(code, ExitCode::SUCCESS);
        let (code, text) = said("CONFIG_X86=y\nCONFIG_VIRTIO_NET=y\n");
        assert!(
            !text.contains("not a whole configuration") && text.contains("does not run as it is"),
            "{text}"
        );
        assert_eq!(code, EXIT_FATAL.into());
    }
}
