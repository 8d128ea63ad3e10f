//! Taking the system down: hooks, then init, then force.

use std::{
    fs,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::system::{RebootCommand, reboot};
use vmmci_protocol::ShutdownKind;

use crate::{
    config::Config,
    hooks::{self, Moment},
    init::Init,
    log::{Level, Log},
};

/// Time limit for sync(2) before a forced end.
const SYNC: Duration = Duration::from_secs(5);
/// Time limit for the kernel's emergency remount (SysRq-U).
const READ_ONLY: Duration = Duration::from_secs(1);

/// Kind of shutdown that follows the host's `request`.
pub fn kind_for(request: ShutdownKind, config: &Config) -> ShutdownKind {
    match request {
        ShutdownKind::PowerOff => ShutdownKind::PowerOff,
        ShutdownKind::Reboot => config.on_reboot,
    }
}

/// Takes the system down. Returns only if even force has failed.
///
/// `asked` is when the host's command was acknowledged: it ends the VM 120 s later.
pub fn go_down(request: ShutdownKind, asked: Instant, config: &Config, init: &Init, log: &Arc<Log>) {
    let kind = kind_for(request, config);
    let word = match request {
        ShutdownKind::PowerOff => "shutdown",
        ShutdownKind::Reboot => "reboot",
    };
    let environment = [("VMMCID_COMMAND", word.to_owned())];
    hooks::run(&config.hooks, Moment::BeforeStop, &environment, config.hook_timeout, init, log);

    let mut asked_init = false;
    for way in init.ways(config, kind) {
        match way.go() {
            Ok(()) => {
                log.say(Level::Notice, format!("{} was asked to go down: {way}", init.name()));
                asked_init = true;
                break;
            }
            Err(why) => log.say(Level::Warning, format!("`{way}` {why}")),
        }
    }
    if asked_init {
        thread::sleep((asked + config.force_after).saturating_duration_since(Instant::now()));
        log.say(Level::Error, "the system has not gone down in time: it is taken down by force");
    } else {
        log.say(Level::Error, "nothing takes the system down in order: it is taken down by force");
    }
    force(kind, log);
}

/// Syncs file systems and ends the system without init.
fn force(kind: ShutdownKind, log: &Log) {
    let (done, synced) = mpsc::channel();
    // A file system that hangs must not block the end of the system.
    thread::spawn(move || {
        rustix::fs::sync();
        done.send(())
    });
    if synced.recv_timeout(SYNC).is_err() {
        log.say(Level::Error, "file systems are still being written back: they will need a check");
    }
    // SysRq-U remounts all file systems read-only, which leaves them clean.
    if fs::write("/proc/sysrq-trigger", "u").is_ok() {
        thread::sleep(READ_ONLY);
    }
    let command = match kind {
        ShutdownKind::PowerOff => RebootCommand::PowerOff,
        ShutdownKind::Reboot => RebootCommand::Restart,
    };
    if let Err(error) = reboot(command) {
        log.say(Level::Error, format!("the system cannot be taken down: reboot(2): {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shutdown_powers_off_and_reboot_is_configured() {
        let config = Config::default();
        assert_eq!(kind_for(ShutdownKind::PowerOff, &config), ShutdownKind::PowerOff);
        assert_eq!(kind_for(ShutdownKind::Reboot, &config), ShutdownKind::Reboot);
        let config = Config { on_reboot: ShutdownKind::PowerOff, ..config };
        assert_eq!(kind_for(ShutdownKind::Reboot, &config), ShutdownKind::PowerOff);
    }
}
