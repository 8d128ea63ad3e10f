//! Configuration of one run: the VM, where its KVM is, its networks, and when it ends.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use vmm::{Config, Nic, NicBackendConfig};

/// Where the VM's KVM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The host's KVM if it works, otherwise `Nested`.
    Auto,
    /// The host's KVM.
    Kvm,
    /// The KVM of a helper VM, whose processor QEMU emulates.
    Nested,
}

impl Accel {
    /// The word for it on the command line and in status reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Nested => "nested",
        }
    }
}

/// A VM to run, and how to run it.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// The VM, with the host's file names. `networks` holds its network interfaces.
    pub vm: Config,
    /// What each network interface is connected to, in the order of their slots.
    pub networks: Vec<Network>,
    /// Where the VM's KVM is.
    pub accel: Accel,
    /// The log filter for the helper VM, in `RUST_LOG` syntax.
    pub log_filter: String,
    /// How long the guest may run before it is stopped by force.
    pub timeout: Option<Duration>,
    /// Whether the run has no terminal: standard input and output are not used.
    pub detached: bool,
}

/// What a network interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// The VM's own gateway with DHCP, and nothing behind it.
    Local,
    /// The host's network, through a user-space NAT.
    User,
    /// A tap interface.
    Tap(String),
    /// A Unix stream socket with passt's frame format.
    Socket(PathBuf),
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':') {
            None if text == "local" => Ok(Self::Local),
            None if text == "user" => Ok(Self::User),
            Some(("tap", name)) if !name.is_empty() => Ok(Self::Tap(name.to_owned())),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            _ => Err("expected local, user, tap:INTERFACE or socket:PATH".to_owned()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::User => f.write_str("user"),
            Self::Tap(name) => write!(f, "tap:{name}"),
            Self::Socket(path) => write!(f, "socket:{}", path.display()),
        }
    }
}

/// A network interface with vmd's defaults.
pub(crate) fn nic(backend: NicBackendConfig) -> Nic {
    Nic { backend, mac: None, locked: false, local: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_round_trip() {
        for text in ["local", "user", "tap:tap0", "socket:/run/a:b"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        for text in ["", "tap", "tap:", "bridge", "local:x"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
