//! `vmmlinux image`: a bootable disk image for vmd(8) from a kernel.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use image::{Format, Hostname, Identity, Kernel, Net, Options, RootFs, Size, SshKeys, Tools};
use miette::{IntoDiagnostic, miette};
use signal_hook::{consts::SIGINT, flag};

/// Arguments of `vmmlinux image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Directory of a build, as `vmmlinux build` leaves it [default: the only one in out/]
    #[arg(value_name = "BUILD", conflicts_with = "kernel")]
    build: Option<PathBuf>,

    /// A bzImage instead of a build, such as a distribution's /boot/vmlinuz-RELEASE
    #[arg(long, value_name = "BZIMAGE")]
    kernel: Option<PathBuf>,

    /// Initial RAM disk, for a --kernel that does not find its root without one
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,

    /// Directory with lib/modules/RELEASE of the --kernel
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,

    /// The root file system's own kernel: of debian:SUITE its package linux-image-cloud-amd64, of tar:FILE what is in
    /// its /boot
    #[arg(long, conflicts_with_all = ["build", "kernel"])]
    stock_kernel: bool,

    /// Root file system: minimal (busybox), debian:SUITE, or tar:FILE, an archive of your own
    #[arg(long, value_name = "WHAT", default_value = "minimal")]
    rootfs: RootFs,

    /// Size of the disk, in K, M, G or T
    #[arg(long, default_value = "4G")]
    size: Size,

    /// Name of the guest and of its VM
    #[arg(long, value_name = "NAME", default_value = "linux")]
    hostname: Hostname,

    /// Public keys that may log in as root by SSH (Debian only)
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,

    /// Root's password [default: none, so that root logs in on the console without]
    #[arg(long, value_name = "PASSWORD")]
    root_password: Option<String>,

    /// First network interface: dhcp, none or `ADDRESS/PREFIX,GATEWAY[,DNS]`
    #[arg(long, default_value = "dhcp")]
    net: Net,

    /// More for the kernel's command line
    #[arg(long, value_name = "PARAMETERS", allow_hyphen_values = true)]
    append: Option<String>,

    /// Format of the file: raw or qcow2
    #[arg(long, default_value = "raw")]
    format: Format,

    /// Where the image goes [default: beside the kernel, named after the root file system]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Replace an image that is there already
    #[arg(long)]
    force: bool,

    /// A static busybox for the minimal root file system, instead of the system's or Debian's
    #[arg(long, value_name = "FILE")]
    busybox: Option<PathBuf>,

    /// A Debian package to install besides, such as vmmcid's (Debian only; may be given several times)
    #[arg(long, value_name = "FILE")]
    deb: Vec<PathBuf>,

    /// A Debian mirror for debian:SUITE, instead of the one in the system's apt configuration
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

impl Args {
    /// Makes the image and prints how to run it.
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
        // A Ctrl-C reaches the program that is being run, too: its failure ends the build, which then tidies up.
        let interrupted = Arc::new(AtomicBool::new(false));
        flag::register(SIGINT, Arc::clone(&interrupted)).into_diagnostic()?;
        let image = image::build(&options, &identity, &Tools::default(), &|step| support::note!("{step}"))
            .map_err(|error| {
                if interrupted.load(Ordering::Relaxed) {
                    miette!("interrupted: nothing was written")
                } else {
                    error.into()
                }
            })?;
        support::note!(
            "{}: a disk of {}, {}M of it in use, with Linux {}",
            image.path.display(),
            image.size,
            image.allocated.div_ceil(1 << 20),
            image.release
        );
        if options.root_password.is_none() {
            support::note!("root logs in on the console without a password");
        }
        support::note!("to try it here: vmmlinux run -i {}\n", image.path.display());
        support::print(&image.instructions())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The one directory below `out/` that has a kernel.
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
            help = "run `vmmlinux build` first, or give a kernel with --kernel",
            "no build in {}",
            Path::new("out").display()
        )),
        _ => {
            let names: Vec<_> = builds.iter().map(|b| b.display().to_string()).collect();
            Err(miette!(
                help = "name the one to use: vmmlinux image <BUILD>",
                "several builds: {}",
                names.join(", ")
            ))
        }
    }
}
