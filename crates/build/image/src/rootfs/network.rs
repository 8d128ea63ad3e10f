//! A network's settings as the services of root file systems read them.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use crate::{settings::Net, tree::Tree};

use super::contents::Contents;

/// What became of the settings in an archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// For the user.
    pub(super) remark: Option<String>,
    /// A parameter that the kernel needs for them.
    pub(super) parameter: Option<&'static str>,
}

/// Adds the settings to `tree` for the service that sets up an archive's network.
pub(super) fn set(contents: &Contents, net: &Net, tree: &mut Tree) -> Set {
    let remark = |text: &str| Set { remark: Some(text.to_owned()), parameter: None };
    if *net == Net::None {
        return remark("--net none changes nothing in it: its own settings of the network count");
    }
    let wants = |service: &str| contents.has_below("etc/systemd/system", service);
    if wants("systemd-networkd.service") {
        // Of the files that match an interface, the first one counts.
        tree.file("etc/systemd/network/00-vmmlinux.network", 0o644, networkd(net).unwrap_or_default());
        return Set::default();
    }
    if wants("NetworkManager.service") {
        tree.file("etc/NetworkManager/system-connections/vmmlinux.nmconnection", 0o600, network_manager(net));
        return Set::default();
    }
    let runlevels = contents.has_below("etc/runlevels", "networking");
    let links = ["rcS.d", "rc2.d"].iter().any(|directory| {
        (0..100).any(|number| contents.has(format!("etc/{directory}/S{number:02}networking")))
    });
    if wants("networking.service") || runlevels || links {
        tree.file("etc/network/interfaces", 0o644, interfaces(net));
        if let Net::Static { dns: Some(dns), .. } = net
            && !contents.is_link("etc/resolv.conf")
        {
            tree.file("etc/resolv.conf", 0o644, format!("nameserver {dns}\n"));
        }
        // udev gives the interface another name than the kernel does.
        let udev = contents.leads("lib/udev/rules.d") || contents.leads("usr/lib/udev/rules.d");
        return Set { remark: None, parameter: udev.then_some("net.ifnames=0") };
    }
    remark(
        "nothing in it reads --net: of systemd-networkd, NetworkManager and ifupdown (networking) none is enabled. Its own \
         settings of the network count",
    )
}

/// The unit of systemd-networkd. `None` where the interface is left alone.
pub(super) fn networkd(net: &Net) -> Option<String> {
    // No dummies, bridges and the like, which are of a kind.
    let mut unit = String::from("[Match]\nType=ether\nKind=!*\n\n[Network]\n");
    match net {
        Net::None => return None,
        Net::Dhcp => unit.push_str("DHCP=yes\n"),
        Net::Static { address, prefix, gateway, dns } => {
            let _ = writeln!(unit, "Address={address}/{prefix}");
            unit.extend(gateway.map(|gateway| format!("Gateway={gateway}\n")));
            unit.extend(dns.map(|dns| format!("DNS={dns}\n")));
        }
    }
    Some(unit)
}

/// The connection of NetworkManager.
fn network_manager(net: &Net) -> String {
    let mut text = String::from("[connection]\nid=vmmlinux\ntype=ethernet\nautoconnect-priority=999\n");
    for family in ["ipv4", "ipv6"] {
        let _ = write!(text, "\n[{family}]\nmethod=");
        match net {
            Net::Static { address, prefix, gateway, dns } => {
                let is_of = |address: &IpAddr| address.is_ipv4() == (family == "ipv4");
                if is_of(address) {
                    let gateway = gateway.map_or_else(String::new, |gateway| format!(",{gateway}"));
                    let _ = writeln!(text, "manual\naddress1={address}/{prefix}{gateway}");
                } else {
                    text.push_str(if family == "ipv4" { "disabled\n" } else { "auto\n" });
                }
                text.extend(dns.filter(is_of).map(|dns| format!("dns={dns};\n")));
            }
            _ => text.push_str("auto\n"),
        }
    }
    text
}

/// The file of ifupdown, ifupdown-ng and busybox: addresses and masks apart, as all of them take them.
fn interfaces(net: &Net) -> String {
    let mut text = String::from("auto lo\niface lo inet loopback\n\nauto eth0\n");
    match net {
        Net::Static { address, prefix, gateway, .. } => {
            let (family, mask) = match address {
                IpAddr::V4(_) => ("inet", Ipv4Addr::from(u32::MAX << (32 - prefix)).to_string()),
                IpAddr::V6(_) => ("inet6", prefix.to_string()),
            };
            let _ = writeln!(text, "iface eth0 {family} static\n\taddress {address}\n\tnetmask {mask}");
            text.extend(gateway.map(|gateway| format!("\tgateway {gateway}\n")));
        }
        _ => text.push_str("iface eth0 inet dhcp\n"),
    }
    text
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none("none", None)]
    #[case::dhcp("dhcp", Some("DHCP=yes\n"))]
    #[case::whole(
        "10.0.0.5/24,10.0.0.1,2001:db8::1",
        Some("Address=10.0.0.5/24\nGateway=10.0.0.1\nDNS=2001:db8::1\n")
    )]
    #[case::alone("fd00::5/64", Some("Address=fd00::5/64\n"))]
    fn the_network_becomes_a_unit(#[case] net: &str, #[case] expected: Option<&str>) {
        let unit = networkd(&net.parse().unwrap());

        let settings = unit.as_deref().map(|unit| unit.split_once("[Network]\n").unwrap().1);
        assert_eq!(settings, expected);
    }

    #[rstest]
    #[case::dhcp("dhcp", "iface eth0 inet dhcp\n")]
    #[case::whole(
        "10.0.0.5/20,10.0.0.1",
        "iface eth0 inet static\n\taddress 10.0.0.5\n\tnetmask 255.255.240.0\n\tgateway 10.0.0.1\n"
    )]
    #[case::alone("fd00::5/64", "iface eth0 inet6 static\n\taddress fd00::5\n\tnetmask 64\n")]
    fn the_network_becomes_an_interface_of_ifupdown(#[case] net: &str, #[case] expected: &str) {
        assert!(interfaces(&net.parse().unwrap()).ends_with(&format!("auto eth0\n{expected}")));
    }

    #[rstest]
    #[case::dhcp("dhcp", "[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=auto\n")]
    #[case::whole(
        "10.0.0.5/24,10.0.0.1,2001:db8::1",
        "[ipv4]\nmethod=manual\naddress1=10.0.0.5/24,10.0.0.1\n\n[ipv6]\nmethod=auto\ndns=2001:db8::1;\n"
    )]
    #[case::ipv6("fd00::5/64", "[ipv4]\nmethod=disabled\n\n[ipv6]\nmethod=manual\naddress1=fd00::5/64\n")]
    fn the_network_becomes_a_connection(#[case] net: &str, #[case] expected: &str) {
        assert!(network_manager(&net.parse().unwrap()).ends_with(expected));
    }
}
