//! What a kernel is built for.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use vmd_release::UnknownGeneration;

use crate::Host;

/// A use of the guest, and the file of `kernel/config/` that serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Boots, with disk, network, console and the file systems of an ordinary root. Always part of a selection.
    Core,
    /// What systemd requires and recommends.
    Systemd,
    /// Container engines: namespaces, cgroups, overlayfs, nftables, bridges.
    Containers,
    /// `WireGuard`, IPsec, tunnels and tun/tap.
    Vpn,
    /// Packet filters, address sets, load balancing, traffic shaping.
    Firewall,
    /// What roots of installed distributions lie on: LVM, LUKS, arrays, file systems of installers.
    Roots,
    /// Further file systems, as modules.
    Filesystems,
    /// Tracing, debug information and run-time checks.
    Debug,
}

impl Workload {
    /// All workloads.
    pub const ALL: [Self; 8] = [
        Self::Core,
        Self::Systemd,
        Self::Containers,
        Self::Vpn,
        Self::Firewall,
        Self::Roots,
        Self::Filesystems,
        Self::Debug,
    ];

    /// The workloads of packaged kernels, which go into guests that exist: all but [`Workload::Debug`].
    pub fn packaged() -> BTreeSet<Self> {
        Self::ALL.into_iter().filter(|workload| *workload != Self::Debug).collect()
    }

    /// The name, which is also that of the fragment file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Systemd => "systemd",
            Self::Containers => "containers",
            Self::Vpn => "vpn",
            Self::Firewall => "firewall",
            Self::Roots => "roots",
            Self::Filesystems => "filesystems",
            Self::Debug => "debug",
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A workload that is none of [`Workload::ALL`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a workload; there are core, systemd, containers, vpn, firewall, roots, filesystems and debug"
)]
pub struct UnknownWorkload(String);

impl FromStr for Workload {
    type Err = UnknownWorkload;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|w| w.as_str() == s).ok_or_else(|| UnknownWorkload(s.to_owned()))
    }
}

/// What a kernel is configured for: which series it is, which hosts it must run on, what it is to do there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Selection {
    /// The kernel series, as `7.3`.
    pub series: String,
    /// The host generations that the kernel must run well on.
    pub hosts: BTreeSet<Host>,
    /// The workloads; [`Workload::Core`] counts as chosen in any case.
    pub workloads: BTreeSet<Workload>,
}

impl Selection {
    /// The default for a series: every host generation; core, systemd and containers.
    pub fn new(series: impl Into<String>) -> Self {
        Self {
            series: series.into(),
            hosts: Host::ALL.into(),
            workloads: [Workload::Core, Workload::Systemd, Workload::Containers].into(),
        }
    }

    /// The packaged kernel of a series: every host generation, [`Workload::packaged`].
    pub fn packaged(series: impl Into<String>) -> Self {
        Self { workloads: Workload::packaged(), ..Self::new(series) }
    }

    /// Whether the workload is chosen.
    pub fn wants(&self, workload: Workload) -> bool {
        workload == Workload::Core || self.workloads.contains(&workload)
    }
}

/// Why a text is not a selection.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseSelectionError {
    /// The first part is not a version.
    #[error("`{0}` is not a kernel series")]
    Series(String),
    /// The second part names an unknown host.
    #[error(transparent)]
    Host(#[from] UnknownGeneration),
    /// The third part names an unknown workload.
    #[error(transparent)]
    Workload(#[from] UnknownWorkload),
}

/// Parses `SERIES[:HOSTS[:WORKLOADS]]`, such as `7.3:7.8,7.9:core,vpn`; missing parts have their defaults.
impl FromStr for Selection {
    type Err = ParseSelectionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(':');
        let series = parts.next().unwrap_or_default();
        if !series.split('.').all(|number| number.parse::<u32>().is_ok()) {
            return Err(ParseSelectionError::Series(series.to_owned()));
        }
        let mut selection = Self::new(series);
        if let Some(hosts) = parts.next().filter(|hosts| !hosts.is_empty()) {
            selection.hosts = hosts.split(',').map(str::parse).collect::<Result<_, _>>()?;
        }
        if let Some(workloads) = parts.next() {
            selection.workloads = workloads.split(',').map(str::parse).collect::<Result<_, _>>()?;
        }
        Ok(selection)
    }
}

/// `7.3 for 7.8, 7.9: core, systemd`.
impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.hosts.iter().map(|h| h.as_str()).collect();
        let workloads: Vec<_> =
            Workload::ALL.into_iter().filter(|w| self.wants(*w)).map(Workload::as_str).collect();
        write!(f, "{} for {}: {}", self.series, hosts.join(", "), workloads.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_parsed_with_their_defaults() {
        let selection: Selection = "6.12:7.8,7.9:core,vpn".parse().unwrap();
        assert_eq!(selection.series, "6.12");
        assert_eq!(selection.hosts, [Host::V7_8, Host::V7_9].into());
        assert_eq!(selection.workloads, [Workload::Core, Workload::Vpn].into());
        assert_eq!("7.3".parse(), Ok(Selection::new("7.3")));
        for wrong in ["nonsense", "7.3:6.0", "7.3:7.8:games"] {
            assert!(wrong.parse::<Selection>().is_err(), "{wrong}");
        }
    }
}
