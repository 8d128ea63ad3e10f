//! Reading a `.config`, `/boot/config-*` or `/proc/config.gz`.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use miette::Diagnostic;
use thiserror::Error;

use crate::Value;

/// A kernel configuration is some 300 kB; anything far beyond is something else.
const LIMIT: u64 = 16 << 20;

/// A kernel configuration as the kernel's own `conf` wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DotConfig {
    values: BTreeMap<String, Value>,
    version: Option<String>,
}

/// A configuration that cannot be read.
#[derive(Debug, Error, Diagnostic)]
pub enum DotConfigError {
    /// The file itself.
    #[error("cannot read the kernel configuration {}", .path.display())]
    #[diagnostic(help("give a .config, a /boot/config-* or a /proc/config.gz"))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A line that is neither comment nor assignment.
    #[error("{}, line {line}: `{text}` is not a line of a kernel configuration", .path.display())]
    #[diagnostic(help("expected CONFIG_NAME=value or `# CONFIG_NAME is not set`"))]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The line, shortened.
        text: String,
    },
    /// No symbol at all.
    #[error("{} holds no configuration symbol", .path.display())]
    #[diagnostic(help("give a .config, a /boot/config-* or a /proc/config.gz"))]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl DotConfig {
    /// Reads a file, gzip-compressed or not.
    pub fn load(path: &Path) -> Result<Self, DotConfigError> {
        let text = read(path).map_err(|source| DotConfigError::Read { path: path.to_owned(), source })?;
        let config = Self::parse(&text).map_err(|(line, text)| DotConfigError::Line {
            path: path.to_owned(),
            line,
            text: text.chars().take(60).collect(),
        })?;
        if config.values.is_empty() {
            return Err(DotConfigError::Empty { path: path.to_owned() });
        }
        Ok(config)
    }

    /// Reads the text of a configuration; the error is the number and text of the line that is none.
    pub fn parse(text: &str) -> Result<Self, (usize, &str)> {
        let mut config = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if let Some(comment) = line.strip_prefix('#') {
                if let Some(name) =
                    comment.trim().strip_prefix("CONFIG_").and_then(|rest| rest.strip_suffix(" is not set"))
                {
                    config.values.insert(name.to_owned(), Value::No);
                } else if config.version.is_none() {
                    config.version = header_version(comment);
                }
            } else if !line.is_empty() {
                let (name, value) = line
                    .strip_prefix("CONFIG_")
                    .and_then(|rest| rest.split_once('='))
                    .and_then(|(name, value)| Some((name, Value::parse(value)?)))
                    .ok_or((number + 1, line))?;
                config.values.insert(name.to_owned(), value);
            }
        }
        Ok(config)
    }

    /// The symbol's value; [`Value::No`] for one that is not mentioned.
    pub fn value(&self, symbol: &str) -> &Value {
        self.values.get(symbol).unwrap_or(&Value::No)
    }

    /// What the file says of the symbol; `None` if it does not mention it.
    pub fn said(&self, symbol: &str) -> Option<&Value> {
        self.values.get(symbol)
    }

    /// Whether the file is a whole configuration, in which a symbol that is not mentioned is not set. The kernel's `conf`
    /// writes its version above one, and `X86`, which has no prompt; a defconfig, as `make savedefconfig` writes it, and
    /// a file written by hand have neither: they say what differs from the kernel's defaults.
    pub fn is_whole(&self) -> bool {
        self.version.is_some() || self.is_set("X86")
    }

    /// Whether the symbol is in the kernel in any form.
    pub fn is_set(&self, symbol: &str) -> bool {
        self.value(symbol).is_set()
    }

    /// The kernel version of the file's header, as `6.12.107`.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Every symbol that is mentioned, with `n` for those that are not set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Takes over what another says of its symbols.
    pub(crate) fn extend(&mut self, later: Self) {
        self.values.extend(later.values);
    }

    /// Every symbol that is set.
    pub fn set(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.iter().filter(|(_, value)| value.is_set())
    }
}

/// For tests and for configurations made in memory.
impl<'a> FromIterator<(&'a str, Value)> for DotConfig {
    fn from_iter<I: IntoIterator<Item = (&'a str, Value)>>(values: I) -> Self {
        Self {
            values: values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            version: None,
        }
    }
}

/// ` Linux/x86 6.12.107 Kernel Configuration`, as conf writes it above every configuration.
fn header_version(comment: &str) -> Option<String> {
    let mut words = comment.strip_suffix("Kernel Configuration")?.split_whitespace();
    words.next()?.strip_prefix("Linux/")?;
    Some(words.next()?.to_owned())
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LIMIT).read_to_end(&mut bytes)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let compressed = std::mem::take(&mut bytes);
        MultiGzDecoder::new(&compressed[..]).take(LIMIT).read_to_end(&mut bytes)?;
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &str = "#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86 6.12.107 Kernel Configuration\n#\n\
                        CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x y\"\n\n#\n# A menu\n#\nCONFIG_D=0x10\n";

    #[test]
    fn values_and_version_are_read_plain_and_compressed() {
        let plain = tempfile::NamedTempFile::new().unwrap();
        fs::write(plain.path(), TEXT).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(TEXT.as_bytes()).unwrap();
        let packed = tempfile::NamedTempFile::new().unwrap();
        fs::write(packed.path(), gz.finish().unwrap()).unwrap();

        let config = DotConfig::load(plain.path()).unwrap();
        assert_eq!(config, DotConfig::load(packed.path()).unwrap());
        assert_eq!(config.version(), Some("6.12.107"));
        assert_eq!(config.value("A"), &Value::Yes);
        assert_eq!(config.value("B"), &Value::No);
        assert_eq!(config.value("C"), &Value::Text("x y".into()));
        assert_eq!(config.value("D"), &Value::Hex(16));
        assert_eq!(config.value("NEVER_HEARD_OF"), &Value::No);
        assert_eq!(config.set().count(), 3);
    }

    #[test]
    fn a_configuration_without_what_conf_adds_is_a_part() {
        let whole = |text| DotConfig::parse(text).unwrap().is_whole();
        assert!(whole(TEXT) && whole("CONFIG_X86=y\n"));
        // make savedefconfig
        assert!(!whole("CONFIG_LOCALVERSION=\"-x\"\nCONFIG_SMP=y\n# CONFIG_VIRTIO_BLK is not set\n"));
    }

    #[test]
    fn other_files_are_refused_with_the_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "CONFIG_A=y\nroot:x:0:0\n").unwrap();
        assert!(DotConfig::load(file.path()).unwrap_err().to_string().contains("line 2: `root:x:0:0`"));
        fs::write(file.path(), "# nothing\n").unwrap();
        assert!(matches!(DotConfig::load(file.path()), Err(DotConfigError::Empty { .. })));
        fs::write(file.path(), [0x1f, 0x8b, 0, 1, 2]).unwrap();
        assert!(matches!(DotConfig::load(file.path()), Err(DotConfigError::Read { .. })));
    }
}
