//! Link layer addresses, in the forms that ether_aton(3) takes.

use std::{fmt, str::FromStr};

/// A link layer (MAC) address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether it is a group's address: no interface can have one.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

/// The text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoAddress;

impl FromStr for MacAddress {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            let part = parts.next().ok_or(NoAddress)?;
            if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(NoAddress);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| NoAddress)?;
        }
        if parts.next().is_some() { Err(NoAddress) } else { Ok(Self(address)) }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if count > 0 { ":" } else { "" })?;
        }
        Ok(())
    }
}
