//! PGP signatures of kernel.org's tarballs.
//!
//! A signature is accepted only from a key whose fingerprint is pinned in `series.toml`. The public keys in
//! `kernel/keys/` need no trust of their own: the fingerprint identifies the key.

use std::{
    fs::{self, File},
    io::{BufReader, Read},
    path::Path,
};

use pgp::{
    composed::{Deserializable, DetachedSignature, SignedPublicKey},
    types::{Fingerprint, KeyDetails},
};
use support::file;

use crate::fetch::{
    error::{FetchError, Result},
    unpack::xz_decoder,
};

/// The public keys with pinned fingerprints.
#[derive(Debug)]
pub struct Keyring {
    keys: Vec<SignedPublicKey>,
    pinned: Vec<String>,
}

impl Keyring {
    /// Reads the armoured keys of a directory's `*.asc` files and keeps those with a pinned fingerprint.
    pub fn load<'a>(dir: &Path, fingerprints: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let pinned: Vec<String> =
            fingerprints.into_iter().map(|f| f.replace(' ', "").to_ascii_lowercase()).collect();
        let mut keys = Vec::new();
        for entry in fs::read_dir(dir).map_err(|e| file::Error::new("read", dir, e))? {
            let path = entry.map_err(|e| file::Error::new("read", dir, e))?.path();
            if path.extension().is_none_or(|e| e != "asc") {
                continue;
            }
            let malformed = |e: pgp::errors::Error| FetchError::Malformed {
                path: path.clone(),
                problem: format!("not an armoured PGP public key: {e}"),
                help: Some("export it again with `gpg --armor --export FINGERPRINT`".to_owned()),
            };
            let file = File::open(&path).map_err(|e| file::Error::new("open", &path, e))?;
            let (found, _) = SignedPublicKey::from_armor_many(BufReader::new(file)).map_err(malformed)?;
            for key in found {
                let key = key.map_err(malformed)?;
                // Only the primary key is used, which the fingerprint identifies.
                if pinned.contains(&hex(&key.fingerprint())) {
                    keys.push(key);
                }
            }
        }
        Ok(Self { keys, pinned })
    }

    /// Verifies a kernel.org signature, which is over the uncompressed tar of a `.tar.xz`. Returns the signer's
    /// fingerprint.
    pub fn verify_tar_xz(&self, tarball: &Path, signature: &Path) -> Result<String> {
        let bad = |problem: String| FetchError::BadSignature {
            path: tarball.to_owned(),
            problem,
            pinned: self.pinned.join(", "),
        };
        let file = File::open(signature).map_err(|e| file::Error::new("open", signature, e))?;
        let (signatures, _) = DetachedSignature::from_armor_many(BufReader::new(file))
            .map_err(|e| bad(format!("{} is not a PGP signature: {e}", signature.display())))?;
        let mut problem = "its signature file holds no signature".to_owned();
        for signature in signatures.filter_map(std::result::Result::ok) {
            let Some(key) = self.keys.iter().find(|key| signed_by(&signature, key)) else {
                problem = "not signed by a pinned key".into();
                continue;
            };
            let file = File::open(tarball).map_err(|e| file::Error::new("open", tarball, e))?;
            let tar = xz_decoder(BufReader::with_capacity(1 << 20, file))
                .map_err(|e| file::Error::new("decompress", tarball, e))?;
            let mut tar = Remember { inner: tar, failed: None };
            match signature.signature.verify(&key.primary_key, &mut tar) {
                Ok(()) => return Ok(hex(&key.fingerprint())),
                Err(e) => {
                    if let Some(source) = tar.failed {
                        return Err(FetchError::BadArchive { path: tarball.to_owned(), source });
                    }
                    problem = format!("the signature does not verify: {e}");
                }
            }
        }
        Err(bad(problem))
    }
}

/// A reader that keeps its error. The PGP library replaces the error, and a damaged archive must not be reported as a
/// forged one.
struct Remember<R> {
    inner: R,
    failed: Option<std::io::Error>,
}

impl<R: Read> Read for Remember<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.inner.read(buffer).map_err(|e| {
            let kind = e.kind();
            self.failed = Some(e);
            kind.into()
        })
    }
}

/// Whether a signature names a key as its issuer.
fn signed_by(signature: &DetachedSignature, key: &SignedPublicKey) -> bool {
    let signature = &signature.signature;
    signature.issuer_fingerprint().iter().any(|f| **f == key.fingerprint())
        || signature.issuer_key_id().iter().any(|id| **id == key.legacy_key_id())
}

fn hex(fingerprint: &Fingerprint) -> String {
    format!("{fingerprint:x}")
}
