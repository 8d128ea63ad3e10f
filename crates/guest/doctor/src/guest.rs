//! The guest under examination.

use std::path::{Path, PathBuf};

use kconfig::DotConfig;

use crate::{Host, Log, Measured, System};

/// The running kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// The release, as in `uname -r`.
    pub release: String,
    /// The words of its command line.
    pub words: Vec<String>,
    /// Whether it is one of vmmlinux's.
    pub ours: bool,
}

impl Kernel {
    /// Series of the release, as (7, 3).
    pub fn series(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// The values that a parameter is given, in order.
    pub fn values(&self, parameter: &str) -> impl Iterator<Item = &str> {
        self.words.iter().filter_map(move |word| word.strip_prefix(parameter)?.strip_prefix('='))
    }

    /// Whether the command line has what a remedy wants on it, as `io_delay=none`. Of what takes a list
    /// (`initcall_blacklist=`) or further settings (`console=`) it may be a part.
    pub fn has(&self, wanted: &str) -> bool {
        match wanted.split_once('=') {
            None => self.words.iter().any(|word| word == wanted),
            Some((parameter, value)) => self.values(parameter).any(|given| {
                given.split(',').any(|one| one == value)
                    || given == value
                    || value.split(',').next() == Some(given)
            }),
        }
    }
}

/// A guest and everything read from it.
pub struct Guest {
    /// Its files and processor.
    pub system: System,
    /// The host.
    pub host: Host,
    /// The kernel.
    pub kernel: Kernel,
    /// The kernel's configuration and the file that has it, or why there is none.
    pub config: Result<(PathBuf, DotConfig), String>,
    /// The kernel's messages.
    pub log: Log,
    /// Measurements, unless skipped.
    pub measured: Option<Measured>,
}

impl Guest {
    /// Reads a system. The kernel's configuration is in `config`, or where it usually is.
    pub fn look(system: System, config: Option<&Path>) -> Self {
        let host = Host::recognise(&system);
        let release = system.text("proc/sys/kernel/osrelease").unwrap_or_default();
        let config = configuration(&system, &release, config);
        let ours = match &config {
            Ok((_, config)) => config.is_set("OPENBSD_GUEST"),
            Err(_) => release.contains("-vmmlinux"),
        };
        let words = system.text("proc/cmdline").unwrap_or_default();
        let words = words.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect();
        let log = Log::read(&system);
        Self { host, kernel: Kernel { release, words, ours }, config, log, measured: None, system }
    }
}

fn configuration(
    system: &System,
    release: &str,
    named: Option<&Path>,
) -> Result<(PathBuf, DotConfig), String> {
    let usual = [
        "proc/config.gz".to_owned(),
        format!("boot/config-{release}"),
        format!("lib/modules/{release}/config"),
    ];
    let file = match named {
        Some(file) => file.to_owned(),
        None => usual
            .iter()
            .map(|path| system.path(path))
            .find(|path| path.is_file())
            .ok_or_else(|| format!("there is none of /{}", usual.join(", /")))?,
    };
    match DotConfig::load(&file) {
        Ok(config) => Ok((file, config)),
        Err(error) => Err(error.to_string()),
    }
}
