//! `vmmcid test`: what the daemon needs, looked at without changing anything.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use miette::Diagnostic;
use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;
use vmmci_protocol::{Features, Registers, ShutdownKind, register};
use vmmci_sysfs::{Bar, FUNCTIONS, Function, offset_in_words};

use crate::{
    config::Config,
    hooks::{self, Moment},
    init::Init,
    status,
};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// The daemon runs, but not all of it works.
    Doubtful,
    /// The daemon does not run like that.
    Fails,
}

impl Verdict {
    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Doubtful => "hm",
            Self::Fails => "FAIL",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
}

/// Looks at everything.
pub fn all(config: Option<&Path>) -> Vec<Check> {
    let mut checks = Checks::default();
    let config = checks.configuration(config);
    checks.device();
    checks.daemon();
    checks.privileges();
    let init = Init::detect();
    let way =
        init.ways(&config, ShutdownKind::PowerOff).first().map_or_else(String::new, ToString::to_string);
    checks.fine("init", format!("{}; powers off with: {way}", init.name()));
    checks.hooks(&config);
    checks.chrony(&config);
    checks.0
}

#[derive(Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, name: &'static str, verdict: Verdict, text: impl Into<String>) {
        self.0.push(Check { name, verdict, text: text.into() });
    }

    fn fine(&mut self, name: &'static str, text: impl Into<String>) {
        self.add(name, Verdict::Fine, text);
    }

    /// An error with what to do about it.
    fn fails(&mut self, name: &'static str, error: &(impl Diagnostic + 'static)) {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        let help = error.help().map(|help| format!(" — {help}")).unwrap_or_default();
        self.add(name, Verdict::Fails, format!("{error}{cause}{help}"));
    }

    fn configuration(&mut self, path: Option<&Path>) -> Config {
        match Config::read(path) {
            Ok(config) => {
                let accesses = config.accesses_per_second();
                self.fine(
                    "configuration",
                    format!("understood; makes {accesses:.2} accesses to the device a second"),
                );
                config
            }
            Err(error) => {
                self.fails("configuration", &error);
                Config::default()
            }
        }
    }

    fn device(&mut self) {
        let function = match Function::find(Path::new(FUNCTIONS)) {
            Ok(function) => function,
            Err(error) => return self.fails("device", &error),
        };
        let address = function.address().to_owned();
        if let Some(driver) = function.driver() {
            let text = format!("{address} is driven by the kernel ({driver}): vmmcid is not needed");
            return self.add("device", Verdict::Fails, text);
        }
        self.fine("device", format!("{address}, without a kernel driver"));
        match function.peek() {
            Ok(device) => self.registers(&Bar::new(device.bar)),
            Err(error) if !rustix::process::geteuid().is_root() => {
                self.add("registers", Verdict::Doubtful, format!("{error}: only root can tell"));
            }
            Err(error) => self.fails("registers", &error),
        }
    }

    fn registers(&mut self, bar: &Bar) {
        let offered = bar.read(register::DEVICE_FEATURES);
        if let Some(kind) = bar.failure() {
            let text = format!("cannot be read ({kind}): is the function enabled? The daemon does that");
            return self.add("registers", Verdict::Doubtful, text);
        }
        if offered == u32::MAX || !Features(offered).contains(Features::ACK) {
            let text = format!("the device offers {offered:#x}, which is not what vmd(8) has");
            return self.add("registers", Verdict::Fails, text);
        }
        self.fine("registers", format!("answer; features {offered:#x}"));
        match bar.offset(3) {
            Some(offset) => self.fine("clock", offset_in_words(&offset)),
            None => self.add("clock", Verdict::Doubtful, "the host tells no time that could be"),
        }
    }

    fn daemon(&mut self) {
        match status::ask(Path::new(status::SOCKET)) {
            Ok(Some(status)) => {
                self.fine("daemon", format!("runs for {:.0} s", status.uptime));
                for missing in status.not_confined {
                    self.add("sandbox", Verdict::Doubtful, missing);
                }
            }
            Ok(None) => self.add("daemon", Verdict::Doubtful, "does not run"),
            Err(error) => self.add("daemon", Verdict::Fails, format!("does not answer: {error}")),
        }
    }

    fn privileges(&mut self) {
        if !rustix::process::geteuid().is_root() {
            return self.add("privileges", Verdict::Doubtful, "this is not root: only root can tell");
        }
        let needed = [
            (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN (to switch the device on)"),
            (CapabilitySet::SYS_TIME, "CAP_SYS_TIME (to set the clock)"),
            (CapabilitySet::SYS_BOOT, "CAP_SYS_BOOT (to take the system down by force)"),
        ];
        let has = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        let lacking: Vec<_> =
            needed.into_iter().filter(|(one, _)| !has.contains(*one)).map(|(_, name)| name).collect();
        if lacking.is_empty() {
            self.fine("privileges", "all that are needed");
        } else {
            self.add("privileges", Verdict::Fails, format!("lacking: {}", lacking.join(", ")));
        }
    }

    fn hooks(&mut self, config: &Config) {
        for moment in Moment::ALL {
            let found = hooks::find(&moment.directory(&config.hooks), 0);
            let names: Vec<_> = found
                .programs
                .iter()
                .filter_map(|hook| Some(hook.path.file_name()?.to_string_lossy().into_owned()))
                .collect();
            let text = if names.is_empty() { "no hooks".to_owned() } else { names.join(", ") };
            self.fine(moment.name(), text);
            for (path, why) in found.refused {
                self.add(moment.name(), Verdict::Doubtful, format!("{} is left out: {why}", path.display()));
            }
        }
    }

    fn chrony(&mut self, config: &Config) {
        let Some(chrony) = &config.chrony else { return };
        let socket: &PathBuf = &chrony.socket;
        if fs::metadata(socket).is_ok_and(|metadata| metadata.file_type().is_socket()) {
            self.fine("chrony", format!("listens at {}", socket.display()));
        } else {
            let text =
                format!("there is no socket {0}: chrony.conf needs `refclock SOCK {0}`", socket.display());
            self.add("chrony", Verdict::Doubtful, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_device_the_test_says_so_and_fails() {
        let checks = all(None);
        let device = checks.iter().find(|check| check.name == "device").unwrap();
        assert_eq!(device.verdict, Verdict::Fails);
        assert!(device.text.contains("0b5d:0777"), "{}", device.text);
        assert!(checks.iter().any(|check| check.name == "init"));
    }

    #[test]
    fn a_configuration_that_is_wrong_fails_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, "poll-interval = '9s'").unwrap();
        let check = &all(Some(&path))[0];
        assert_eq!(check.verdict, Verdict::Fails);
        assert!(check.text.contains("500ms to 1s 500ms"), "{}", check.text);
    }
}
