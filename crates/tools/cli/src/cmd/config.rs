//! `vmmlinux config`: shows, explains and checks the curated kernel configuration, and audits other kernels'.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use kconfig::{
    Audit, Backends, Difference, DotConfig, Fragments, Host, Origin, Resolve, Resolved, Rules, Selection,
    Severity, Tree, Values, Workload,
};
use kernel_builder::PreparedTree;
use miette::{Context, IntoDiagnostic};
use tempfile::TempDir;

use crate::kernel_args::KernelArgs;

/// Exit statuses of an audit by its worst finding; 1 means that the file could not be audited.
const EXIT_HARM: u8 = 2;
const EXIT_FATAL: u8 = 3;

/// Arguments of `vmmlinux config`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the configuration of a selection
    Show {
        #[command(flatten)]
        selection: SelectionArgs,
        /// Complete the configuration with the kernel's make and print every symbol that is set, not only those requested
        #[arg(long)]
        resolved: bool,
        #[command(flatten)]
        tree: TreeArgs,
    },
    /// Explain the values of symbols
    Explain {
        /// Symbols, with or without CONFIG_
        #[arg(required = true)]
        symbols: Vec<String>,
        #[command(flatten)]
        selection: SelectionArgs,
        #[command(flatten)]
        tree: TreeArgs,
    },
    /// Compare two configurations: files, build or output directories, or selections such as 7.3:7.8,7.9:core,vpn
    Diff {
        /// First configuration
        a: String,
        /// Second configuration
        b: String,
    },
    /// List the entries of the configuration fragments
    List {
        /// Include the reasons
        #[arg(long)]
        why: bool,
        /// Print the book's configuration reference: Markdown with the reasons
        #[arg(long)]
        markdown: bool,
        /// Limit the list to this workload
        #[arg(long)]
        only: Option<Workload>,
    },
    /// Resolve every selection and verify that each request took effect and that what is built finds what it asks for
    Check {
        /// Series to check [default: every tracked one; 7.3 with --tree]
        #[arg(long)]
        series: Option<String>,
        #[command(flatten)]
        tree: TreeArgs,
    },
    /// Audit a kernel's configuration for use in a vmd guest
    ///
    /// Reads a .config, a /boot/config-* or a /proc/config.gz. The exit status is 0 for notes only, 2 if something does
    /// not work or works badly, 3 if the guest does not boot or crashes, and 1 if the file could not be audited.
    Audit {
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
    },
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

/// The series, hosts and workloads that a kernel is configured for.
#[derive(clap::Args)]
pub(crate) struct SelectionArgs {
    /// Kernel series
    #[arg(long, default_value = "7.3")]
    series: String,
    /// OpenBSD releases of the host, separated by commas [default: all]
    #[arg(long, value_delimiter = ',', value_name = "HOST")]
    host: Vec<Host>,
    /// Workloads, separated by commas; core is always included [default: core,systemd,containers]
    #[arg(long, value_delimiter = ',', value_name = "WORKLOAD")]
    workload: Vec<Workload>,
}

impl SelectionArgs {
    /// The selection, with defaults filled in.
    pub(crate) fn selection(&self) -> Selection {
        let mut selection = Selection::new(&self.series);
        if !self.host.is_empty() {
            selection.hosts = self.host.iter().copied().collect();
        }
        if !self.workload.is_empty() {
            selection.workloads = self.workload.iter().copied().collect();
        }
        selection
    }
}

/// Where the kernel source is.
#[derive(clap::Args)]
struct TreeArgs {
    /// Kernel source tree, which is not modified [default: the prepared source of the series]
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Variable for the kernel's make, such as CC=gcc-14
    #[arg(long = "make-var", value_name = "NAME=VALUE", value_parser = make_var)]
    make_vars: Vec<(String, String)>,
    #[command(flatten)]
    kernel: KernelArgs,
}

fn make_var(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// A source tree, kept locked as long as it is used unless it is the user's.
enum Source {
    User(PathBuf),
    Prepared(Box<PreparedTree>),
}

impl Source {
    fn path(&self) -> &Path {
        match self {
            Self::User(path) => path,
            Self::Prepared(tree) => &tree.path,
        }
    }
}

impl TreeArgs {
    fn source(&self, series: &str) -> miette::Result<Source> {
        match &self.tree {
            Some(dir) => Ok(Source::User(
                std::path::absolute(dir).into_diagnostic().wrap_err("--tree is not a valid path")?,
            )),
            None => Ok(Source::Prepared(Box::new(self.kernel.builder()?.prepare(series)?))),
        }
    }

    /// A resolver for selections of one series, with a temporary build directory of its own.
    fn resolver<'a>(
        &self,
        source: &'a Source,
        series: &str,
        fragments: &'a Fragments,
    ) -> miette::Result<Resolver<'a>> {
        let build_dir = tempfile::Builder::new()
            .prefix("vmmlinux-config-")
            .tempdir()
            .into_diagnostic()
            .wrap_err("cannot create a temporary build directory")?;
        // The toolchain determines symbols such as CONFIG_RUST. A tree of the user's may be configured without ours.
        let mut make_vars = match (self.kernel.builder()?.toolchain(series, false), &self.tree) {
            (Ok(toolchain), _) => toolchain.make_vars,
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(_)) => {
                tracing::warn!("{error}");
                Vec::new()
            }
        };
        make_vars.extend(self.make_vars.iter().cloned());
        Ok(Resolver { source, build_dir, make_vars, fragments })
    }

    /// The fragments beside the series file where there is one, else those built in.
    fn fragments(&self) -> miette::Result<Fragments> {
        match self.kernel.kernel_dir() {
            Ok(dir) if dir.join("config").is_dir() => Ok(Fragments::load(&dir.join("config"))?),
            _ => Ok(Fragments::builtin()?),
        }
    }
}

/// Resolves selections of one series.
struct Resolver<'a> {
    source: &'a Source,
    build_dir: TempDir,
    make_vars: Vec<(String, String)>,
    fragments: &'a Fragments,
}

impl Resolver<'_> {
    /// Resolves a selection; with the tree's sources, checks what is asked for at run time, too.
    fn resolve(&self, selection: &Selection, backends: Option<&Backends>) -> miette::Result<Resolved> {
        let job = Resolve {
            tree: self.source.path(),
            build_dir: self.build_dir.path(),
            make_vars: &self.make_vars,
            fragments: self.fragments,
            selection,
            backends,
        };
        let resolved = kconfig::resolve(&job).wrap_err_with(|| format!("cannot configure {selection}"))?;
        for mismatch in &resolved.tolerated {
            tracing::warn!("{mismatch}");
        }
        Ok(resolved)
    }
}

impl Args {
    /// Runs the subcommand and writes its output at its end.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let mut out = Vec::new();
        let code = match self.command {
            Command::Show { selection, resolved, tree } => {
                show(&mut out, &selection.selection(), resolved, &tree)
            }
            Command::Explain { symbols, selection, tree } => {
                explain(&mut out, &symbols, &selection.selection(), &tree)
            }
            Command::Diff { a, b } => diff(&mut out, &a, &b),
            Command::List { markdown: true, only, .. } => list_markdown(&mut out, only),
            Command::List { why, only, .. } => list(&mut out, why, only),
            Command::Check { series, tree } => check(&mut out, series, &tree),
            Command::Audit { file, host, json, min } => audit(&mut out, &file, host, json, min.into()),
        }?;
        support::write(&mut io::stdout(), &out)?;
        Ok(code)
    }
}

fn show(
    out: &mut Vec<u8>,
    selection: &Selection,
    resolved: bool,
    tree: &TreeArgs,
) -> miette::Result<ExitCode> {
    let fragments = tree.fragments()?;
    if resolved {
        let source = tree.source(&selection.series)?;
        let resolved = tree.resolver(&source, &selection.series, &fragments)?.resolve(selection, None)?;
        for (symbol, value) in resolved.config.set() {
            writeln!(out, "{}", value.line(symbol)).into_diagnostic()?;
        }
    } else {
        out.extend(fragments.requests(selection).to_config().into_bytes());
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(
    out: &mut Vec<u8>,
    symbols: &[String],
    selection: &Selection,
    tree: &TreeArgs,
) -> miette::Result<ExitCode> {
    let fragments = tree.fragments()?;
    let source = tree.source(&selection.series)?;
    let config = tree.resolver(&source, &selection.series, &fragments)?.resolve(selection, None)?.config;
    let kconfig = Tree::load(source.path())?;
    writeln!(out, "{selection}").into_diagnostic()?;
    for symbol in symbols {
        let explanation = kconfig::explain(symbol, &config, &kconfig, &fragments, selection);
        write!(out, "{explanation}").into_diagnostic()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One side of a comparison: a configuration, a directory with one, or a selection.
fn values(operand: &str) -> miette::Result<Values> {
    let path = Path::new(operand);
    let in_dir = ["config", ".config"].into_iter().map(|name| path.join(name)).find(|file| file.is_file());
    if let Some(file) = in_dir.or_else(|| path.is_file().then(|| path.to_owned())) {
        return Ok(Values::from(&DotConfig::load(&file)?));
    }
    let selection: Selection = operand.parse().into_diagnostic().wrap_err_with(|| {
        format!("`{operand}` is neither a configuration, nor a directory with one, nor a selection such as 7.3:7.8,7.9:core,vpn")
    })?;
    Ok(Values::from(&Fragments::builtin()?.requests(&selection)))
}

fn diff(out: &mut Vec<u8>, a: &str, b: &str) -> miette::Result<ExitCode> {
    for Difference { symbol, from, to } in kconfig::diff(&values(a)?, &values(b)?) {
        writeln!(out, "{symbol}: {from} -> {to}").into_diagnostic()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The entries of one workload, or of all, sorted by workload.
fn entries(fragments: &Fragments, only: Option<Workload>) -> Vec<&Origin> {
    let mut entries: Vec<_> =
        fragments.entries().iter().filter(|origin| only.is_none_or(|w| origin.workload == w)).collect();
    entries.sort_by_key(|origin| origin.workload);
    entries
}

fn list(out: &mut Vec<u8>, why: bool, only: Option<Workload>) -> miette::Result<ExitCode> {
    let fragments = Fragments::builtin()?;
    for origin in entries(&fragments, only) {
        if why {
            writeln!(out, "{origin}")
        } else {
            writeln!(out, "{}={} ({})", origin.symbol, origin.value, origin.workload)
        }
        .into_diagnostic()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a Markdown page with one table per workload.
fn list_markdown(out: &mut Vec<u8>, only: Option<Workload>) -> miette::Result<ExitCode> {
    let fragments = Fragments::builtin()?;
    writeln!(
        out,
        "# Configuration reference\n\nEvery symbol that a vmmlinux kernel requests, with the reason. Kconfig derives \
         all others. Generated from `kernel/config` by `vmmlinux config list --markdown`."
    )
    .into_diagnostic()?;
    // Escapes cell separators and tags.
    let cell = |text: &str| text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ");
    let mut workload = None;
    for origin in entries(&fragments, only) {
        if workload != Some(origin.workload) {
            workload = Some(origin.workload);
            writeln!(
                out,
                "\n## {}\n\n| symbol | value | only for | why |\n|---|---|---|---|",
                origin.workload
            )
            .into_diagnostic()?;
        }
        let mut only_for: Vec<_> =
            origin.series.iter().flatten().map(|series| format!("Linux {series}")).collect();
        only_for.extend(origin.hosts.iter().flatten().map(|host| format!("OpenBSD {host}")));
        let (value, why) = (cell(&origin.value.to_string()), cell(&origin.why));
        writeln!(out, "| `{}` | `{value}` | {} | {why} |", origin.symbol, only_for.join(", "))
            .into_diagnostic()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check(out: &mut Vec<u8>, series: Option<String>, tree: &TreeArgs) -> miette::Result<ExitCode> {
    let fragments = tree.fragments()?;
    let mut failed = 0_usize;
    let all: Vec<String> = match (series, &tree.tree) {
        (Some(series), _) => vec![series],
        (None, Some(_)) => vec!["7.3".to_owned()],
        (None, None) => tree.kernel.builder()?.series().series.keys().cloned().collect(),
    };
    for series in all {
        let source = tree.source(&series)?;
        let resolver = tree.resolver(&source, &series, &fragments)?;
        let kconfig = Tree::load(source.path())?;
        let backends = Backends::load(source.path());
        for selection in fragments.selections(&series) {
            let requests = fragments.requests(&selection);
            let unknown = kconfig::unknown(&requests, &kconfig);
            if !unknown.is_empty() {
                miette::bail!(
                    help = "correct the name, or limit the entry to the series that have the symbol",
                    "{selection}: Linux {series} has no symbol {}",
                    unknown.join(", ")
                );
            }
            match resolver.resolve(&selection, Some(&backends)) {
                Ok(made) => {
                    let (requested, set) = (made.requests.len(), made.config.set().count());
                    writeln!(out, "{selection}: {requested} requested, {set} set").into_diagnostic()?;
                }
                Err(error) => {
                    support::note!("{error:?}");
                    failed += 1;
                }
            }
        }
    }
    if failed > 0 {
        miette::bail!(
            help = "correct the entries of kernel/config as told above",
            "{failed} selections cannot be configured"
        );
    }
    Ok(ExitCode::SUCCESS)
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
    use super::*;

    #[test]
    fn the_reference_has_a_row_for_each_entry() {
        let mut page = Vec::new();
        list_markdown(&mut page, None).unwrap();
        let page = String::from_utf8(page).unwrap();
        let rows = page.lines().filter(|line| line.starts_with("| `")).collect::<Vec<_>>();
        assert_eq!(rows.len(), Fragments::builtin().unwrap().entries().len());
        // Four cells, whatever is in them.
        assert!(rows.iter().all(|row| row.replace("\\|", "").matches('|').count() == 5));
        assert!(page.contains("\n## core\n"));
    }

    #[test]
    fn a_selection_is_compared_with_a_file_in_what_it_names() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "CONFIG_VIRTIO_BLK=m\nCONFIG_SOUND=y\n").unwrap();
        let mut out = Vec::new();
        diff(&mut out, file.path().to_str().unwrap(), "7.3:7.8:core").unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("VIRTIO_BLK: m -> y\n"), "{text}");
        assert!(!text.contains("SOUND"), "{text}");
        let mut out = Vec::new();
        diff(&mut out, "7.3:7.9:core", "7.3:8.0:core").unwrap();
        assert!(String::from_utf8(out).unwrap().contains("ACPI: n -> y\n"));
    }

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
