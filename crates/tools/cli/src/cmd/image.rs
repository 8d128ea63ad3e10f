//! `vmmlinux image`: creates a bootable disk image for vmd(8).

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use disk_image::word;
use image::{Error, Hostname, Identity, Kernel, Mirror, Net, Options, Parameters, RootFs, Size, Tools};
use miette::miette;
use vmconf::SshKeys;
use vmd_release::DiskFormat;

/// Arguments of `vmmlinux image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Output directory of `vmmlinux build` [default: the only one in out/]
    #[arg(value_name = "BUILD", conflicts_with = "kernel")]
    build: Option<PathBuf>,

    /// bzImage to use instead of a build, such as a distribution's /boot/vmlinuz-RELEASE
    #[arg(long, value_name = "BZIMAGE")]
    kernel: Option<PathBuf>,

    /// Initial RAM disk, for a --kernel that needs one to mount its root
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,

    /// Directory that contains lib/modules/RELEASE of the --kernel
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,

    /// Boot the root file system's own kernel: linux-image-cloud-amd64 of debian:SUITE, or the one in /boot of tar:FILE
    #[arg(long, conflicts_with_all = ["build", "kernel"])]
    stock_kernel: bool,

    /// Root file system: minimal (busybox), debian:SUITE, or tar:FILE (your own archive)
    #[arg(long, value_name = "WHAT", default_value = "minimal")]
    rootfs: RootFs,

    /// Size of the disk with K, M, G or T, such as 8G
    #[arg(long, default_value = "4G")]
    size: Size,

    /// Hostname of the guest and name of its VM
    #[arg(long, value_name = "NAME", default_value = "linux")]
    hostname: Hostname,

    /// File of public keys that may log in as root by SSH (Debian only)
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,

    /// Password of root [default: none: root logs in on the console without a password, or as in tar:FILE]
    #[arg(long, value_name = "PASSWORD")]
    root_password: Option<String>,

    /// Configuration of the first network interface: dhcp, none or `ADDRESS/PREFIX[,GATEWAY[,DNS]]` with IPv4 or IPv6
    /// addresses [default: dhcp; a root file system of your own keeps its own]
    #[arg(long)]
    net: Option<Net>,

    /// Additional kernel command line parameters
    #[arg(long, value_name = "PARAMETERS", allow_hyphen_values = true)]
    append: Option<Parameters>,

    /// Format of the image: raw or qcow2
    #[arg(long, default_value = "raw")]
    format: DiskFormat,

    /// Path of the image [default: beside the kernel, named after the root file system]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Replace an existing image
    #[arg(long)]
    force: bool,

    /// Static busybox for the minimal root file system [default: the system's, otherwise Debian's]
    #[arg(long, value_name = "FILE")]
    busybox: Option<PathBuf>,

    /// Additional Debian package to install, such as vmmcid's (Debian only; may be repeated)
    #[arg(long, value_name = "FILE")]
    deb: Vec<PathBuf>,

    /// Debian mirror for debian:SUITE [default: that of the system's apt configuration]
    #[arg(long, value_name = "URL")]
    mirror: Option<Mirror>,
}

impl Args {
    /// Creates the image and prints how to run it.
    pub(crate) fn run(self) -> miette::Result<ExitCode> {
        let (kernel, directory) = if self.stock_kernel {
            (None, PathBuf::from("."))
        } else if let Some(bzimage) = &self.kernel {
            let kernel = Kernel::from_files(bzimage, self.initrd.as_deref(), self.modules.as_deref())?;
            (Some(kernel), PathBuf::from("."))
        } else {
            let directory = self.build.map_or_else(only_build, Ok)?;
            (Some(Kernel::from_build(&directory)?), directory)
        };
        let output = self
            .output
            .unwrap_or_else(|| directory.join(format!("{}.{}", self.rootfs.name(), self.format.extension())));
        let identity = Identity::from_env(self.hostname.as_str())?;
        let options = Options {
            kernel,
            rootfs: self.rootfs,
            size: self.size,
            hostname: self.hostname,
            root_password: self.root_password,
            ssh_keys: self.ssh_key.as_deref().map(SshKeys::read).transpose()?,
            net: self.net,
            append: self.append,
            format: self.format,
            output,
            force: self.force,
            busybox: self.busybox,
            packages: self.deb,
            mirror: self.mirror,
        };
        if let Some(kernel) = &options.kernel {
            support::note!("kernel {}", kernel.release());
        }
        let step = |step: &str| support::note!("{step}");
        let image = match image::build(&options, &identity, &Tools::default(), &step) {
            Err(stopped @ Error::Interrupted) => {
                support::note!("{:?}", miette::Report::from(stopped));
                // The exit status that a shell gives to a program killed by SIGINT.
                return Ok(ExitCode::from(130));
            }
            other => other?,
        };
        support::note!(
            "{}: {} disk, {}M in use, with Linux {}",
            image.path.display(),
            image.size,
            image.allocated.div_ceil(1 << 20),
            image.release
        );
        for remark in &image.remarks {
            support::note!("note: {remark}");
        }
        if options.root_password.is_none() && !matches!(options.rootfs, RootFs::Archive { .. }) {
            support::note!("root logs in on the console without a password");
        }
        support::note!("to run it here: vmmlinux run -i {}\n", word(&image.path));
        support::print(&image.instructions())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The only directory below `out/` with a kernel; fails if there is none, or more than one.
fn only_build() -> miette::Result<PathBuf> {
    let mut builds: Vec<PathBuf> = fs::read_dir("out")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("bzImage").is_file())
        .collect();
    builds.sort();
    match builds.len() {
        1 => Ok(builds.remove(0)),
        0 => Err(miette!(
            help = "run `vmmlinux build` first, or name a kernel with --kernel",
            "no kernel build found in {}",
            Path::new("out").display()
        )),
        _ => {
            let names: Vec<_> = builds.iter().map(|b| b.display().to_string()).collect();
            Err(miette!(
                help = "name the build to use: vmmlinux image BUILD",
                "several kernel builds found: {}",
                names.join(", ")
            ))
        }
    }
}
