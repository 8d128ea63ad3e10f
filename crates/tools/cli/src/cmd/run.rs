//! `vmmlinux run`: run a guest on emulated vmd hardware.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use miette::miette;
use runner::{Detached, EXIT_STATUS_HELP, FAILED, Network, Outcome, RunConfig};
use vmd_release::{BootDevice, Disk, Generation, Unsettled};
use vmm::{Boot, Config, OnReset, Vendor};
use vmm_control::{ExitReport, runtime_dir::check_name};

use crate::{
    args::{Accel, disk, duration, size},
    disk_images,
    file_magic::FileMagic,
};

/// Default firmware, the first that exists: SeaBIOS from Debian's packages seabios and qemu-system-data.
const FIRMWARE: [&str; 3] =
    ["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin", "/usr/share/qemu/bios.bin"];

/// Arguments of `vmmlinux run`.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
#[derive(clap::Args)]
#[command(after_long_help = EXIT_STATUS_HELP)]
pub(crate) struct Args {
    /// Disk image to boot from through the firmware, with an optional format prefix raw: or qcow2:
    #[arg(value_parser = disk)]
    image: Option<Disk>,
    /// Boot this bzImage or vmlinux directly, without firmware or boot loader
    #[arg(short = 'b', long, value_name = "BZIMAGE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk for --kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line for --kernel
    #[arg(long, value_name = "CMDLINE", requires = "kernel", default_value = "console=ttyS0,115200")]
    append: String,
    /// OpenBSD release whose vmd to emulate: 7.7 (and earlier), 7.8, 7.9 or 8.0
    #[arg(long, value_name = "RELEASE", default_value = "7.8")]
    host: Generation,
    /// Memory size, such as 512M or 2G
    #[arg(short, long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    memory: u64,
    /// Number of vCPUs: up to 64 with --host 8.0, otherwise 1
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=64))]
    cpus: u8,
    /// Additional disk image, with an optional format prefix raw: or qcow2: (may be repeated)
    #[arg(short, long, value_name = "DISK", value_parser = disk)]
    disk: Vec<Disk>,
    /// Add a network interface (may be repeated): `local` has DHCP and a gateway but no network behind it, `user` is
    /// NAT to the host's network, `tap:INTERFACE` a tap interface, `socket:PATH` a Unix socket of passt(1)
    #[arg(
        short = 'i',
        long = "interface",
        value_name = "NETWORK",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "local"
    )]
    interfaces: Vec<Network>,
    /// ISO image for the CD-ROM drive
    #[arg(short = 'r', long, value_name = "ISO")]
    cdrom: Option<PathBuf>,
    /// Device that the firmware boots from: disk, cdrom or net
    #[arg(short = 'B', long, value_name = "DEVICE", conflicts_with = "kernel", value_parser = boot_device)]
    boot_device: Option<BootDevice>,
    /// Firmware image [default: Debian's SeaBIOS]
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    firmware: Option<PathBuf>,
    /// Where the VM's KVM is
    #[arg(long, value_enum, default_value = "auto")]
    accel: Accel,
    /// Name of the VM for `vmmlinux ctl` [default: vm and the process id]
    #[arg(long)]
    name: Option<String>,
    /// Rate of the host's clock interrupt in Hz, 1 to 10000: vmd's timers are rounded to its ticks
    #[arg(long, value_name = "HZ", default_value = "100", value_parser = host_hz)]
    host_hz: NonZeroU32,
    /// CPU vendor shown to the guest in CPUID and MSRs: amd or intel [default: the host's]
    #[arg(long, value_name = "VENDOR", value_parser = vendor)]
    cpu_vendor: Option<Vendor>,
    /// Emulate a host whose TSC is not invariant: OpenBSD then hides the TSC's rate from guests
    #[arg(long)]
    variable_tsc: bool,
    /// With --host 7.9: emulate 8.0's corrected 8253 instead of 7.8's; which one 7.9 has is not known
    #[arg(long)]
    corrected_pit: bool,
    /// With --host 7.9: virtio feature words 2 and 3 read as ones instead of zero; what 7.9 does is not known
    #[arg(long)]
    feature_ones: bool,
    /// Exit when the guest resets, instead of starting it again
    #[arg(long)]
    no_reboot: bool,
    /// Record every port access to FILE
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write statistics to FILE when the guest has ended: a table for .txt, a plot for .svg, otherwise JSON; - writes
    /// JSON to standard error
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// System.map or vmlinux of the guest's kernel, for function names in diagnoses
    #[arg(long, value_name = "FILE")]
    system_map: Option<PathBuf>,
    /// Console text by which the guest reports that it is ready; the statistics record when it appears
    #[arg(long, value_name = "STRING")]
    ready: Option<String>,
    /// Record the counters in the statistics whenever the guest writes a record separator (0x1e) to the console
    #[arg(long)]
    marks: bool,
    /// Stop the guest by force after this time, such as 90s or 5m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
    /// Run in the background and print the VM's name; `vmmlinux ctl NAME console` attaches to its console
    #[arg(long)]
    detach: bool,
}

fn host_hz(text: &str) -> Result<NonZeroU32, String> {
    let hz = text.parse().ok().filter(|hz: &NonZeroU32| hz.get() <= vmm::MAX_HOST_HZ);
    hz.ok_or_else(|| format!("expected 1 to {}", vmm::MAX_HOST_HZ))
}

fn vendor(text: &str) -> Result<Vendor, String> {
    match text {
        "amd" => Ok(Vendor::Amd),
        "intel" => Ok(Vendor::Intel),
        _ => Err("expected amd or intel".to_owned()),
    }
}

fn boot_device(text: &str) -> Result<BootDevice, String> {
    match text {
        "disk" => Ok(BootDevice::Disk),
        "cdrom" => Ok(BootDevice::Cdrom),
        "net" => Ok(BootDevice::Net),
        _ => Err("expected disk, cdrom or net".to_owned()),
    }
}

impl Args {
    /// Runs the guest to its end, or starts the background process that does.
    pub(crate) fn run(self, log_filter: String) -> miette::Result<ExitCode> {
        let detached = runner::detached_name();
        let name = self.name.clone().or_else(|| detached.clone());
        let name = name.unwrap_or_else(|| format!("vm{}", std::process::id()));
        check_name(&name)?;
        if self.detach && detached.is_none() {
            return detach(&name);
        }
        let (statistics, networks, accel, timeout) =
            (self.stats.clone(), self.interfaces.clone(), self.accel.into(), self.timeout);
        let vm = self.vm_config(name.clone())?;
        let config = RunConfig { vm, networks, accel, log_filter, timeout, detached: detached.is_some() };
        let outcome = runner::run(config, &|text| support::note!("vmmlinux: {text}"))?;
        if let Some(path) = statistics {
            write_statistics(&path, &outcome)?;
        }
        report(&name, &outcome);
        Ok(ExitCode::from(outcome.exit_status()))
    }

    /// The VM that the arguments describe.
    fn vm_config(self, name: String) -> miette::Result<Config> {
        if self.image.is_none() && self.kernel.is_none() && self.cdrom.is_none() && self.disk.is_empty() {
            return Err(nothing_to_boot());
        }
        let from_disk = self.kernel.is_none()
            && self.cdrom.is_none()
            && matches!(self.boot_device, None | Some(BootDevice::Disk));
        for (number, disk) in self.image.iter().chain(&self.disk).enumerate() {
            disk_images::check(&disk.path, disk.format, from_disk && number == 0)?;
        }
        let boot = match self.kernel {
            Some(kernel) => Boot::Direct { kernel, initrd: self.initrd, command_line: self.append },
            None => Boot::Firmware { image: firmware(self.firmware)?, device: self.boot_device },
        };
        let mut config = Config::new(name, boot);
        config.generation = self.host;
        config.unsettled =
            Unsettled { pit_corrected: self.corrected_pit, feature_words_read_ones: self.feature_ones };
        config.memory = self.memory;
        config.cpus = self.cpus;
        // Checked before the helper VM is started for it.
        config.check()?;
        if let Boot::Direct { kernel, .. } = &config.boot {
            check_kernel(kernel)?;
        }
        config.disks = self.image.into_iter().chain(self.disk).collect();
        config.cdrom = self.cdrom;
        config.host_hz = self.host_hz;
        config.vendor = self.cpu_vendor;
        config.variable_tsc = self.variable_tsc;
        if self.no_reboot {
            config.on_reset = OnReset::End;
        }
        config.ready = self.ready;
        config.marks = self.marks;
        config.trace = self.trace;
        config.symbols = self.system_map;
        Ok(config)
    }
}

/// Starts the background process and prints the VM's name, or what the process said before it failed.
fn detach(name: &str) -> miette::Result<ExitCode> {
    match runner::detach(name)? {
        Detached::Running => {
            support::print(&format!("{name}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Detached::Failed { code, errors } => {
            support::note!("{}", errors.trim_end());
            Ok(ExitCode::from(code))
        }
    }
}

/// Writes the statistics in the format that the file's name asks for; `-` is standard error.
fn write_statistics(path: &Path, outcome: &Outcome) -> miette::Result<()> {
    let text = outcome.statistics(path.extension().and_then(|extension| extension.to_str()))?;
    if path == Path::new("-") {
        support::note!("{}", text.trim_end());
        return Ok(());
    }
    support::file::write_atomically(path, text.as_bytes())?;
    Ok(())
}

/// Prints the exit reason on standard error, unless the reader of the output has gone.
fn report(name: &str, outcome: &Outcome) {
    let ExitReport { status, text, help, .. } = &outcome.report;
    if outcome.output_closed && !outcome.timed_out {
        return;
    }
    if outcome.timed_out {
        support::note!("vmmlinux: {name}: --timeout expired: {text}");
        return;
    }
    match (help, *status) {
        (Some(help), _) => support::note!("{:?}", miette!(help = help.clone(), "{name}: {text}")),
        (None, FAILED) => support::note!("{:?}", miette!("{name}: {text}")),
        (None, _) => support::note!("vmmlinux: {name}: {text}"),
    }
}

/// The error for a command line without a boot medium, with a suggestion from what was built in out/.
fn nothing_to_boot() -> miette::Report {
    let (kernels, images) = crate::welcome::built(Path::new("out"));
    let help = match (images.first(), kernels.first()) {
        (Some(image), _) => format!("name a disk image, such as {}", image.display()),
        (None, Some(kernel)) => format!("create a disk image first: vmmlinux image {}", kernel.display()),
        (None, None) => {
            "name a disk image, which `vmmlinux image` creates; or use --kernel or --cdrom".to_owned()
        }
    };
    miette!(help = help, "nothing to boot: no disk image, kernel or CD-ROM was named")
}

/// Checks the kernel's format before it is packed for the helper VM, so that an error names the user's path.
fn check_kernel(path: &Path) -> miette::Result<()> {
    let help = "--kernel takes a bzImage, such as out/7.3/bzImage or /boot/vmlinuz-*, or an ELF vmlinux";
    let start = FileMagic::read(path)
        .map_err(|error| miette!(help = help, "cannot read the kernel {}: {error}", path.display()))?;
    if start.is_bzimage() || start.is_elf() {
        return Ok(());
    }
    Err(miette!(help = help, "{} is not a bootable kernel image", path.display()))
}

/// The firmware image that the user named, or the system's SeaBIOS.
fn firmware(named: Option<PathBuf>) -> miette::Result<PathBuf> {
    named.or_else(|| FIRMWARE.iter().map(PathBuf::from).find(|path| path.is_file())).ok_or_else(|| {
        miette!(
            help = "install Debian's package seabios, name an image with --firmware, or boot directly with --kernel",
            "SeaBIOS not found: looked for {}",
            FIRMWARE.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        super::super::parse(&format!("run {line}"))
    }

    #[test]
    fn the_forms_of_the_manual() {
        let disk = parse("disk.img -m 1G -d raw:more.img --host 7.7 -i -i=user -i=tap:tap3").unwrap();
        assert_eq!((disk.memory, disk.host), (1 << 30, Generation::V7_7));
        assert_eq!(disk.interfaces, [Network::Local, Network::User, Network::Tap("tap3".into())]);
        assert_eq!(disk.disk.len(), 1);
        assert_eq!((disk.cpus, parse("disk.img --host 8.0 --cpus 4").unwrap().cpus), (1, 4));
        let direct = parse("-i --kernel bzImage --initrd initrd --timeout 90s").unwrap();
        assert_eq!(direct.timeout, Some(Duration::from_secs(90)));
        assert_eq!(direct.interfaces, [Network::Local]);
        assert!(parse("--cdrom install.iso").is_ok());
    }

    #[test]
    fn what_cannot_boot_is_known_by_the_name_that_was_given() {
        let error = parse("").unwrap().run("warn".to_owned()).unwrap_err();
        assert!(error.to_string().contains("nothing to boot") && error.help().is_some());
        let error = check_kernel(Path::new("Cargo.toml")).unwrap_err();
        assert!(error.to_string().starts_with("Cargo.toml is not a bootable kernel"), "{error}");
        assert!(check_kernel(Path::new("no such file")).unwrap_err().to_string().contains("no such file"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "--initrd x a.img",
            "a.img --host 6.6",
            "a.img -m 512",
            "a.img -i=wifi",
            "a.img --host-hz 0",
            "a.img --host-hz 10001",
            "a.img --host-hz 2000000000",
            "a.img --cpus 0",
            "a.img --cpus 65",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
