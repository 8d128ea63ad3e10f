//! Public keys for SSH, read from a file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use miette::Diagnostic;
use thiserror::Error;

use crate::source::printable;

/// A file of keys that cannot be used.
#[derive(Debug, Error, Diagnostic)]
pub enum SshKeysError {
    /// Reading failed.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not a list of public keys.
    #[error("SSH public key file `{}`: {why}", printable(&path.to_string_lossy()))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Keys that may log in as root by SSH, in the form of `authorized_keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKeys(String);

impl SshKeys {
    /// Reads a public key file or an `authorized_keys` file. Every line must be a key, a comment or empty.
    pub fn read(path: &Path) -> Result<Self, SshKeysError> {
        let mut text =
            fs::read_to_string(path).map_err(|source| SshKeysError::Io { path: path.to_owned(), source })?;
        // Users may append to the file in the guest.
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let bad = |why: String| SshKeysError::Malformed { path: path.to_owned(), why };
        if text.contains("PRIVATE KEY-----") {
            return Err(bad("this is a private key; give the file beside it that ends in .pub".into()));
        }
        let mut keys = 0;
        for entry in ssh_key::AuthorizedKeys::new(&text) {
            keys += 1;
            entry.map_err(|e| bad(format!("its {keys}. entry is not a public key ({e})")))?;
        }
        if keys == 0 {
            return Err(bad("there is no key in it".into()));
        }
        Ok(Self(text))
    }

    /// The keys, one on a line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGB4fYfCEpGuvzTPVrFgjvQ4qM6qyYTT2rTe9JQpTbIL me@example\n";

    fn read(text: &str) -> Result<SshKeys, SshKeysError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        SshKeys::read(file.path())
    }

    #[rstest]
    #[case::whole(KEY)]
    #[case::without_a_newline(KEY.trim_end())]
    fn a_key_gets_a_line_of_its_own(#[case] text: &str) {
        assert_eq!(read(text).unwrap().as_str(), KEY);
    }

    #[test]
    fn comments_and_options_are_taken() {
        assert!(read(&format!("# mine\n\n{KEY}restrict {KEY}")).is_ok());
    }

    #[rstest]
    #[case::private("-----BEGIN OPENSSH PRIVATE KEY-----\n", ".pub")]
    #[case::nothing("\n# nothing\n", "no key")]
    #[case::broken(&KEY.replace("C3Nz", "XXXX"), "1. entry")]
    #[case::second(&format!("{KEY}hello\n"), "2. entry")]
    fn what_is_not_a_list_of_public_keys_is_refused(#[case] text: &str, #[case] why: &str) {
        let refused = read(text).unwrap_err().to_string();

        assert!(refused.contains(why), "{refused}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let refused = SshKeys::read(Path::new("/nonexistent/key.pub")).unwrap_err();

        assert!(matches!(refused, SshKeysError::Io { .. }), "{refused}");
    }
}
