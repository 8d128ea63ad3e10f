//! `vmmlinux vmconf`: writes a vm.conf(5) stanza for an image, and checks an existing vm.conf.

use std::{
    fmt::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Subcommand, ValueEnum};
use disk_image::Content;
use miette::{MietteHandler, MietteHandlerOpts, ReportHandler, miette};
use serde_json::json;
#[cfg(target_os = "openbsd")]
use support::sandbox::Access;
use vmconf::{Check, Config, Finding, Located, Network, NewSwitch, Owner, Proposal, Severity};
use vmd_release::{Disk, DiskFormat, Generation};

use crate::{
    args::{disk, size},
    disk_images,
    file_magic::FileMagic,
};

/// Exit status of a check that found an error; 1 means that the file could not be checked.
const EXIT_REFUSED: u8 = 2;

/// Arguments of `vmmlinux vmconf`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Check a vm.conf for errors and for settings that harm Linux guests
    ///
    /// Reads the file and its includes as vmd(8) of 7.8 does. The exit status is 0 if vmd accepts the file, 2 if it does
    /// not, and 1 if the file could not be read.
    Check {
        /// The vm.conf to check
        #[cfg_attr(target_os = "openbsd", arg(default_value = "/etc/vm.conf"))]
        file: PathBuf,
        /// OpenBSD releases to check for, separated by commas
        #[arg(long, value_name = "RELEASE", value_delimiter = ',')]
        host: Vec<Generation>,
        /// Host's root directory: look up includes, images and owners below it
        #[arg(long, value_name = "DIR")]
        #[cfg_attr(target_os = "openbsd", arg(default_value = "/"))]
        root: Option<PathBuf>,
        /// Print the findings as JSON
        #[arg(long)]
        json: bool,
        /// Lowest severity to print
        #[arg(long, value_enum, default_value = "note")]
        min: Min,
    },
    /// List the differences between the vmd of OpenBSD releases
    Releases,
}

/// The least severity to print.
#[derive(Clone, Copy, ValueEnum)]
enum Min {
    /// Everything
    Note,
    /// Settings that harm the guest
    Warning,
    /// What vmd refuses
    Error,
}

impl From<Min> for Severity {
    fn from(min: Min) -> Self {
        match min {
            Min::Note => Self::Note,
            Min::Warning => Self::Warning,
            Min::Error => Self::Error,
        }
    }
}

#[derive(clap::Args)]
struct WriteArgs {
    /// Disk image, with an optional format prefix raw: or qcow2:
    #[arg(required = true, value_parser = disk)]
    image: Option<Disk>,
    /// Name of the VM
    #[arg(long, default_value = "linux")]
    name: String,
    /// Memory size, such as 512M or 2G
    #[arg(short, long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    memory: u64,
    /// Format of the image on the host, raw or qcow2 [default: unchanged]
    #[arg(long)]
    format: Option<DiskFormat>,
    /// Add an empty second disk of this size
    #[arg(long, value_name = "SIZE", value_parser = size)]
    data: Option<u64>,
    /// Add an ISO image
    #[arg(short = 'r', long, value_name = "ISO")]
    cdrom: Option<String>,
    /// Network interface: `local` (DHCP from vmd), `none`, the NAME of a switch, NAME=veb0 to make a switch with a network
    /// of its own (NAT), or NAME=veb0,em0 and NAME=bridge0,em0 to join the network of the host's em0
    #[arg(short = 'i', long = "interface", value_name = "NETWORK", default_value = "local")]
    network: String,
    /// User or group that may start and stop the VM and use its console: USER, USER:GROUP or :GROUP
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
    /// Start the VM, or its instances, when vmd starts
    #[arg(long)]
    autostart: bool,
    /// Write a template: its owner may make instances of it with `vmctl start -t`
    #[arg(long)]
    template: bool,
    /// Write a template and these instances of it, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    instance: Vec<String>,
    /// Directory of the images on the host
    #[arg(long, value_name = "DIR", default_value = "/var/vmm")]
    home: String,
    /// File of public keys that may log in as root by SSH
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Add notes on these OpenBSD releases, separated by commas
    #[arg(long, value_name = "RELEASE", value_delimiter = ',')]
    host: Vec<Generation>,
}

impl Args {
    /// The files that the subcommand reads: a vm.conf names others, and so does a qcow2 image.
    #[cfg(target_os = "openbsd")]
    pub(crate) fn access(&self) -> Access<'_> {
        match self.command {
            Some(Command::Releases) => Access::Streams,
            Some(Command::Check { .. }) | None => Access::Read(vec![Path::new("/")]),
        }
    }

    /// Writes a stanza, checks a file, or lists the releases.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        match self.command {
            Some(Command::Check { file, host, root, json, min }) => {
                check(&file, &Check { hosts: host, root }, json, min.into())
            }
            Some(Command::Releases) => {
                support::print(&Generation::ALL.map(release).concat())?;
                Ok(ExitCode::SUCCESS)
            }
            None => {
                support::print(&self.write.proposal()?.text()?)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// The notes on a release, as text.
fn release(host: Generation) -> String {
    let older = if host == Generation::V7_7 { " and older" } else { "" };
    format!("OpenBSD {host}{older}:\n- {}\n\n", vmconf::notes(host).join("\n- "))
}

impl WriteArgs {
    fn proposal(self) -> miette::Result<Proposal> {
        let image = self.image.ok_or_else(|| miette!("no disk image was named"))?;
        let format = match image.format {
            Some(format) => format,
            None => found_format(&image.path)?,
        };
        let template = self.template || !self.instance.is_empty();
        let on_host = match self.format {
            Some(DiskFormat::Raw) if template => {
                let help = "leave --format away: a raw image is converted on the host";
                return Err(miette!(help = help, "the disks of instances need a qcow2 image as their base"));
            }
            Some(format) => format,
            None if template => DiskFormat::Qcow2,
            None => format,
        };
        let path = image.path.to_str().ok_or_else(|| {
            let name = vmconf::printable(&image.path.to_string_lossy());
            miette!(
                help = "rename the file",
                "the name {name} is not UTF-8, and vm.conf cannot be sure to have it"
            )
        })?;
        let disk = vmconf::Disk { path: path.to_owned(), format, on_host };
        let ssh_keys = self.ssh_key.as_deref().map(vmconf::SshKeys::read).transpose()?;
        let proposal = Proposal {
            memory: self.memory.cast_signed(),
            data: self.data.map(u64::cast_signed),
            cdrom: self.cdrom,
            network: network(&self.network)?,
            owner: self.owner.as_deref().map(Owner::parse),
            answers_stop: true,
            autostart: self.autostart,
            template: self.template,
            instances: self.instance,
            home: self.home.trim_end_matches('/').to_owned(),
            ssh_keys: ssh_keys.map(|keys| keys.as_str().to_owned()),
            hosts: self.host,
            ..Proposal::new(self.name, disk)
        };
        accepted_by_vmd(&proposal)?;
        Ok(proposal)
    }
}

/// The network that `-i` names. Fails for an uplink that would cut the host off.
fn network(text: &str) -> miette::Result<Network> {
    let (name, declared) = match text.split_once('=') {
        None if text == "local" => return Ok(Network::Local),
        None if text == "none" => return Ok(Network::None),
        None => (text, None),
        Some((name, declared)) => (name, Some(declared)),
    };
    let declared = declared.map(|declared| match declared.split_once(',') {
        None => NewSwitch { interface: declared.to_owned(), uplink: None },
        Some((interface, uplink)) => {
            NewSwitch { interface: interface.to_owned(), uplink: Some(uplink.to_owned()) }
        }
    });
    if let Some(NewSwitch { interface, uplink: Some(uplink) }) = &declared {
        let shown = vmconf::printable(uplink);
        if vmconf::is_wireless(uplink) {
            let help = format!("-i {name}={interface} makes a network of the guests' own, with NAT");
            return Err(miette!(
                help = help,
                "{shown} is a wireless interface: guests cannot join its network"
            ));
        }
        let kind = uplink.trim_end_matches(|c: char| c.is_ascii_digit());
        if kind.is_empty() || kind.len() == uplink.len() || !kind.bytes().all(|b| b.is_ascii_alphabetic()) {
            return Err(miette!(
                help = "ifconfig(8) lists them on the host",
                "`{shown}` cannot be a network interface"
            ));
        }
    }
    Ok(Network::Switch { name: name.to_owned(), declared })
}

/// Fails if vmd would refuse the proposed stanza; prints what else is wrong with it.
fn accepted_by_vmd(proposal: &Proposal) -> miette::Result<()> {
    let text: String = proposal.statements().iter().map(ToString::to_string).collect();
    let config = vmconf::read_text("the stanza", &text, &|_| Err(std::io::ErrorKind::NotFound.into()));
    let check = Check { hosts: proposal.hosts.clone(), root: None };
    for finding in vmconf::check(&config, &check) {
        match finding.severity {
            Severity::Error => return Err(miette::Report::new(finding.located(&config.sources))),
            // A switch without a declaration here is expected in the existing file.
            Severity::Warning if !finding.message.starts_with("there is no switch") => {
                support::note!("{:?}", miette::Report::new(finding.located(&config.sources)));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The format of an image, by its first bytes. Fails for a kernel, with the command that makes a disk from it.
fn found_format(path: &Path) -> miette::Result<DiskFormat> {
    if path.join("bzImage").is_file() {
        let path = path.display();
        let help = format!(
            "create a disk from it: vmmlinux image {path}; to update an existing guest: vmmlinux build --package deb"
        );
        return Err(miette!(help = help, "{path} is a kernel, and vmd boots Linux from disks"));
    }
    let start = FileMagic::read(path).map_err(|error| {
        let help = "name an image that `vmmlinux image` created; with the prefix raw: or qcow2: the file need not exist here";
        miette!(help = help, "cannot read {}: {error}", path.display())
    })?;
    if start.is_bzimage() {
        return Err(miette!(
            help = format!("create a disk from it: vmmlinux image --kernel {}", path.display()),
            "{} is a Linux kernel, and vmd boots Linux from disks",
            path.display()
        ));
    }
    Ok(match disk_images::check(path, None, true)? {
        Content::Qcow2 => DiskFormat::Qcow2,
        _ => DiskFormat::Raw,
    })
}

fn check(file: &Path, options: &Check, json: bool, min: Severity) -> miette::Result<ExitCode> {
    let config = vmconf::read(file, options.root.as_deref()).map_err(|error| {
        let help = "name a copy of the host's /etc/vm.conf; `vmmlinux vmconf IMAGE` writes a new stanza";
        miette!(help = help, "cannot read {}: {error}", vmconf::printable(&file.to_string_lossy()))
    })?;
    let mut findings = vmconf::check(&config, options);
    findings.retain(|finding| finding.severity >= min);
    let text =
        if json { as_json(file, &config, &findings) } else { as_text(file, &config, options, &findings) };
    support::print(&text)?;
    let refused = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if refused { ExitCode::from(EXIT_REFUSED) } else { ExitCode::SUCCESS })
}

fn as_json(file: &Path, config: &Config, findings: &[Finding]) -> String {
    let list: Vec<_> = findings
        .iter()
        .map(|finding| {
            json!({
                "severity": finding.severity,
                "place": finding.place(&config.sources),
                "message": finding.message,
                "label": finding.label,
                "help": finding.help,
            })
        })
        .collect();
    let file = vmconf::printable(&file.to_string_lossy());
    format!("{:#}\n", json!({ "file": file, "grammar": vmconf::NEWEST_GRAMMAR, "findings": list }))
}

/// A finding as miette shows it. Reports that make their handler anew look at the terminal each time.
struct Shown<'a>(&'a MietteHandler, &'a Located);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug(self.1, f)
    }
}

fn as_text(file: &Path, config: &Config, options: &Check, findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let counted = |count: usize, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let mut text = String::new();
    let handler = MietteHandlerOpts::new().build();
    for finding in findings {
        let _ = writeln!(text, "{}", Shown(&handler, &finding.located(&config.sources)));
    }
    let _ = writeln!(
        text,
        "{}: {}, {}, {}, {}",
        vmconf::printable(&file.to_string_lossy()),
        counted(config.vms().count(), "VM"),
        counted(count(Severity::Error), "error"),
        counted(count(Severity::Warning), "warning"),
        counted(count(Severity::Note), "note")
    );
    if options.hosts.iter().any(|host| *host > vmconf::NEWEST_GRAMMAR) {
        let _ = writeln!(
            text,
            "checked against the vm.conf(5) of {}, the newest known release: additions of later releases are reported as \
             errors; run `vmd -n` on the host",
            vmconf::NEWEST_GRAMMAR
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use rstest::rstest;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"vmconf").chain(arguments)).map(|cli| cli.args)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
        assert!(parse(&[]).is_err());
        assert!(matches!(parse(&["check", "x"]).unwrap().command, Some(Command::Check { .. })));
        assert!(parse(&["a.img", "-m", "lots"]).is_err());
    }

    /// The script for these arguments, or the first line of the error.
    fn text(arguments: &[&str]) -> Result<String, String> {
        let proposal = parse(arguments).unwrap().write.proposal().map_err(|error| error.to_string())?;
        proposal.text().map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_is_told_by_its_contents() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.qcow2");
        let mut header = vec![0; 112];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        // Clusters of 64 KiB, refcounts of 16 bits.
        (header[23], header[99]) = (16, 4);
        std::fs::write(&image, header).unwrap();

        let written = text(&[image.to_str().unwrap(), "--format", "raw"]).unwrap();

        assert!(
            written.contains("vmctl create -i qcow2:/var/vmm/disk.qcow2 raw:/var/vmm/disk.img"),
            "{written}"
        );
    }

    #[test]
    fn an_image_that_vmd_does_not_take_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.vmdk");
        std::fs::write(&image, b"KDMV").unwrap();

        let refused = text(&[image.to_str().unwrap()]).unwrap_err();

        assert!(refused.contains("is a VMDK image"), "{refused}");
    }

    #[rstest]
    #[case::directory(".")]
    #[case::file("bzImage")]
    fn a_kernel_is_not_taken_for_an_image(#[case] name: &str) {
        let dir = tempfile::tempdir().unwrap();
        let mut kernel = vec![0; 0x300];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        std::fs::write(dir.path().join("bzImage"), kernel).unwrap();

        let refused = text(&[dir.path().join(name).to_str().unwrap()]).unwrap_err();

        assert!(refused.contains("boots Linux from disks"), "{refused}");
    }

    #[rstest]
    #[case::name(&["--name", "_odd"], "cannot be the name of a VM")]
    #[case::switch(&["-i", "up=em0"], "cannot be a switch")]
    #[case::wireless(&["-i", "up=veb0,iwx0"], "wireless")]
    #[case::uplink(&["-i", "up=veb0,em0;reboot"], "cannot be a network interface")]
    #[case::raw_base(&["--instance", "web", "--format", "raw"], "need a qcow2 image")]
    #[case::home(&["--home", "~/vms"], "does not expand")]
    #[case::control(&["--cdrom", "a\u{1b}[2J.iso"], "control characters")]
    fn a_bad_choice_is_refused(#[case] arguments: &[&str], #[case] why: &str) {
        let refused = text(&[&["raw:a.img"], arguments].concat()).unwrap_err();

        assert!(refused.contains(why), "{refused}");
    }

    #[test]
    fn instances_turn_the_vm_into_a_template() {
        let written = text(&["raw:a.img", "--name", "base", "--instance", "web,mail"]).unwrap();

        assert!(written.contains("vm \"base\" instance \"mail\" {"), "{written}");
        assert!(written.contains("vmctl create -b /var/vmm/a.qcow2 qcow2:/var/vmm/mail.qcow2"), "{written}");
    }

    #[test]
    fn a_switch_leaves_the_hosts_interfaces_alone() {
        let written = text(&["raw:a.img", "-i", "up=veb0"]).unwrap();

        assert!(written.contains("switch \"up\" {\n\tinterface veb0\n}"), "{written}");
        assert!(!written.contains("add em0"), "{written}");
    }
}
