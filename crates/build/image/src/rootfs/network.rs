//! A network's settings as the services of root file systems read them.

use std::fmt::Write as _;

use crate::settings::Net;

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
}
