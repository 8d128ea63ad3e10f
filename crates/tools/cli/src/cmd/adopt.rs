//! `vmmlinux adopt`: makes a disk for vmd(8), and a seed for cloud-init, from a distribution's cloud image.

use std::{path::PathBuf, process::ExitCode};

use disk_image::word;
use image::{Adoption, Error, Hostname, Identity, Size, Tools};
use vmconf::SshKeys;
use vmd_release::DiskFormat;

/// Arguments of `vmmlinux adopt`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Cloud image of a distribution, raw or qcow2, for BIOS: Debian's `generic`, Alpine's `bios`, …
    image: PathBuf,

    /// Path of the disk; the seed NAME-seed.iso goes beside it [default: the hostname in the working directory]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Format of the disk: raw or qcow2
    #[arg(long, default_value = "qcow2")]
    format: DiskFormat,

    /// Size of the disk with K, M, G or T, such as 8G [default: that of the image]; cloud-init grows the file system
    #[arg(long)]
    size: Option<Size>,

    /// Hostname of the guest and name of its VM
    #[arg(long, value_name = "NAME", default_value = "linux")]
    hostname: Hostname,

    /// File of public keys that may log in by SSH as the distribution's user
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,

    /// User data for cloud-init: a #cloud-config, a script, …
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,

    /// Package for the guest to install at its first boot: a .deb, or a .tar.xz of `vmmlinux build` or `vmmlinux package`
    /// (may be repeated)
    #[arg(long, value_name = "FILE")]
    package: Vec<PathBuf>,

    /// Replace an existing disk and seed
    #[arg(long)]
    force: bool,
}

impl Args {
    /// Makes disk and seed and prints how to run them.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let identity = Identity::from_env(self.hostname.as_str())?;
        let output = self.output.unwrap_or_else(|| {
            PathBuf::from(format!("{}.{}", self.hostname.as_str(), self.format.extension()))
        });
        let options = Adoption {
            image: self.image,
            output,
            format: self.format,
            size: self.size,
            hostname: self.hostname,
            ssh_keys: self.ssh_key.as_deref().map(SshKeys::read).transpose()?,
            user_data: self.user_data,
            packages: self.package,
            force: self.force,
        };
        let adopted =
            match image::adopt(&options, &identity, &Tools::default(), &|step| support::note!("{step}")) {
                Err(stopped @ Error::Interrupted) => {
                    support::note!("{:?}", miette::Report::from(stopped));
                    // The exit status that a shell gives to a program killed by SIGINT.
                    return Ok(ExitCode::from(130));
                }
                other => other?,
            };
        support::note!("{}: disk; {}: seed", adopted.disk.display(), adopted.seed.display());
        if options.ssh_keys.is_none() && options.user_data.is_none() {
            support::note!(
                "without --ssh-key and --user-data nothing may log in: cloud images have no password"
            );
        }
        support::note!(
            "to run it here: vmmlinux run -i --cdrom {} {}\n",
            word(&adopted.seed),
            word(&adopted.disk)
        );
        support::print(&adopted.instructions())?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_enough() {
        let args: Args =
            super::super::parse("adopt debian.qcow2 --package a.deb --package b.tar.xz").unwrap();

        assert_eq!(args.image, PathBuf::from("debian.qcow2"));
        assert_eq!(args.package.len(), 2);
        assert!(super::super::parse::<Args>("adopt").is_err());
    }
}
