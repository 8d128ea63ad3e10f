//! Configuration of a VM.

use std::{
    num::{NonZeroU32, NonZeroU64},
    path::PathBuf,
};

use devices::{clock::HostTicks, virtio::disk};
use serde::{Deserialize, Serialize};
use vmd_release::{BootDevice, Capabilities, Disk, Generation, Unsettled};

use crate::error::Error;

/// The highest rate of a host's clock interrupt in Hz.
pub const MAX_HOST_HZ: u32 = HostTicks::MAX_HZ;

/// Configuration of a VM: the options of vm.conf(5) and this program's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The VM's name.
    pub name: String,
    /// The OpenBSD release whose vmd is emulated.
    #[serde(default = "default_generation")]
    pub generation: Generation,
    /// Answers to what is not known of 7.9; the default for all other releases.
    #[serde(default)]
    pub unsettled: Unsettled,
    /// Number of vCPUs: 1, in 8.0 up to [`vmd_release::Capabilities::max_vcpus`].
    #[serde(default = "default_cpus")]
    pub cpus: u8,
    /// Memory in bytes, whole MiB.
    #[serde(default = "default_memory")]
    pub memory: u64,
    /// Boot method.
    pub boot: Boot,
    /// Disks, in the order of their slots.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network interfaces, in the order of their slots.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// ISO image in the CD-ROM drive; `None` for no drive.
    #[serde(default)]
    pub cdrom: Option<PathBuf>,
    /// Rate of the host's clock interrupt in Hz, to whose ticks vmd's timers are rounded. 100 on
    /// OpenBSD/amd64.
    #[serde(default = "default_host_hz")]
    pub host_hz: NonZeroU32,
    /// Rate of the host's TSC in Hz, for hosts whose CPUID lacks it; it marks the TSC as invariant.
    /// See [`crate::host_tsc_hz`].
    #[serde(default)]
    pub tsc_hz: Option<NonZeroU64>,
    /// CPU vendor shown to the guest in CPUID and MSRs; `None` for the host's. The host's processor
    /// executes the guest.
    #[serde(default)]
    pub vendor: Option<Vendor>,
    /// Treats the host's TSC as not invariant, in which case OpenBSD knows no rate.
    #[serde(default)]
    pub variable_tsc: bool,
    /// What follows a reset by the guest.
    #[serde(default)]
    pub on_reset: OnReset,
    /// Text on the console that means "ready", for statistics.
    #[serde(default)]
    pub ready: Option<String>,
    /// Whether a [`crate::MARK`] on the console adds a mark to the statistics.
    #[serde(default)]
    pub marks: bool,
    /// File for a trace of every port access.
    #[serde(default)]
    pub trace: Option<PathBuf>,
    /// The kernel's System.map or vmlinux, for symbols in diagnoses.
    #[serde(default)]
    pub symbols: Option<PathBuf>,
}

/// Boot method.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Boot {
    /// Firmware, which boots from disk or CD, as on vmd.
    Firmware {
        /// A SeaBIOS image.
        image: PathBuf,
        /// Boot device; `None` for the firmware's own order.
        #[serde(default)]
        device: Option<BootDevice>,
    },
    /// Direct boot of a Linux kernel, which is faster. vmd boots only OpenBSD's kernels this way.
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

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Backend.
    pub backend: NicBackendConfig,
    /// MAC address, as `fe:e1:bb:d1:02:03`; `None` for a random one as vmd's.
    #[serde(default)]
    pub mac: Option<String>,
    /// Drop frames that are not from or to this address (`locked lladdr`).
    #[serde(default)]
    pub locked: bool,
    /// Local interface: vmd answers DHCP (`vmctl start -L`). Implied by
    /// [`NicBackendConfig::Gateway`].
    #[serde(default)]
    pub local: bool,
}

/// Backend of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NicBackendConfig {
    /// A tap interface of the host, by name.
    Tap(String),
    /// A user-space network behind this Unix stream socket: passt, or QEMU's `-netdev stream`.
    Stream(PathBuf),
    /// A gateway inside the VMM that answers DHCP, ping and TCP echo, without a network behind it.
    Gateway,
    /// None: the link is down.
    Unplugged,
}

/// CPU vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// AMD: an EPYC of family 0x17.
    Amd,
    /// Intel: a Skylake.
    Intel,
}

/// What follows a reset by the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// As vmd: restart the guest, or end it if a boot device was given (`-B`).
    #[default]
    Vmd,
    /// Restart it.
    Restart,
    /// End it.
    End,
}

fn default_generation() -> Generation {
    Generation::V7_8
}

fn default_cpus() -> u8 {
    1
}

/// 512 MiB, as vmctl.
fn default_memory() -> u64 {
    512 << 20
}

fn default_host_hz() -> NonZeroU32 {
    NonZeroU32::new(100).unwrap()
}

impl Config {
    /// A VM called `name` that boots by `boot`, with the defaults: 512 MiB, vmd of 7.8, no disks.
    pub fn new(name: impl Into<String>, boot: Boot) -> Self {
        Self {
            name: name.into(),
            generation: default_generation(),
            unsettled: Unsettled::default(),
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

    /// What the emulated vmd shows to its guests.
    pub const fn capabilities(&self) -> Capabilities {
        self.generation.capabilities_with(self.unsettled)
    }

    /// Number of the VM's PCI devices, the host bridge not counted: the configured ones, rng and
    /// vmmci.
    pub(crate) const fn pci_devices(&self) -> usize {
        self.nics.len() + self.disks.len() + self.cdrom.is_some() as usize + 2
    }

    /// Settles the formats of the disks: one that is not given is detected, once. Later the guest may
    /// have written another header.
    pub(crate) fn settle_formats(&mut self) -> Result<(), Error> {
        for image in &mut self.disks {
            image.format = Some(disk::check(&image.path, image.format, true)?);
        }
        Ok(())
    }

    /// Checks that the emulated vmd supports this configuration. [`crate::VirtualMachine::new`]
    /// calls it, too.
    pub fn check(&self) -> Result<(), Error> {
        if self.unsettled != Unsettled::default() && self.generation != Generation::V7_9 {
            return Err(Error::Unsettled { generation: self.generation });
        }
        let most = self.capabilities().max_vcpus;
        if !(1..=most).contains(&self.cpus) {
            return Err(Error::Cpus { cpus: self.cpus, generation: self.generation, most });
        }
        if self.host_hz.get() > MAX_HOST_HZ {
            return Err(Error::HostHz { hz: self.host_hz.get() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vmd_release::DiskFormat;

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
    fn a_detected_format_stays_although_the_guest_writes_another_header() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1 << 20).unwrap();
        let mut config = Config::new("x", Boot::Firmware { image: "b".into(), device: None });
        config.disks.push(Disk { path: image.path().to_owned(), format: None });
        config.settle_formats().unwrap();
        std::fs::write(image.path(), b"QFI\xfb").unwrap();
        config.settle_formats().unwrap();
        assert_eq!(config.disks[0].format, Some(DiskFormat::Raw));
    }

    #[test]
    fn a_host_has_a_clock_interrupt_of_a_possible_rate() {
        let mut config = Config::new("x", Boot::Firmware { image: "b".into(), device: None });
        for (hz, possible) in [(1, true), (10_000, true), (10_001, false), (u32::MAX, false)] {
            config.host_hz = NonZeroU32::new(hz).unwrap();
            assert_eq!(config.check().is_ok(), possible, "{hz}");
        }
    }

    #[test]
    fn rng_and_vmmci_are_pci_devices_too() {
        let mut config = Config::new("x", Boot::Firmware { image: "b".into(), device: None });
        assert_eq!(config.pci_devices(), 2);
        config.disks = vec![Disk { path: "d".into(), format: None }; 3];
        config.cdrom = Some("c".into());
        assert_eq!(config.pci_devices(), 6);
    }

    #[test]
    fn alternatives_are_7_9s_only() {
        let boot = Boot::Firmware { image: "b".into(), device: None };
        let config = |generation, pit_corrected, feature_words_read_ones| Config {
            generation,
            unsettled: Unsettled { pit_corrected, feature_words_read_ones },
            ..Config::new("x", boot.clone())
        };
        for (pit, features) in [(true, false), (false, true)] {
            let chosen = config(Generation::V7_9, pit, features);
            assert!(chosen.check().is_ok());
            let capabilities = chosen.capabilities();
            assert_eq!((capabilities.pit_corrected, capabilities.feature_words_read_ones), (pit, features));
            let refusal = config(Generation::V7_8, pit, features).check().unwrap_err();
            assert_eq!(refusal.to_string(), "the behaviour of vmd 7.8 is known: there is nothing to choose");
        }
    }

    #[test]
    fn a_configuration_survives_a_round_trip_and_refuses_unknown_keys() {
        let mut config =
            Config::new("x", Boot::Firmware { image: "b".into(), device: Some(BootDevice::Cdrom) });
        config.generation = Generation::V7_7;
        config.nics.push(Nic {
            backend: NicBackendConfig::Tap("tap0".into()),
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
