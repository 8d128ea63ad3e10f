//! Addresses of local interfaces (`vmctl start -L`).

use std::net::Ipv4Addr;

use thiserror::Error;

use super::mac::MacAddr;

/// The network from which local interfaces get their addresses (`local prefix` in vm.conf(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalPrefix {
    /// Network address.
    pub address: Ipv4Addr,
    /// Length of the network mask in bits, 0 to 32.
    pub bits: u8,
}

impl Default for LocalPrefix {
    /// 100.64.0.0/10.
    fn default() -> Self {
        Self { address: Ipv4Addr::new(100, 64, 0, 0), bits: 10 }
    }
}

/// The prefix has no address for an interface.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("local interface {interface} of VM {vm} has no address in {}/{}", prefix.address, prefix.bits)]
pub struct AddressError {
    /// The VM's number.
    pub vm: u32,
    /// The interface's number in the VM.
    pub interface: u8,
    /// The network.
    pub prefix: LocalPrefix,
}

/// The two addresses of a local interface's link: a network 100.64.N.M/31 for VM N, the even
/// address for the host and the next one for the guest. M is 2 for the first interface
/// (`vm_priv_addr` in priv.c).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalLink {
    /// The host's address: gateway, DHCP and name server.
    pub host: Ipv4Addr,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The host's MAC address.
    pub host_mac: MacAddr,
    /// For a guest that boots from the network (`vmctl start -B net`): the VM's name. DHCP then
    /// sends it as the host name, together with the boot file `auto_install`.
    pub netboot: Option<String>,
}

impl LocalLink {
    /// The link of interface `interface` (from 0) of VM `vm` (from 1).
    pub fn new(prefix: LocalPrefix, vm: u32, interface: u8, host_mac: MacAddr) -> Result<Self, AddressError> {
        let error = AddressError { vm, interface, prefix };
        let network = u32::from(prefix.address);
        let address = |guest: bool| {
            let link = (u32::from(interface) + 1) * 2 + u32::from(guest);
            let number = vm << 8 | link;
            let address = number | network;
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.bits)).unwrap_or(0);
            (address & mask == network && interface < 0x7f).then_some(Ipv4Addr::from(address)).ok_or(error)
        };
        Ok(Self { host: address(false)?, guest: address(true)?, host_mac, netboot: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_recorded_and_bounded() {
        let mac = MacAddr([0; 6]);
        let link = |vm, interface| LocalLink::new(LocalPrefix::default(), vm, interface, mac);
        let first = link(1, 0).unwrap();
        assert_eq!(
            (first.host.to_string(), first.guest.to_string()),
            ("100.64.1.2".into(), "100.64.1.3".into())
        );
        assert_eq!(link(300, 2).unwrap().guest.to_string(), "100.65.44.7");
        assert!(link(1 << 15, 0).is_err());
        assert!(link(1, 0x7f).is_err());
        let all = LocalPrefix { address: Ipv4Addr::UNSPECIFIED, bits: 0 };
        assert_eq!(LocalLink::new(all, 1, 0, mac).unwrap().host.to_string(), "0.0.1.2");
    }
}
