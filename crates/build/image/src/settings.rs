//! What the user may choose, checked as it is parsed.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    str::FromStr,
};

use vmd_release::DiskFormat;

use crate::{
    error::{Error, Result},
    kernel::Kernel,
    size::Size,
};

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::setting("size", text, why);
        let bytes = vmconf::parse_size(text)
            .ok_or_else(|| bad("it is a number and a unit, K, M, G or T (1024 each), as in 4G or 1.5G"))?;
        match u64::try_from(bytes) {
            Err(_) => Err(bad("it is not negative")),
            Ok(0) => Err(bad("a disk has a size")),
            Ok(bytes) if bytes > 2 << 40 => Err(bad("a disk with an MBR ends at 2T")),
            Ok(bytes) => Ok(Self::from_bytes(bytes)),
        }
    }
}

/// Name of the guest: a host name (RFC 1123) that is also a VM name for vmd: starts with a letter, at most 63
/// letters, digits, dashes and dots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostname(String);

impl Hostname {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name up to the first dot.
    pub fn short(&self) -> &str {
        self.0.split('.').next().unwrap_or(&self.0)
    }
}

impl FromStr for Hostname {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::setting("host name", text, why);
        if text.len() > 63 {
            return Err(bad("the limit is 63 characters"));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(bad("it starts with a letter, as a VM's name does in vm.conf(5)"));
        }
        for label in text.split('.') {
            if label.is_empty() || label.starts_with('-') || label.ends_with('-') {
                return Err(bad("each part between dots starts and ends with a letter or digit"));
            }
            if !label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
                return Err(bad("it has letters, digits, dashes and dots only"));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

/// How the guest's first network interface is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Net {
    /// DHCP: what a `local interface` of vmd answers itself.
    Dhcp,
    /// The interface is left alone.
    None,
    /// Fixed IPv4 addresses.
    Static {
        /// The guest's address.
        address: Ipv4Addr,
        /// Length of its network's prefix, 1 to 32.
        prefix: u8,
        /// The default router.
        gateway: Ipv4Addr,
        /// The name server; the gateway where none is given.
        dns: IpAddr,
    },
}

impl FromStr for Net {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "dhcp" => return Ok(Self::Dhcp),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let bad = |why: &str| Error::setting("network", text, why);
        let form = "it is `dhcp`, `none` or ADDRESS/PREFIX,GATEWAY[,DNS] as in 10.0.0.5/24,10.0.0.1";
        let mut parts = text.split(',');
        let (address, prefix) = parts.next().and_then(|p| p.split_once('/')).ok_or_else(|| bad(form))?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad("the address is not an IPv4 address"))?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|p| (1..=32).contains(p))
            .ok_or_else(|| bad("the prefix length is 1 to 32"))?;
        let gateway: Ipv4Addr = parts
            .next()
            .ok_or_else(|| bad(form))?
            .parse()
            .map_err(|_| bad("the gateway is not an IPv4 address"))?;
        let dns = match parts.next() {
            Some(dns) => dns.parse().map_err(|_| bad("the name server is not an IP address"))?,
            None => IpAddr::V4(gateway),
        };
        if parts.next().is_some() {
            return Err(bad(form));
        }
        Ok(Self::Static { address, prefix, gateway, dns })
    }
}

/// Keys that may log in as root by SSH, in the form of `authorized_keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKeys(String);

impl SshKeys {
    /// Reads a public key file or an `authorized_keys` file. Every line must be a key, a comment or empty.
    pub fn read(path: &Path) -> Result<Self> {
        let mut text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        // Users may append to the file in the guest.
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let bad = |why: String| Error::setting("SSH public key file", &path.display().to_string(), why);
        if text.contains("PRIVATE KEY-----") {
            return Err(bad("this is a private key; give the file beside it that ends in .pub".into()));
        }
        let mut keys = 0;
        for entry in ssh_key::AuthorizedKeys::new(&text) {
            keys += 1;
            entry.map_err(|e| bad(format!("its {keys}. entry is not a public key ({e})")))?;
        }
        if keys == 0 {
            return Err(bad("there is no key in it".into()));
        }
        Ok(Self(text))
    }

    /// The keys, one on a line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which user space the disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootFs {
    /// A static busybox and a handful of scripts: ready in seconds.
    Minimal,
    /// A small Debian with systemd.
    Debian {
        /// The release's code name, bookworm or later.
        suite: String,
    },
    /// A root file system of the user's: a tar archive, perhaps compressed by gzip, xz or zstd.
    Archive {
        /// Where it is.
        path: PathBuf,
    },
}

impl RootFs {
    /// A short name, as for a file.
    pub fn name(&self) -> String {
        match self {
            Self::Minimal => "minimal".to_owned(),
            Self::Debian { suite } => format!("debian-{suite}"),
            Self::Archive { path } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.split_once(".t").map_or(name.as_str(), |(name, _)| name).to_owned()
            }
        }
    }
}

impl FromStr for RootFs {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::setting("root file system", text, why);
        match text.split_once(':') {
            None if text == "minimal" => Ok(Self::Minimal),
            Some(("debian", suite))
                if suite.starts_with(|c: char| c.is_ascii_lowercase())
                    && suite.chars().all(|c| c.is_ascii_lowercase() || c == '-') =>
            {
                Ok(Self::Debian { suite: suite.to_owned() })
            }
            Some(("tar", path)) if !path.is_empty() => Ok(Self::Archive { path: path.into() }),
            Some(("debian", _)) => Err(bad("the suite is a code name such as trixie")),
            _ => Err(bad("it is `minimal`, `debian:<suite>` or `tar:<file>`")),
        }
    }
}

impl fmt::Display for RootFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minimal => f.write_str("minimal"),
            Self::Debian { suite } => write!(f, "debian:{suite}"),
            Self::Archive { path } => write!(f, "tar:{}", path.display()),
        }
    }
}

/// All of it together.
#[derive(Debug, Clone)]
pub struct Options {
    /// What boots; without one the kernel that comes with the root file system (not with [`RootFs::Minimal`]).
    pub kernel: Option<Kernel>,
    /// What it starts.
    pub rootfs: RootFs,
    /// How large the disk is.
    pub size: Size,
    /// The guest's name; also the VM's in what is printed at the end.
    pub hostname: Hostname,
    /// Root's password; without one root logs in on the console with none.
    pub root_password: Option<String>,
    /// Root's SSH keys.
    pub ssh_keys: Option<SshKeys>,
    /// The network.
    pub net: Net,
    /// More for the kernel's command line.
    pub append: Option<String>,
    /// DiskFormat of the file.
    pub format: DiskFormat,
    /// Where it goes.
    pub output: PathBuf,
    /// Replace what is there.
    pub force: bool,
    /// A static busybox instead of the system's (for [`RootFs::Minimal`]).
    pub busybox: Option<PathBuf>,
    /// Packages to install besides, files of dpkg's (for [`RootFs::Debian`]).
    pub packages: Vec<PathBuf>,
    /// A Debian mirror instead of the system's (for [`RootFs::Debian`]).
    pub mirror: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why<T: FromStr<Err = Error> + fmt::Debug>(text: &str) -> String {
        text.parse::<T>().unwrap_err().to_string()
    }

    #[test]
    fn sizes_are_whole_mebibytes_up_to_the_reach_of_an_mbr() {
        assert_eq!("4G".parse::<Size>().unwrap().bytes(), 4 << 30);
        assert_eq!("1500k".parse::<Size>().unwrap().bytes(), 2 << 20);
        assert_eq!("512M".parse::<Size>().unwrap().to_string(), "512M");
        assert_eq!("2048M".parse::<Size>().unwrap().to_string(), "2G");
        assert_eq!("2T".parse::<Size>().unwrap().bytes(), 2 << 40);
        assert!(why::<Size>("3T").contains("2T"));
        assert_eq!("1.5G".parse::<Size>().unwrap().bytes(), 3 << 29);
        for text in ["99999999999999999999T", "4X", "G"] {
            assert!(why::<Size>(text).contains("a number and a unit"), "{text}");
        }
        assert!(why::<Size>("-4G").contains("not negative"));
        assert!(why::<Size>("0").contains("has a size"));
    }

    #[test]
    fn host_names_are_vm_names_too() {
        for good in ["a", "vm-1", "vm1.example.com"] {
            assert_eq!(good.parse::<Hostname>().unwrap().as_str(), good);
        }
        assert_eq!("vm1.example.com".parse::<Hostname>().unwrap().short(), "vm1");
        for bad in
            ["", "1vm", "-a", "a-", "a..b", "a.", "a_b", "a b", "ä", "a\n", "a/b", "$(x)", &"a".repeat(64)]
        {
            assert!(bad.parse::<Hostname>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn networks() {
        assert_eq!("dhcp".parse::<Net>().unwrap(), Net::Dhcp);
        assert_eq!("none".parse::<Net>().unwrap(), Net::None);
        let Net::Static { prefix, dns, .. } = "10.0.0.5/24,10.0.0.1".parse().unwrap() else { panic!() };
        assert_eq!((prefix, dns.to_string()), (24, "10.0.0.1".to_owned()));
        let Net::Static { dns, .. } = "10.0.0.5/24,10.0.0.1,9.9.9.9".parse().unwrap() else { panic!() };
        assert_eq!(dns.to_string(), "9.9.9.9");
        for bad in [
            "",
            "auto",
            "10.0.0.5",
            "10.0.0.5/24",
            "10.0.0.5/33,10.0.0.1",
            "10.0.0.5/0,10.0.0.1",
            "x/24,10.0.0.1",
            "10.0.0.5/24,x",
            "10.0.0.5/24,10.0.0.1,x",
            "10.0.0.5/24,10.0.0.1,9.9.9.9,",
        ] {
            assert!(bad.parse::<Net>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn root_file_systems_and_formats() {
        assert_eq!("minimal".parse::<RootFs>().unwrap(), RootFs::Minimal);
        assert_eq!("debian:trixie".parse::<RootFs>().unwrap().to_string(), "debian:trixie");
        let archive = "tar:x/guest-1.2.tar.xz".parse::<RootFs>().unwrap();
        assert_eq!(
            (archive.to_string(), archive.name()),
            ("tar:x/guest-1.2.tar.xz".into(), "guest-1.2".into())
        );
        for bad in ["", "tar:", "debian", "debian:", "debian:../x", "debian:--help", "alpine:3"] {
            assert!(bad.parse::<RootFs>().is_err(), "{bad:?}");
        }
        assert_eq!("qcow2".parse::<DiskFormat>().unwrap().extension(), "qcow2");
        assert!("vdi".parse::<DiskFormat>().is_err());
    }

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGB4fYfCEpGuvzTPVrFgjvQ4qM6qyYTT2rTe9JQpTbIL me@example\n";

    #[test]
    fn ssh_keys_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            let path = dir.path().join("key.pub");
            fs::write(&path, text).unwrap();
            SshKeys::read(&path).map_err(|e| e.to_string())
        };
        assert_eq!(read(KEY).unwrap().as_str(), KEY);
        assert_eq!(read(KEY.trim_end()).unwrap().as_str(), KEY);
        assert!(read(&format!("# mine\n\n{KEY}restrict {KEY}")).is_ok());
        assert!(read("-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap_err().contains(".pub"));
        assert!(read("\n# nothing\n").unwrap_err().contains("no key"));
        assert!(read(&KEY.replace("C3Nz", "XXXX")).unwrap_err().contains("1. entry"));
        assert!(read(&format!("{KEY}hello\n")).unwrap_err().contains("2. entry"));
        assert!(matches!(SshKeys::read(&dir.path().join("none")), Err(Error::Io { .. })));
    }
}
