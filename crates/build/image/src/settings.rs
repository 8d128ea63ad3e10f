//! What the user may choose, checked as it is parsed.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr};

use url::Url;
use vmconf::SshKeys;
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
    /// A fixed IPv4 or IPv6 address.
    Static {
        /// The guest's address.
        address: IpAddr,
        /// Length of its network's prefix, 1 to 32 or 128.
        prefix: u8,
        /// The default router, an address of the same family.
        gateway: Option<IpAddr>,
        /// The name server; the gateway where none is given.
        dns: Option<IpAddr>,
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
        let form =
            "it is `dhcp`, `none` or ADDRESS/PREFIX[,GATEWAY[,DNS]] as in 10.0.0.5/24,10.0.0.1 or fd00::5/64";
        let mut parts = text.split(',');
        let (address, prefix) = parts.next().and_then(|p| p.split_once('/')).ok_or_else(|| bad(form))?;
        let address: IpAddr = address.parse().map_err(|_| bad("the address is not an IP address"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|p| (1..=longest).contains(p))
            .ok_or_else(|| bad(&format!("the prefix length is 1 to {longest}")))?;
        // Empty before a name server: 10.0.0.5/24,,10.0.0.2
        let mut next = |what: &str| match parts.next() {
            None | Some("") => Ok(None),
            Some(part) => {
                part.parse::<IpAddr>().map(Some).map_err(|_| bad(&format!("{what} is not an IP address")))
            }
        };
        let gateway = next("the gateway")?;
        let dns = next("the name server")?.or(gateway);
        if parts.next().is_some() || text.ends_with(',') {
            return Err(bad(form));
        }
        if gateway.is_some_and(|gateway| gateway.is_ipv4() != address.is_ipv4()) {
            return Err(bad("the gateway's address is of another family"));
        }
        Ok(Self::Static { address, prefix, gateway, dns })
    }
}

/// Parameters for the kernel's command line besides those that every image has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters(String);

/// Bytes that the user's part of a command line may have: x86's COMMAND_LINE_SIZE is 2048, and what every image has
/// stays below 200.
const LONGEST_PARAMETERS: usize = 1800;

impl Parameters {
    /// The parameters, separated by spaces.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value of the last parameter of this name.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.split(' ').filter_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('=')).next_back()
    }
}

impl FromStr for Parameters {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::setting("kernel parameter", text, why);
        if text.chars().any(char::is_control) {
            return Err(bad("a command line is one line, without control characters"));
        }
        if text.len() > LONGEST_PARAMETERS {
            return Err(bad("the kernel takes no more than 2047 bytes"));
        }
        Ok(Self(text.trim().to_owned()))
    }
}

/// A mirror of Debian: an address that apt can fetch from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror(Url);

impl Mirror {
    /// The address, without spaces.
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }
}

impl FromStr for Mirror {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::setting("Debian mirror", text, why);
        // The parser removes some of them and escapes others.
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(bad("it is one URL, without spaces and options"));
        }
        let url = Url::parse(text)
            .map_err(|error| bad(&format!("{error}; it is a URL as in https://deb.debian.org/debian")))?;
        if matches!(url.scheme(), "http" | "https") && url.has_host() || url.scheme() == "file" {
            Ok(Self(url))
        } else {
            Err(bad("it begins with https://, http:// or file:///"))
        }
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
    /// A root file system of the user's: a tar archive, perhaps compressed.
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
    /// Root's password; without one root logs in on the console with none, or as an archive says.
    pub root_password: Option<String>,
    /// Root's SSH keys.
    pub ssh_keys: Option<SshKeys>,
    /// The network; without one [`Net::Dhcp`], and an archive's own settings.
    pub net: Option<Net>,
    /// More for the kernel's command line.
    pub append: Option<Parameters>,
    /// Format of the file.
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
    pub mirror: Option<Mirror>,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

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

    #[rstest]
    #[case::gateway("10.0.0.5/24,10.0.0.1", "10.0.0.5", 24, Some("10.0.0.1"), Some("10.0.0.1"))]
    #[case::dns("10.0.0.5/24,10.0.0.1,9.9.9.9", "10.0.0.5", 24, Some("10.0.0.1"), Some("9.9.9.9"))]
    #[case::alone("10.0.0.5/24", "10.0.0.5", 24, None, None)]
    #[case::dns_without_gateway("10.0.0.5/24,,9.9.9.9", "10.0.0.5", 24, None, Some("9.9.9.9"))]
    #[case::ipv6("fd00::5/64,fe80::1", "fd00::5", 64, Some("fe80::1"), Some("fe80::1"))]
    #[case::ipv6_alone("fd00::5/128", "fd00::5", 128, None, None)]
    fn a_fixed_address_may_have_a_gateway_and_a_name_server(
        #[case] text: &str,
        #[case] address: &str,
        #[case] prefix: u8,
        #[case] gateway: Option<&str>,
        #[case] dns: Option<&str>,
    ) {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let expected =
            Net::Static { address: ip(address), prefix, gateway: gateway.map(ip), dns: dns.map(ip) };

        assert_eq!(text.parse::<Net>().unwrap(), expected);
    }

    #[rstest]
    #[case::nothing("")]
    #[case::word("auto")]
    #[case::no_prefix("10.0.0.5")]
    #[case::long_prefix("10.0.0.5/33,10.0.0.1")]
    #[case::long_ipv6_prefix("fd00::5/129")]
    #[case::no_bits("10.0.0.5/0,10.0.0.1")]
    #[case::address("x/24,10.0.0.1")]
    #[case::gateway("10.0.0.5/24,x")]
    #[case::other_family("10.0.0.5/24,fe80::1")]
    #[case::name_server("10.0.0.5/24,10.0.0.1,x")]
    #[case::too_many("10.0.0.5/24,10.0.0.1,9.9.9.9,")]
    #[case::hanging_comma("10.0.0.5/24,")]
    #[case::line("10.0.0.5/24,10.0.0.1,9.9.9.9\n[Match]")]
    fn a_network_that_cannot_be_is_refused(#[case] text: &str) {
        assert!(text.parse::<Net>().is_err(), "{text:?}");
    }

    #[test]
    fn networks_have_names() {
        assert_eq!("dhcp".parse::<Net>().unwrap(), Net::Dhcp);
        assert_eq!("none".parse::<Net>().unwrap(), Net::None);
    }

    #[rstest]
    #[case::newline("quiet\nLABEL mine")]
    #[case::escape("quiet\u{1b}[2J")]
    #[case::carriage_return("quiet\rx")]
    #[case::long(&"x".repeat(1801))]
    fn parameters_are_one_line(#[case] text: &str) {
        let refused = text.parse::<Parameters>().unwrap_err().to_string();

        assert!(!refused.contains(char::is_control), "{refused:?}");
    }

    #[test]
    fn the_last_parameter_of_a_name_counts() {
        let parameters: Parameters = " init=/bin/a quiet init=/bin/b ".parse().unwrap();

        assert_eq!(parameters.as_str(), "init=/bin/a quiet init=/bin/b");
        assert_eq!(parameters.value("init"), Some("/bin/b"));
        assert_eq!(parameters.value("quiet"), None);
    }

    #[rstest]
    #[case::options("[trusted=yes] http://mirror.example/debian")]
    #[case::options_after("http://mirror.example/debian [trusted=yes]")]
    #[case::line("http://mirror.example/debian\ndeb http://other.example/")]
    #[case::tab("http://mirror.example/\tdebian")]
    #[case::scheme("cdrom:debian")]
    #[case::path("/srv/mirror")]
    #[case::nothing("")]
    fn a_mirror_is_one_address(#[case] text: &str) {
        assert!(text.parse::<Mirror>().is_err(), "{text:?}");
    }

    #[test]
    fn a_mirror_is_passed_on_as_an_address() {
        let mirror: Mirror = "http://mirror.example/debian/".parse().unwrap();

        assert_eq!(mirror.as_str(), "http://mirror.example/debian");
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
}
