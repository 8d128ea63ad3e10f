//! `vmmlinux vmconf`: writes a vm.conf(5) stanza for an image, and checks an existing vm.conf.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Subcommand, ValueEnum};
use miette::miette;
use serde_json::json;
use vmconf::{Check, Network, Owner, Proposal, Severity};
use vmd_release::{DiskFormat, Generation};

use crate::{
    args::{disk, size},
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
        file: PathBuf,
        /// OpenBSD releases to check for, separated by commas
        #[arg(long, value_name = "RELEASE", value_delimiter = ',')]
        host: Vec<Generation>,
        /// Also check the disk images, with paths relative to this directory (/ on the host itself)
        #[arg(long, value_name = "DIR")]
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
    image: Option<vmm::Disk>,
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
    /// Network interface: `local` (DHCP from vmd), `none`, the NAME of a switch, or NAME=veb0 to declare that switch too
    #[arg(short = 'i', long = "interface", value_name = "NETWORK", default_value = "local")]
    network: String,
    /// User or group that may start and stop the VM and use its console: USER, USER:GROUP or :GROUP
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
    /// Start the VM when vmd starts
    #[arg(long)]
    autostart: bool,
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
                support::print(&self.write.proposal()?.text())?;
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
        let on_host = self.format.unwrap_or(format);
        let network = match self.network.split_once('=') {
            None if self.network == "local" => Network::Local,
            None if self.network == "none" => Network::None,
            None => Network::Switch { name: self.network, interface: None },
            Some((name, interface)) => {
                Network::Switch { name: name.to_owned(), interface: Some(interface.to_owned()) }
            }
        };
        let path = image.path.display().to_string();
        let disk = vmconf::Disk { path, format, on_host };
        let ssh_keys = self.ssh_key.as_deref().map(image::SshKeys::read).transpose()?;
        let proposal = Proposal {
            memory: self.memory.cast_signed(),
            data: self.data.map(u64::cast_signed),
            cdrom: self.cdrom,
            network,
            owner: self.owner.as_deref().map(Owner::parse),
            autostart: self.autostart,
            home: self.home.trim_end_matches('/').to_owned(),
            ssh_keys: ssh_keys.map(|keys| keys.as_str().to_owned()),
            hosts: self.host,
            ..Proposal::new(self.name, disk)
        };
        // The stanza must be one that vmd accepts.
        let text: String = proposal.statements().iter().map(ToString::to_string).collect();
        let config = vmconf::read_text("the stanza", &text, &|_| Err(std::io::ErrorKind::NotFound.into()));
        let check = Check { hosts: proposal.hosts.clone(), root: None };
        for finding in vmconf::check(&config, &check) {
            match finding.severity {
                Severity::Error => return Err(miette::Report::new(finding.located(&config))),
                // A switch without a declaration here is expected in the existing file.
                Severity::Warning if !finding.message.starts_with("there is no switch") => {
                    support::note!("{:?}", miette::Report::new(finding.located(&config)));
                }
                _ => {}
            }
        }
        Ok(proposal)
    }
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
    Ok(if start.is_qcow2() { DiskFormat::Qcow2 } else { DiskFormat::Raw })
}

fn check(file: &Path, options: &Check, json: bool, min: Severity) -> miette::Result<ExitCode> {
    let config = vmconf::read(file).map_err(|error| {
        let help = "name a copy of the host's /etc/vm.conf; `vmmlinux vmconf IMAGE` writes a new stanza";
        miette!(help = help, "cannot read {}: {error}", file.display())
    })?;
    let mut findings = vmconf::check(&config, options);
    findings.retain(|finding| finding.severity >= min);
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let errors = count(Severity::Error);
    let text = if json {
        let list: Vec<_> = findings
            .iter()
            .map(|finding| {
                json!({
                    "severity": finding.severity,
                    "place": finding.place(&config),
                    "message": finding.message,
                    "label": finding.label,
                    "help": finding.help,
                })
            })
            .collect();
        format!("{:#}\n", json!({ "file": file, "grammar": vmconf::NEWEST_GRAMMAR, "findings": list }))
    } else {
        let mut text = String::new();
        for finding in &findings {
            let _ = writeln!(text, "{:?}", miette::Report::new(finding.located(&config)));
        }
        let counted = |count: usize, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let _ = writeln!(
            text,
            "{}: {}, {}, {}, {}",
            file.display(),
            counted(config.vms().count(), "VM"),
            counted(errors, "error"),
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
    };
    support::print(&text)?;
    Ok(if errors > 0 { ExitCode::from(EXIT_REFUSED) } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

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

    #[test]
    fn an_image_is_told_by_its_contents() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.qcow2");
        std::fs::write(&image, b"QFI\xfb\0\0\0\x03").unwrap();
        let path = image.to_str().unwrap();
        let text = |arguments: &[&str]| {
            parse(arguments).unwrap().write.proposal().map(|p| p.text()).map_err(|e| e.to_string())
        };
        let written = text(&[path, "--format", "raw", "-i", "up=veb0", "--owner", "joe"]).unwrap();
        assert!(
            written.contains("vmctl create -i qcow2:/var/vmm/disk.qcow2 raw:/var/vmm/disk.img"),
            "{written}"
        );
        assert!(written.contains("switch \"up\" {\n\tinterface veb0\n}"), "{written}");
        assert!(text(&[path, "--name", "_odd"]).is_err());
        assert!(text(&[path, "-i", "up=em0"]).unwrap_err().contains("cannot be a switch"));
        let mut kernel = vec![0; 0x300];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        std::fs::write(dir.path().join("bzImage"), kernel).unwrap();
        for path in [dir.path(), &dir.path().join("bzImage")] {
            assert!(text(&[path.to_str().unwrap()]).unwrap_err().contains("boots Linux from disks"));
        }
    }
}
