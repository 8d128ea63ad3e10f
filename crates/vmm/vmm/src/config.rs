//! What a machine is made of.

use std::{
    num::{NonZeroU32, NonZeroU64},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use vmd_release::Generation;

use crate::error::Error;

/// A machine's configuration: what vm.conf(5) has for a VM, and what is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The VM's name.
    pub name: String,
    /// Which vmd it runs on.
    #[serde(default = "default_generation")]
    pub generation: Generation,
    /// Virtual CPUs: 1, and on 8.0 up to [`vmd_release::Capabilities::max_vcpus`].
    #[serde(default = "default_cpus")]
    pub cpus: u8,
    /// Memory in bytes, whole MiB.
    #[serde(default = "default_memory")]
    pub memory: u64,
    /// What it boots.
    pub boot: Boot,
    /// Disks, in the order of their slots.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network interfaces, in the order of their slots.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// An ISO image in the CD-ROM drive; without one there is no drive.
    #[serde(default)]
    pub cdrom: Option<PathBuf>,
    /// Rate of the host's clock interrupt in Hz, to which vmd's timers are rounded. Every amd64 OpenBSD has 100.
    #[serde(default = "default_host_hz")]
    pub host_hz: NonZeroU32,
    /// Rate of the host's TSC in Hz, for hosts that do not tell it: the TSC counts as invariant then. See
    /// [`crate::host_tsc_hz`].
    #[serde(default)]
    pub tsc_hz: Option<NonZeroU64>,
    /// Whose processor the guest's CPUID and MSRs are of; the host's where it is not said. It is that in word only:
    /// what executes the guest is the host's.
    #[serde(default)]
    pub vendor: Option<Vendor>,
    /// As if the host's TSC were not invariant, so that OpenBSD does not know its rate.
    #[serde(default)]
    pub variable_tsc: bool,
    /// What a guest's reset does.
    #[serde(default)]
    pub on_reset: OnReset,
    /// Text on the console that means that the guest is ready, for the statistics.
    #[serde(default)]
    pub ready: Option<String>,
    /// Whether a [`crate::MARK`] on the console notes in the statistics what was counted so far.
    #[serde(default)]
    pub marks: bool,
    /// Where to record every port access.
    #[serde(default)]
    pub trace: Option<PathBuf>,
    /// The kernel's System.map or vmlinux, for names in diagnoses.
    #[serde(default)]
    pub symbols: Option<PathBuf>,
}

/// Where a machine boots from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Boot {
    /// Through firmware, from a disk or CD, as on vmd.
    Firmware {
        /// A SeaBIOS image.
        image: PathBuf,
        /// What it boots; `None` leaves the order to the firmware.
        #[serde(default)]
        device: Option<BootDevice>,
    },
    /// A Linux kernel straight into memory, for speed. vmd has this for OpenBSD's kernels only.
    Direct {
        /// A bzImage or vmlinux.
        kernel: PathBuf,
        /// An initial RAM disk.
        #[serde(default)]
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        #[serde(default)]
        command_line: String,
    },
}

/// What the firmware boots from: vmctl's `-B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootDevice {
    /// The first disk.
    Disk,
    /// The CD-ROM.
    Cdrom,
    /// The network: vmd's firmware cannot, and halts.
    Net,
}

impl From<BootDevice> for devices::legacy::fw_cfg::BootDevice {
    fn from(device: BootDevice) -> Self {
        match device {
            BootDevice::Disk => Self::Disk,
            BootDevice::Cdrom => Self::Cdrom,
            BootDevice::Net => Self::Net,
        }
    }
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its image.
    pub path: PathBuf,
    /// Its format; found out from the image where it is not named.
    #[serde(default)]
    pub format: Option<DiskFormat>,
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl From<DiskFormat> for devices::virtio::disk::DiskFormat {
    fn from(format: DiskFormat) -> Self {
        match format {
            DiskFormat::Raw => Self::Raw,
            DiskFormat::Qcow2 => Self::Qcow2,
        }
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// What it is plugged into.
    pub backend: NicBackend,
    /// Its MAC address, as `fe:e1:bb:d1:02:03`; made up as vmd does where it is not given.
    #[serde(default)]
    pub mac: Option<String>,
    /// Drop frames that are not from or for this address (`locked lladdr`).
    #[serde(default)]
    pub locked: bool,
    /// vmd answers DHCP itself (`vmctl start -L`). A [`NicBackend::Gateway`] always has it.
    #[serde(default)]
    pub local: bool,
}

/// What a network interface is plugged into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicBackend {
    /// A tap interface of the host, by name.
    Tap(String),
    /// A user-space network that listens on this Unix stream socket: passt, or QEMU's `-netdev stream`.
    Stream(PathBuf),
    /// A gateway inside the machine that answers DHCP, ping and TCP echo, with nothing behind it.
    Gateway,
    /// Nothing.
    Unplugged,
}

/// Who made a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// AMD: an EPYC of family 0x17.
    Amd,
    /// Intel: a Skylake.
    Intel,
}

/// What a guest's reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// What vmd does: start it again, unless a boot device was named (`-B`), which ends it.
    #[default]
    Vmd,
    /// Start it again.
    Restart,
    /// End.
    End,
}

fn default_generation() -> Generation {
    Generation::V7_8
}

fn default_cpus() -> u8 {
    1
}

/// 512 MiB, vmctl's own.
fn default_memory() -> u64 {
    512 << 20
}

fn default_host_hz() -> NonZeroU32 {
    NonZeroU32::new(100).unwrap()
}

impl Config {
    /// A machine called `name` that boots `boot` and has what vmctl gives by default: 512 MiB, vmd 7.8, no disks.
    pub fn new(name: impl Into<String>, boot: Boot) -> Self {
        Self {
            name: name.into(),
            generation: default_generation(),
            cpus: default_cpus(),
            memory: default_memory(),
            boot,
            disks: Vec::new(),
            nics: Vec::new(),
            cdrom: None,
            host_hz: default_host_hz(),
            tsc_hz: None,
            vendor: None,
            variable_tsc: false,
            on_reset: OnReset::default(),
            ready: None,
            marks: false,
            trace: None,
            symbols: None,
        }
    }

    /// Whether such a machine can be had from its vmd at all. [`crate::Machine::new`] asks, too.
    pub fn check(&self) -> Result<(), Error> {
        let most = self.generation.capabilities().max_vcpus;
        if !(1..=most).contains(&self.cpus) {
            return Err(Error::Cpus { cpus: self.cpus, generation: self.generation, most });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_configuration_gets_vmctls_defaults() {
        let config: Config =
            serde_json::from_str(r#"{"name":"x","boot":{"direct":{"kernel":"/vmlinuz"}}}"#).unwrap();
        let boot = Boot::Direct { kernel: "/vmlinuz".into(), initrd: None, command_line: String::new() };
        assert_eq!(config, Config::new("x", boot));
        assert_eq!((config.memory, config.host_hz.get()), (512 << 20, 100));
    }

    #[test]
    fn only_8_0_has_more_than_one_cpu() {
        let boot = Boot::Firmware { image: "b".into(), device: None };
        let check = |generation, cpus| Config { generation, cpus, ..Config::new("x", boot.clone()) }.check();
        for generation in Generation::ALL {
            assert!(check(generation, 1).is_ok() && check(generation, 0).is_err());
        }
        assert!(check(Generation::V8_0, 64).is_ok() && check(Generation::V8_0, 65).is_err());
        let refusal = check(Generation::V7_9, 2).unwrap_err();
        assert_eq!(refusal.to_string(), "a VM of vmd 7.9 cannot have 2 processors");
        assert!(miette::Diagnostic::help(&refusal).unwrap().to_string().contains("8.0"));
    }

    #[test]
    fn it_survives_a_round_trip_and_refuses_unknown_keys() {
        let mut config =
            Config::new("x", Boot::Firmware { image: "b".into(), device: Some(BootDevice::Cdrom) });
        config.generation = Generation::V7_7;
        config.nics.push(Nic {
            backend: NicBackend::Tap("tap0".into()),
            mac: Some("fe:e1:bb:d1:02:03".into()),
            locked: true,
            local: false,
        });
        config.disks.push(Disk { path: "d".into(), format: Some(DiskFormat::Qcow2) });
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
        let odd = text.replacen("\"name\"", "\"nmae\":1,\"name\"", 1);
        assert!(serde_json::from_str::<Config>(&odd).is_err());
    }
}
