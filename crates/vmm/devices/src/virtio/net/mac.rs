//! MAC addresses.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The address that vmd generates for NIC `index` (from 0) of a VM without a configured one:
    /// fe:e1:bb, a byte with 0xd in its high half and the NIC's number from 1 on in its low half,
    /// and 16 random bits (`vm_register` in vmd.c). OpenBSD's own generated addresses, such as that
    /// of the tap on the host side, have ba instead of bb.
    pub const fn generated(index: u8, random: u16) -> Self {
        let [low, high] = random.to_le_bytes();
        Self([0xfe, 0xe1, 0xbb, 0xd0 | (index.wrapping_add(1) & 0xf), low, high])
    }

    /// A generated address with bits from the host's random number generator.
    pub fn random(index: u8) -> Self {
        Self::generated(index, getrandom::u32().map_or(0, |bits| bits as u16))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

/// A text that is not a MAC address.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("invalid Ethernet address `{0}`: the format is fe:e1:bb:d1:02:03")]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let error = || ParseMacError(s.to_owned());
        let mut bytes = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.len() <= 2 && !part.starts_with('+')).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_addresses_match_the_recorded_one() {
        assert_eq!(MacAddr::generated(0, 0x1bb3).to_string(), "fe:e1:bb:d1:b3:1b");
        assert_eq!(MacAddr::generated(15, 0).0[3], 0xd0);
        assert_ne!(MacAddr::random(0), MacAddr::random(1));
    }

    #[test]
    fn addresses_round_trip_and_other_texts_are_refused() {
        let mac = MacAddr([0, 1, 2, 0xfd, 0xfe, 0xff]);
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert_eq!("0:1:2:fd:fe:ff".parse(), Ok(mac));
        for text in [
            "",
            "00:01:02:03:04",
            "00:01:02:03:04:05:06",
            "00:01:02:03:04:xx",
            "00:01:02:03:04:+5",
            "000:1:2:3:4:5",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }
}
