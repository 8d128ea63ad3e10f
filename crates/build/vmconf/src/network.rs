//! The host's side of a guest's network: veb(4), vport(4), bridge(4), vether(4), hostname.if(5), dhcpd(8), pf.conf(5).
//!
//! No command here takes an address away from a running host. A veb(4) takes over an interface that is added to it, and
//! the host's stack does not get its packets any more; a vport(4) has the host's address then. A bridge(4) leaves its
//! members to the host. Files that exist are not overwritten.

use std::fmt::Write as _;

use crate::{
    proposal::{Network, NewSwitch},
    shell::{Written, quoted},
};

/// The commands for a network, as a commented script.
pub(crate) fn steps(network: &Network) -> Written {
    Ok(match network {
        Network::None => String::new(),
        Network::Local => format!(
            "# vmd answers the guest's DHCP itself. To let it out, forward and translate on the host:\n{}\
             # The guest's name server is the host then. If none runs there (unbound), have pf send the questions on:\n\
             # pass in proto {{ udp tcp }} from 100.64.0.0/10 to any port domain rdr-to 9.9.9.9 port domain\n\n",
            forward("100.64.0.0/10")
        ),
        Network::Switch { name, declared: None } => format!(
            "# The guest's address belongs to the network of a switch; `vmmlinux vmconf -i {}=veb0 IMAGE` makes one.\n\n",
            quoted(name)?
        ),
        Network::Switch { name, declared: Some(NewSwitch { interface, uplink }) } => {
            // The check of the stanza has seen that the interface is one of the two.
            let interface = quoted(interface)?;
            let is_veb = interface.starts_with("veb");
            let number = interface.trim_start_matches(|c: char| !c.is_ascii_digit());
            match uplink {
                None => {
                    let port = if is_veb { format!("vport{number}") } else { format!("vether{number}") };
                    own_network(&quoted(name)?, &interface, &port, number)
                }
                Some(uplink) if is_veb => joined_veb(&interface, &quoted(uplink)?, &format!("vport{number}")),
                Some(uplink) => joined_bridge(&interface, &quoted(uplink)?),
            }
        }
    })
}

/// Forwarding and translation for the guests in a prefix of pf's.
fn forward(prefix: &str) -> String {
    format!(
        "sysctl net.inet.ip.forwarding=1\n\
         echo net.inet.ip.forwarding=1 >> /etc/sysctl.conf\n\
         echo 'pass out on egress from {prefix} to any nat-to (egress)' >> /etc/pf.conf && pfctl -f /etc/pf.conf\n"
    )
}

/// A network of the guests' own: the host has an address in it, answers DHCP and translates. Works on every host, also
/// on one whose only interface is a wireless one.
fn own_network(name: &str, interface: &str, port: &str, number: &str) -> String {
    // vmd's numbers are small; the third byte keeps two switches apart.
    let net = format!("10.77.{}", number.parse().unwrap_or(0u8));
    let mut text = format!(
        "# The switch: a network of the guests' own, in which the host is {net}.1. It leaves the host's interfaces alone,\n\
         # and works with Wi-Fi, too.\n\
         [ -e /etc/hostname.{interface} ] || [ -e /etc/hostname.{port} ] || {{\n\
         printf 'inet {net}.1 255.255.255.0\\nup\\n' > /etc/hostname.{port}\n\
         printf 'add {port}\\nup\\n' > /etc/hostname.{interface}\n\
         sh /etc/netstart {port} {interface}\n\
         }}\n\
         # Addresses for the guests. Where dhcpd serves another network, add the subnet and {port} to it by hand.\n\
         [ -e /etc/dhcpd.conf ] || {{\n\
         cat > /etc/dhcpd.conf <<'END'\n\
         subnet {net}.0 netmask 255.255.255.0 {{\n\
         \toption routers {net}.1;\n\
         \toption domain-name-servers 9.9.9.9;\n\
         \trange {net}.10 {net}.250;\n\
         }}\n\
         END\n\
         rcctl enable dhcpd && rcctl set dhcpd flags {port} && rcctl start dhcpd\n\
         }}\n\
         # The way out:\n{}",
        forward(&format!("{port}:network"))
    );
    let _ = writeln!(
        text,
        "# For guests on the network of an Ethernet interface of the host's: vmmlinux vmconf -i {name}={interface},em0 …\n"
    );
    text
}

/// Guests on the network of an interface that a veb(4) takes over; the host's address moves to a vport(4).
fn joined_veb(interface: &str, uplink: &str, port: &str) -> String {
    format!(
        "# WARNING: a veb(4) takes {uplink} away from the host. What /etc/hostname.{uplink} has, addresses and routes, goes to\n\
         # {port}, when the host starts the next time: have its console at hand. Before that, put {port} in the place of\n\
         # {uplink} in pf.conf, dhcpd's flags and so on, and move lines on media back. {port} has another link layer\n\
         # address than {uplink}, a new one at each start unless its file has a line `lladdr fe:e1:ba:…`: DHCP may give the\n\
         # host another address. To leave the host as it is, take a bridge(4) instead of {interface}, or, as with Wi-Fi, a\n\
         # network of the guests' own with NAT (without `,{uplink}`).\n\
         [ ! -e /etc/hostname.{uplink} ] || [ -e /etc/hostname.{interface} ] || [ -e /etc/hostname.{port} ] || {{\n\
         cp -p /etc/hostname.{uplink} /etc/hostname.{port}\n\
         echo up > /etc/hostname.{uplink}\n\
         printf 'add {uplink}\\nadd {port}\\nup\\n' > /etc/hostname.{interface}\n\
         }}\n\
         # The switch works from the next start of the host on.\n\n"
    )
}

/// Guests on the network of an interface that a bridge(4) shares with the host.
fn joined_bridge(interface: &str, uplink: &str) -> String {
    format!(
        "# WARNING: the guests are on the network of {uplink}, unfiltered. A bridge(4) leaves {uplink} and its addresses to the\n\
         # host. It does not work with Wi-Fi: for that, take a network of the guests' own (without `,{uplink}`).\n\
         [ -e /etc/hostname.{interface} ] || {{\n\
         printf 'add {uplink}\\nup\\n' > /etc/hostname.{interface}\n\
         sh /etc/netstart {interface}\n\
         }}\n\n"
    )
}
