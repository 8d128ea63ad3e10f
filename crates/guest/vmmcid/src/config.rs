//! The configuration file, `/etc/vmmcid.toml`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use miette::{Diagnostic, NamedSource, SourceSpan};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmmci_protocol::{ShutdownKind, follow};

/// Default path of the configuration.
pub const PATH: &str = "/etc/vmmcid.toml";

/// Upper limit of port accesses per second: each is an exit.
const MOST_ACCESSES: f64 = 2.0;

/// Serde's view of [`ShutdownKind`]: `poweroff` or `reboot`.
#[derive(Serialize, Deserialize)]
#[serde(remote = "ShutdownKind", rename_all = "lowercase")]
pub(crate) enum ShutdownKindDef {
    PowerOff,
    Reboot,
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// Poll interval of the command register.
    #[serde(with = "duration")]
    pub poll_interval: Duration,
    /// Whether SYNCRTC sets the clock.
    pub set_clock: bool,
    /// Smallest offset that is corrected.
    #[serde(with = "duration")]
    pub smallest_step: Duration,
    /// Interval between the follower's comparisons of the clocks; zero: there is no follower.
    #[serde(with = "duration")]
    pub follow: Duration,
    /// Kind of shutdown when the host commands REBOOT, which `vmctl stop` sends too.
    #[serde(with = "ShutdownKindDef")]
    pub on_reboot: ShutdownKind,
    /// A program that powers off, tried before the init system's own way.
    pub poweroff_command: Vec<String>,
    /// A program that reboots, tried before the init system's own way.
    pub reboot_command: Vec<String>,
    /// Time from the host's command to a forced shutdown; the host waits 120 s.
    #[serde(with = "duration")]
    pub force_after: Duration,
    /// The directory with `before-stop.d` and `after-resume.d`.
    pub hooks: PathBuf,
    /// Time limit for all hooks of one directory together.
    #[serde(with = "duration")]
    pub hook_timeout: Duration,
    /// Samples for chrony.
    pub chrony: Option<Chrony>,
}

/// The host's time for chrony.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Chrony {
    /// The socket of chrony's `refclock SOCK`.
    pub socket: PathBuf,
    /// Interval between samples.
    #[serde(with = "duration", default = "chrony_interval")]
    pub interval: Duration,
}

impl Chrony {
    /// Default interval between samples.
    pub const INTERVAL: Duration = Duration::from_secs(16);
}

fn chrony_interval() -> Duration {
    Chrony::INTERVAL
}

impl Default for Config {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_millis(600),
            set_clock: true,
            smallest_step: Duration::from_millis(1),
            follow: Duration::ZERO,
            on_reboot: ShutdownKind::Reboot,
            poweroff_command: Vec::new(),
            reboot_command: Vec::new(),
            force_after: Duration::from_secs(90),
            hooks: PathBuf::from("/etc/vmmcid"),
            hook_timeout: Duration::from_secs(20),
            chrony: None,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, Error, Diagnostic)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    #[diagnostic(help("see vmmcid(8) for what may be in it; without the file the defaults hold"))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file does not parse.
    #[error("the configuration {} is invalid: {message}", text.name())]
    #[diagnostic(help("vmmcid(8) has all settings; durations are written as in \"600ms\" or \"90s\""))]
    Syntax {
        /// What is wrong.
        message: Box<str>,
        /// Its text.
        #[source_code]
        text: NamedSource<String>,
        /// Where.
        #[label("here")]
        place: Option<SourceSpan>,
    },
    /// A value is out of range.
    #[error("{setting} cannot be {value}")]
    #[diagnostic(help("{help}"))]
    Value {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What it can be.
        help: String,
    },
}

impl Config {
    /// Reads a configuration; the default path may be missing.
    pub fn read(named: Option<&Path>) -> Result<Self, Error> {
        let path = named.unwrap_or(Path::new(PATH));
        let text = match fs::read_to_string(path) {
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
            result => result.map_err(|source| Error::Read { path: path.to_owned(), source })?,
        };
        let config: Self = toml::from_str(&text).map_err(|error| Error::Syntax {
            message: error.message().into(),
            place: error.span().map(Into::into),
            text: NamedSource::new(path.to_string_lossy(), text.clone()),
        })?;
        config.check()?;
        Ok(config)
    }

    /// Whether the values make sense, alone and together.
    pub fn check(&self) -> Result<(), Error> {
        let range = |setting, value: Duration, least: u64, most: u64, why: &str| {
            let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
            if (least..=most).contains(&value) {
                return Ok(());
            }
            let show = humantime::format_duration;
            let help = format!("it can be {} to {}: {why}", show(least), show(most));
            Err(Error::Value { setting, value: show(value).to_string(), help })
        };
        let killed = "a guest that has not answered within 3 s is killed by the host";
        range("poll-interval", self.poll_interval, 500, 1500, killed)?;
        range("smallest-step", self.smallest_step, 0, 60_000, "larger steps are what the host asks for")?;
        if !self.follow.is_zero() {
            let least = u64::from(follow::MIN_INTERVAL) * 1000;
            range("follow", self.follow, least, 86_400_000, "it reads the host's clock; 0s is never")?;
        }
        let ended = "the host ends the VM 120 s after its command";
        range("force-after", self.force_after, 10_000, 100_000, ended)?;
        range("hook-timeout", self.hook_timeout, 1000, 60_000, ended)?;
        if self.hook_timeout >= self.force_after {
            return Err(Error::Value {
                setting: "hook-timeout",
                value: humantime::format_duration(self.hook_timeout).to_string(),
                help: "it has to leave time for the system to go down before force-after is over".to_owned(),
            });
        }
        if !self.hooks.is_absolute() {
            return Err(not_absolute("hooks", &self.hooks));
        }
        if let Some(chrony) = &self.chrony {
            range("chrony.interval", chrony.interval, 1000, 1_024_000, "as chrony's poll 0 to 10")?;
            if !chrony.socket.is_absolute() {
                return Err(not_absolute("chrony.socket", &chrony.socket));
            }
        }
        let accesses = self.accesses_per_second();
        if accesses > MOST_ACCESSES {
            return Err(Error::Value {
                setting: "poll-interval with follow and chrony.interval",
                value: format!("so short: it makes {accesses:.2} accesses to the device a second"),
                help: format!("make one of them longer: {MOST_ACCESSES} accesses a second are the most"),
            });
        }
        Ok(())
    }

    /// How many accesses to the device a second this makes while nothing happens.
    pub fn accesses_per_second(&self) -> f64 {
        let samples = self.chrony.as_ref().map_or(0.0, |chrony| 2.0 / chrony.interval.as_secs_f64());
        let follow = self.follow_interval().map_or(0.0, |interval| 2.0 / interval.as_secs_f64());
        1.0 / self.poll_interval.as_secs_f64() + samples + follow
    }

    /// Interval between the follower's comparisons of the clocks, if there is one.
    pub fn follow_interval(&self) -> Option<Duration> {
        let asked = u32::try_from(self.follow.as_secs()).unwrap_or(u32::MAX);
        follow::interval(asked).map(|seconds| Duration::from_secs(seconds.into()))
    }
}

fn not_absolute(setting: &'static str, path: &Path) -> Error {
    let help = "it has to begin with /".to_owned();
    Error::Value { setting, value: path.display().to_string(), help }
}

/// Durations as people write them.
mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*value))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text)
            .map_err(|e| D::Error::custom(format!("`{text}` is no duration: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmmcid.toml");
        fs::write(&path, text).unwrap();
        Config::read(Some(&path))
    }

    fn refusal(text: &str) -> String {
        let error = read(text).unwrap_err();
        format!("{error}; {}", error.help().unwrap())
    }

    #[test]
    fn the_file_that_is_installed_says_the_defaults() {
        let commented = include_str!("../dist/vmmcid.toml");
        assert_eq!(read(commented).unwrap(), Config::default());
        let plain: String = commented
            .lines()
            .map(|line| line.strip_prefix("#").filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let with_chrony = Config {
            chrony: Some(Chrony { socket: "/run/chrony.vmmci.sock".into(), interval: chrony_interval() }),
            ..Config::default()
        };
        assert_eq!(read(&plain).unwrap(), with_chrony, "every setting is shown:\n{plain}");
    }

    #[test]
    fn what_is_set_holds_and_survives_a_round_trip() {
        let config =
            read("poll-interval = '1s'\non-reboot = 'poweroff'\n[chrony]\nsocket = '/run/c'\n").unwrap();
        assert_eq!(config.poll_interval, Duration::from_secs(1));
        assert_eq!(config.on_reboot, ShutdownKind::PowerOff);
        assert_eq!(config.chrony.as_ref().unwrap().interval, Duration::from_secs(16));
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn mistakes_are_refused_with_a_reason() {
        assert!(refusal("poll-interval = '2s'").contains("3 s"));
        assert!(refusal("poll = '1s'").contains("unknown field `poll`"));
        assert!(refusal("poll-interval = 1").contains("\"600ms\""));
        assert!(refusal("poll-interval = 'soon'").contains("`soon` is no duration"));
        assert!(refusal("force-after = '2m'").contains("120 s"));
        assert!(refusal("hooks = 'etc'").contains("begin with /"));
        assert!(refusal("force-after = '30s'\nhook-timeout = '40s'").contains("force-after"));
        let both = "poll-interval = '500ms'\n[chrony]\nsocket = '/run/c'\n";
        assert!(refusal(both).contains("2.12 accesses"), "{}", refusal(both));
        assert!(read("poll-interval = '500ms'").is_ok());
    }

    #[test]
    fn a_follower_is_counted_and_reads_every_15_s_at_most() {
        let config = read("follow = '15s'").unwrap();

        assert_eq!(config.follow_interval(), Some(Duration::from_secs(15)));
        assert!((config.accesses_per_second() - 1.8).abs() < 1e-9, "{}", config.accesses_per_second());
        assert!(refusal("follow = '14s'").contains("15s to 1day"), "{}", refusal("follow = '14s'"));
        assert_eq!(read("follow = '0s'").unwrap(), Config::default());
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        assert!(matches!(Config::read(Some(Path::new("/nowhere/vmmcid.toml"))), Err(Error::Read { .. })));
    }
}
