//! What the user asked for: a machine, and where to run it.

use std::{fmt, path::PathBuf, str::FromStr};

use vmm::{Config, DiskFormat, Nic, NicBackend};

/// Where the machine's KVM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Accel {
    /// The host's KVM if it works, otherwise nested
    Auto,
    /// The host's KVM
    Kvm,
    /// A helper VM with an emulated processor (QEMU)
    Nested,
}

/// A machine that is to be run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The machine with the host's file names. Its network interfaces are in `networks`.
    pub(crate) config: Config,
    pub(crate) networks: Vec<Network>,
    pub(crate) accel: Accel,
    /// What the log shall tell, for the helper VM.
    pub(crate) log: String,
}

/// What a network interface is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// The machine's own small network.
    Local,
    /// The host's network, through a user-space NAT.
    User,
    /// A tap interface.
    Tap(String),
    /// A Unix stream socket with passt's wire format.
    Socket(PathBuf),
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "local" => Ok(Self::Local),
            None if text == "user" => Ok(Self::User),
            Some(("tap", name)) if !name.is_empty() => Ok(Self::Tap(name.to_owned())),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            _ => Err("there are local, user, tap:INTERFACE and socket:PATH".to_owned()),
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

/// A network interface with what vmd gives it by default.
pub(crate) fn nic(backend: NicBackend) -> Nic {
    Nic { backend, mac: None, locked: false, local: false }
}

/// A disk as vmctl(8) takes it: a path, maybe with the format before it, as in `qcow2:disk.img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskArgument {
    pub(crate) format: Option<DiskFormat>,
    pub(crate) path: PathBuf,
}

impl FromStr for DiskArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (format, path) = match text.split_once(':') {
            Some(("raw", path)) => (Some(DiskFormat::Raw), path),
            Some(("qcow2", path)) => (Some(DiskFormat::Qcow2), path),
            // A colon in a file's name.
            _ => (None, text),
        };
        if path.is_empty() {
            Err("a disk needs a path".to_owned())
        } else {
            Ok(Self { format, path: path.into() })
        }
    }
}

/// A size as vmctl(8) takes it, in bytes: a number, maybe with a fraction, with K, M, G or T, in whole MiB.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let bytes = vmconf::parse_size(text).ok_or("a size is a number with K, M, G or T, as in 512M or 1.5G")?;
    match u64::try_from(bytes).map_err(|_| "a size is not negative")? >> 20 {
        0 if text.trim().ends_with(|c: char| c.is_ascii_digit()) => {
            Err(format!("that is less than a megabyte; did you mean {}M?", text.trim()))
        }
        0 => Err("that is less than a megabyte".to_owned()),
        megabytes => Ok(megabytes << 20),
    }
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

    #[test]
    fn disks_may_name_their_format() {
        let disk = |text: &str| text.parse::<DiskArgument>().unwrap();
        assert_eq!(disk("raw:a.img"), DiskArgument { format: Some(DiskFormat::Raw), path: "a.img".into() });
        assert_eq!(disk("qcow2:a").format, Some(DiskFormat::Qcow2));
        assert_eq!(disk("odd:name"), DiskArgument { format: None, path: "odd:name".into() });
        assert!("raw:".parse::<DiskArgument>().is_err());
    }

    #[test]
    fn sizes_are_whole_megabytes() {
        for (text, megabytes) in
            [("512M", 512), ("1g", 1024), ("1500k", 1), ("1.5G", 1536), ("0.5T", 1 << 19)]
        {
            assert_eq!(size(text), Ok(megabytes << 20), "{text}");
        }
        assert!(size("512").unwrap_err().contains("did you mean 512M?"));
        assert!(size("512K").unwrap_err().ends_with("less than a megabyte"));
        for text in ["", "M", "1X", "-1M", "99999999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
