//! Errors of the VMM: a VM cannot be set up or run.

use std::{io, path::PathBuf, time::Duration};

use devices::virtio::disk::DiskError;
use miette::Diagnostic;
use thiserror::Error;
use vmd_release::Generation;

/// Why a VM could not be set up or run. Why a *guest* exited is [`crate::ExitReason`].
#[derive(Debug, Error, Diagnostic)]
#[non_exhaustive]
pub enum Error {
    /// A memory size that vmd does not support.
    #[error(transparent)]
    #[diagnostic(help("vmd gives a VM between 1 MiB and 128 GiB; for Linux take 128M or more"))]
    BadMemorySize(#[from] devices::memory_map::BadMemorySize),
    /// A memory size that vmd supports but with which no guest can start, or not on KVM.
    #[error("a guest cannot start with {size} bytes of memory")]
    #[diagnostic(help("use whole MiB, 8 MiB at least; for Linux take 128M or more"))]
    MemorySize {
        /// The requested size in bytes.
        size: u64,
    },
    /// A number of vCPUs that vmd does not support.
    #[error("a VM of vmd {generation} cannot have {cpus} processors")]
    #[diagnostic(help("{}", cpus_help(*most)))]
    Cpus {
        /// The requested number.
        cpus: u8,
        /// The OpenBSD release whose vmd is emulated.
        generation: Generation,
        /// The most vCPUs that it supports.
        most: u8,
    },
    /// A rate of the host's clock interrupt that no host has.
    #[error("a host's clock interrupt does not fire {hz} times a second")]
    #[diagnostic(help("use a rate of 1 to {}; OpenBSD's is 100", devices::clock::HostTicks::MAX_HZ))]
    HostHz {
        /// The requested rate in Hz.
        hz: u32,
    },
    /// A choice between behaviours for a release whose behaviour is known.
    #[error("the behaviour of vmd {generation} is known: there is nothing to choose")]
    #[diagnostic(help("leave the option out, or emulate vmd 7.9 (`--host 7.9`)"))]
    Unsettled {
        /// The OpenBSD release whose vmd is emulated.
        generation: Generation,
    },
    /// The host cannot provide the guest's memory.
    #[error("cannot allocate the guest's memory")]
    #[diagnostic(help("give the guest less memory (`-m`), or free some on the host"))]
    AllocateMemory {
        /// From the mapping.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file could not be read.
    #[error("cannot read {what} from {}", path.display())]
    #[diagnostic(help("check that the file exists and that you may read it"))]
    Read {
        /// The file's contents.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// From the system.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {what} to {}", path.display())]
    #[diagnostic(help("check the directory, its permissions, and free space on the file system"))]
    Write {
        /// The file's purpose.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// From the system.
        source: io::Error,
    },
    /// A symbol file that holds no kernel symbols.
    #[error("{} holds no kernel symbols", path.display())]
    #[diagnostic(help(
        "give the System.map that belongs to the kernel, or its vmlinux with a symbol table; for Debian's kernels both \
         are only in the package linux-image-…-dbg"
    ))]
    NoSymbols {
        /// The file.
        path: PathBuf,
    },
    /// A firmware image of a size that vmd refuses.
    #[error("{} is not a firmware image that vmd loads: it is {size} bytes long", path.display())]
    #[diagnostic(help(
        "vmd loads flat images of 15 bytes to 4 MiB, such as bios-256k.bin of Debian's package seabios"
    ))]
    FirmwareSize {
        /// The image.
        path: PathBuf,
        /// Its length.
        size: u64,
    },
    /// A kernel that cannot be booted directly.
    #[error("cannot boot the kernel {}: {reason}", path.display())]
    #[diagnostic(help(
        "direct boot takes an x86-64 bzImage (vmlinuz) or an ELF vmlinux that fits into the guest's memory; \
         compressed vmlinux files must be unpacked first"
    ))]
    Kernel {
        /// The kernel.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// An initrd that does not fit.
    #[error("the initrd {} ({size} bytes) does not fit into the guest's memory", path.display())]
    #[diagnostic(help("give the guest more memory (`-m`)"))]
    InitrdSize {
        /// The initrd.
        path: PathBuf,
        /// Its length in bytes.
        size: u64,
    },
    /// A command line that is too long or contains a NUL byte.
    #[error(
        "the kernel's command line is {length} bytes long or contains a NUL byte; the kernel takes up to {limit} bytes"
    )]
    #[diagnostic(help("shorten it, or build it into the kernel (CONFIG_CMDLINE)"))]
    CommandLine {
        /// Its length in bytes.
        length: usize,
        /// The kernel's limit in bytes.
        limit: usize,
    },
    /// A disk image cannot be used.
    #[error(transparent)]
    #[diagnostic(help("{}", disk_help(_0)))]
    Disk(#[from] DiskError),
    /// The VM has more devices than interrupt lines.
    #[error(transparent)]
    #[diagnostic(help(
        "vmd has 10 lines and shares none: rng and vmmci take one each, the rest is for disks, NICs and a CD-ROM"
    ))]
    BusFull(#[from] devices::pci::BusFull),
    /// The backend of a network interface cannot be set up.
    #[error("cannot set up {device}")]
    #[diagnostic(help("{help}"))]
    Device {
        /// The interface.
        device: String,
        /// What to do about it.
        help: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// /dev/kvm cannot be used.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Unusable(#[from] Unusable),
    /// KVM refused an operation that the VMM needs.
    #[error("KVM cannot {what}")]
    #[diagnostic(help(
        "the host's KVM lacks a required feature (Linux 5.10 or later has all of them); `--accel nested` needs no KVM on \
         the host"
    ))]
    Kvm {
        /// The operation, as an imperative.
        what: &'static str,
        /// From KVM.
        source: io::Error,
    },
    /// The host refused an operation outside KVM.
    #[error("cannot {what}")]
    Host {
        /// The operation, as an imperative.
        what: &'static str,
        /// From the system.
        source: io::Error,
    },
}

/// Time limit of the program in the probe's scratch VM. It takes about 10 ms where the
/// virtualisation extensions are emulated.
pub(crate) const PROBE_TIME_LIMIT: Duration = Duration::from_secs(5);

/// Why /dev/kvm cannot be used.
#[derive(Debug, Error, Diagnostic)]
pub enum Unusable {
    /// It does not exist or may not be opened.
    #[error("cannot open /dev/kvm")]
    #[diagnostic(help(
        "load the module kvm-amd or kvm-intel, join the group kvm, or use `--accel nested`, which needs neither"
    ))]
    NoKvm {
        /// From the system.
        source: std::io::Error,
    },
    /// The scratch VM cannot be set up.
    #[error("cannot set up a scratch VM on /dev/kvm: {reason}")]
    #[diagnostic(help("this KVM lacks required features: use `--accel nested`"))]
    SetupFailed {
        /// The refused operation.
        reason: String,
    },
    /// The program in the scratch VM took a wrong step.
    #[error("a guest on /dev/kvm does not behave as on a processor: {what}")]
    #[diagnostic(help("this KVM cannot run ordinary kernels: use `--accel nested`"))]
    WrongResult {
        /// The step and the expected one.
        what: String,
    },
    /// The program in the scratch VM did not finish.
    #[error("a guest on /dev/kvm hangs: a program of a few instructions did not finish within {} s", PROBE_TIME_LIMIT.as_secs())]
    #[diagnostic(help("this KVM cannot run ordinary kernels: use `--accel nested`"))]
    Hangs,
}

impl Error {
    /// Turns KVM's errno into an [`Error::Kvm`].
    pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |errno| Self::Kvm { what, source: io::Error::from_raw_os_error(errno.errno()) }
    }

    /// Turns an errno into an [`Error::Host`].
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |errno| Self::Host { what, source: errno.into() }
    }
}

fn cpus_help(most: u8) -> String {
    match most {
        1 => "vmd supports one vCPU up to 7.9: use `--host 8.0` or `--cpus 1`".to_owned(),
        most => format!("use 1 to {most}"),
    }
}

/// Advice about a disk image that cannot be used.
const fn disk_help(error: &DiskError) -> &'static str {
    match error {
        DiskError::Open { .. } => {
            "check the path and the permissions; vmd opens disks for reading and writing"
        }
        DiskError::Qcow2 { .. } => {
            "`qemu-img check` tells whether the image is sound; its base image must exist, too"
        }
        DiskError::BaseOfDetected { .. } => {
            "if the image is yours, give its format: `qcow2:PATH`. If a guest had it as a raw disk, the guest wrote that \
             header: use `raw:PATH`"
        }
        DiskError::Truncated { .. } => "copy or create the image again; `qemu-img check` names what is lost",
        DiskError::Refused { .. } => {
            "convert it: `qemu-img convert -O qcow2 -o compat=1.1,refcount_bits=16,extended_l2=off OLD NEW`"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_missing_disk_image_comes_with_what_to_do() {
        let error = devices::virtio::disk::check(Path::new("/nonexistent.img"), None, true).unwrap_err();
        assert!(Error::Disk(error).help().unwrap().to_string().contains("check the path"));
    }
}
