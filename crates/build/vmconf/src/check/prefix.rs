//! The prefixes of local interfaces.

use std::net::{Ipv4Addr, Ipv6Addr};

fn split_prefix(
    text: &str,
    default: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<(&str, u32), String> {
    let (address, length) = match text.rsplit_once('/') {
        None => (text, default),
        Some((address, length)) => {
            (address, length.parse().map_err(|_| "the length is not a number".to_owned())?)
        }
    };
    if !range.contains(&length) {
        return Err(format!("its length must be {} to {}", range.start(), range.end()));
    }
    Ok((address, length))
}

/// Why vmd refuses an IPv4 prefix, as 7.4 and later take them; the address may be cut short, as in `10/8`.
pub(super) fn ipv4_prefix(text: &str) -> Result<(), String> {
    let (address, length) = split_prefix(text, 16, 1..=16)?;
    let mut octets = [0u8; 4];
    let parts: Vec<_> = address.split('.').collect();
    if parts.len() > 4 {
        return Err("it is not an IPv4 address".to_owned());
    }
    for (octet, part) in octets.iter_mut().zip(parts) {
        *octet = part.parse().map_err(|_| "it is not an IPv4 address".to_owned())?;
    }
    let bits = u32::from(Ipv4Addr::from(octets));
    if bits & (u32::MAX >> length) != 0 { Err("bits are set beyond its length".to_owned()) } else { Ok(()) }
}

/// Why vmd refuses an IPv6 prefix.
pub(super) fn ipv6_prefix(text: &str) -> Result<(), String> {
    let (address, length) = split_prefix(text, 64, 0..=64)?;
    let address: Ipv6Addr = address.parse().map_err(|_| "it is not an IPv6 address".to_owned())?;
    let beyond = if length == 0 { u128::MAX } else { u128::MAX >> length };
    if u128::from(address) & beyond != 0 { Err("bits are set beyond its length".to_owned()) } else { Ok(()) }
}
