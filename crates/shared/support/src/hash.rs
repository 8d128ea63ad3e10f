//! SHA-256 of files and of lists of fields, in hexadecimal.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

use crate::file::{Error, Result};

/// The SHA-256 of a file: 64 lower-case hexadecimal digits.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::new("open", path, e))?;
    let mut hash = Hash::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.hex()),
            Ok(n) => hash.0.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::new("read", path, e)),
        }
    }
}

/// A SHA-256 over fields. Each field's length is hashed before its bytes, so that different lists of fields have
/// different hashes.
#[derive(Debug, Default)]
pub struct Hash(Sha256);

impl Hash {
    /// A hash over no fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a field.
    pub fn field(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The hash: 64 lower-case hexadecimal digits.
    pub fn hex(self) -> String {
        use std::fmt::Write as _;
        self.0.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}
