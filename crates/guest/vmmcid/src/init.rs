//! The init system: detection, and the commands that ask it for a shutdown.

use std::{fs, path::Path, process::Command, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use vmmci_protocol::ShutdownKind;

use crate::{config::Config, process};

/// Time limit for a program that asks init.
const LIMIT: Duration = Duration::from_secs(10);

/// The program that runs as process 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// systemd.
    Systemd,
    /// busybox's init, which OpenRC may run under.
    Busybox,
    /// OpenRC's own init.
    Openrc,
    /// Another init, with shutdown(8) or poweroff(8).
    Other(String),
}

/// A method of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Running a program.
    Run(Vec<String>),
    /// A signal to process 1.
    Signal(Signal),
}

impl Init {
    /// Detects the running init. Takes root's capabilities if process 1 is not systemd.
    pub fn detect() -> Self {
        Self::detect_in(Path::new("/"))
    }

    fn detect_in(root: &Path) -> Self {
        // As sd_booted(3) has it.
        if root.join("run/systemd/system").is_dir() {
            return Self::Systemd;
        }
        let program = fs::read_link(root.join("proc/1/exe"))
            .ok()
            .and_then(|exe| Some(exe.file_name()?.to_string_lossy().into_owned()));
        match program.as_deref() {
            Some("busybox" | "busybox.static") => Self::Busybox,
            Some("openrc-init") => Self::Openrc,
            Some(other) => Self::Other(other.to_owned()),
            None => Self::Other("unknown".to_owned()),
        }
    }

    /// The name for messages.
    pub fn name(&self) -> &str {
        match self {
            Self::Systemd => "systemd",
            Self::Busybox => "busybox init",
            Self::Openrc => "openrc-init",
            Self::Other(name) => name,
        }
    }

    /// The methods of asking, in the order of preference.
    pub fn ways(&self, config: &Config, kind: ShutdownKind) -> Vec<Way> {
        let off = kind == ShutdownKind::PowerOff;
        let either = |yes: &'static str, no: &'static str| if off { yes } else { no };
        let run = |words: &[&str]| Way::Run(words.iter().map(|&word| word.to_owned()).collect());
        let own = if off { &config.poweroff_command } else { &config.reboot_command };
        let mut ways = Vec::new();
        if !own.is_empty() {
            ways.push(Way::Run(own.clone()));
        }
        match self {
            Self::Systemd => ways.extend([
                // The host has decided: inhibitors may delay this, not forbid it.
                run(&["systemctl", "-i", "--no-block", either("poweroff", "reboot")]),
                run(&[
                    "systemctl",
                    "--no-block",
                    "--job-mode=replace-irreversibly",
                    "start",
                    either("poweroff.target", "reboot.target"),
                ]),
                // SIGRTMIN+4 and +5: systemd(1). Needs nothing of systemd but process 1.
                run(&["kill", either("-38", "-39"), "1"]),
            ]),
            Self::Busybox => ways.push(Way::Signal(if off { Signal::USR2 } else { Signal::TERM })),
            Self::Openrc => ways.push(run(&["openrc-shutdown", either("--poweroff", "--reboot"), "now"])),
            Self::Other(_) => {
                if off {
                    ways.push(run(&["shutdown", "-h", "-P", "now"]));
                } else {
                    ways.push(run(&["shutdown", "-r", "now"]));
                }
                ways.push(run(&[either("poweroff", "reboot")]));
            }
        }
        ways
    }
}

impl Way {
    /// Executes the method.
    pub fn go(&self) -> Result<(), String> {
        match self {
            Self::Run(words) => {
                let (program, arguments) = words.split_first().ok_or("no program is named")?;
                let mut command = Command::new(program);
                command.args(arguments).env("PATH", process::PATH);
                process::run(&mut command, LIMIT).map_err(|failure| failure.to_string())
            }
            Self::Signal(signal) => kill_process(Pid::INIT, *signal).map_err(|error| error.to_string()),
        }
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Run(words) => f.write_str(&words.join(" ")),
            Self::Signal(signal) => {
                let name = if *signal == Signal::TERM { "SIGTERM" } else { "SIGUSR2" };
                write!(f, "{name} to process 1")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn ways(init: &Init, kind: ShutdownKind) -> Vec<String> {
        init.ways(&Config::default(), kind).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn process_1_is_told_by_its_program() {
        for (exe, init) in [
            ("/bin/busybox", Init::Busybox),
            ("/usr/bin/openrc-init", Init::Openrc),
            ("/usr/bin/runit", Init::Other("runit".into())),
        ] {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("proc/1")).unwrap();
            symlink(exe, root.path().join("proc/1/exe")).unwrap();
            assert_eq!(Init::detect_in(root.path()), init);
            fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
            assert_eq!(Init::detect_in(root.path()), Init::Systemd);
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Init::detect_in(empty.path()).name(), "unknown");
    }

    #[test]
    fn each_is_asked_in_its_own_words() {
        assert_eq!(ways(&Init::Systemd, ShutdownKind::PowerOff)[0], "systemctl -i --no-block poweroff");
        assert_eq!(ways(&Init::Systemd, ShutdownKind::Reboot)[2], "kill -39 1");
        assert_eq!(ways(&Init::Busybox, ShutdownKind::PowerOff), ["SIGUSR2 to process 1"]);
        assert_eq!(Init::Busybox.ways(&Config::default(), ShutdownKind::Reboot), [Way::Signal(Signal::TERM)]);
        assert_eq!(ways(&Init::Openrc, ShutdownKind::Reboot), ["openrc-shutdown --reboot now"]);
        let other = Init::Other("init".into());
        assert_eq!(ways(&other, ShutdownKind::PowerOff), ["shutdown -h -P now", "poweroff"]);
        assert_eq!(ways(&other, ShutdownKind::Reboot), ["shutdown -r now", "reboot"]);
    }

    #[test]
    fn what_the_configuration_names_comes_first() {
        let config = Config { reboot_command: vec!["/bin/go".into(), "now".into()], ..Config::default() };
        assert_eq!(Init::Systemd.ways(&config, ShutdownKind::Reboot)[0].to_string(), "/bin/go now");
        assert_eq!(Init::Systemd.ways(&config, ShutdownKind::PowerOff).len(), 3);
    }

    #[test]
    fn a_way_that_does_not_work_says_why() {
        assert!(Way::Run(vec!["/nowhere/x".into()]).go().unwrap_err().contains("cannot be run"));
        assert!(Way::Run(vec!["false".into()]).go().unwrap_err().contains("ended with"));
        assert!(Way::Run(vec!["true".into()]).go().is_ok());
    }
}
