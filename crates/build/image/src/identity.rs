//! Everything in an image that is a matter of chance or of the clock, so that one pair of values decides it all.

use std::{
    env,
    time::{SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Time stamp and identifiers of one image.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Seconds since 1970 that every file and file system is stamped with.
    time: u64,
    seed: [u8; 32],
}

impl Identity {
    /// With `SOURCE_DATE_EPOCH` set, that time and identifiers that follow from it and from `name` alone, so that the
    /// same inputs give the same image; otherwise now and chance.
    pub fn from_env(name: &str) -> Result<Self> {
        match env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => {
                let time = text.parse().map_err(|_| {
                    Error::setting("SOURCE_DATE_EPOCH", &text, "it is a number of seconds since 1970")
                })?;
                Ok(Self::reproducible(time, name))
            }
            Err(_) => Ok(Self::random()),
        }
    }

    /// Follows from the arguments.
    pub fn reproducible(time: u64, name: &str) -> Self {
        Self { time, seed: Sha256::digest(format!("{time} {name}")).into() }
    }

    fn random() -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the kernel has random bytes");
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self { time, seed }
    }

    pub(crate) fn time(&self) -> u64 {
        self.time
    }

    /// Bytes for one use; other uses get other bytes.
    pub(crate) fn bytes<const N: usize>(&self, purpose: &str) -> [u8; N] {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(purpose);
        let digest: [u8; 32] = hash.finalize().into();
        let mut bytes = [0; N];
        bytes.copy_from_slice(&digest[..N]);
        bytes
    }

    /// A version 4 UUID for one use.
    pub(crate) fn uuid(&self, purpose: &str) -> String {
        let mut bytes: [u8; 16] = self.bytes(purpose);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = format!("{:032x}", u128::from_be_bytes(bytes));
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_follow_from_their_inputs() {
        let identity = Identity::reproducible(1, "vm");
        assert_eq!(identity.uuid("a"), Identity::reproducible(1, "vm").uuid("a"));
        assert_ne!(identity.uuid("a"), identity.uuid("b"));
        assert_ne!(identity.uuid("a"), Identity::reproducible(2, "vm").uuid("a"));
        assert_ne!(identity.uuid("a"), Identity::reproducible(1, "mv").uuid("a"));
        assert_ne!(Identity::random().uuid("a"), Identity::random().uuid("a"));
    }

    #[test]
    fn uuids_have_the_form_of_version_4() {
        let uuid = Identity::random().uuid("a");
        let lengths: Vec<_> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&uuid[14..15], "4");
        assert!("89ab".contains(&uuid[19..20]));
    }
}
