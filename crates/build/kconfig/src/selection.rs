//! What a kernel is built for.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

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
    /// `WireGuard` and tun/tap.
    Vpn,
    /// Further file systems, as modules.
    Filesystems,
    /// Tracing, debug information and run-time checks.
    Debug,
}

impl Workload {
    /// All workloads.
    pub const ALL: [Self; 6] =
        [Self::Core, Self::Systemd, Self::Containers, Self::Vpn, Self::Filesystems, Self::Debug];

    /// The name, which is also that of the fragment file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Systemd => "systemd",
            Self::Containers => "containers",
            Self::Vpn => "vpn",
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
#[error("`{0}` is not a workload; there are core, systemd, containers, vpn, filesystems and debug")]
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

    /// Whether the workload is chosen.
    pub fn wants(&self, workload: Workload) -> bool {
        workload == Workload::Core || self.workloads.contains(&workload)
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
