//! The serial console, which is the only one that vmctl(8) can show.

use super::add_to_command_line;
use crate::{Finding, Guest, Severity};

const TOPIC: &str = "console";
/// The number that /proc has for a process on ttyS0: major 4, minor 64.
const TTY_S0: &str = "1088";

/// The kernel's console, and whether one can log in there.
pub fn check(guest: &Guest) -> Vec<Finding> {
    vec![kernels(guest), login(guest)]
}

fn kernels(guest: &Guest) -> Finding {
    let Some(consoles) = guest.system.text("proc/consoles") else {
        return Finding::new(TOPIC, Severity::Note, "the kernel's consoles cannot be seen")
            .seen("/proc/consoles cannot be read");
    };
    let mut finding = match consoles.lines().find(|line| line.split_whitespace().next() == Some("ttyS0")) {
        None => Finding::new(
            TOPIC,
            Severity::Warning,
            "the kernel has no console on ttyS0: vmctl console stays silent",
        )
        .remedy(add_to_command_line(&guest.system, "console=ttyS0,115200")),
        // C: this is what /dev/console leads to.
        Some(line) if line.split_once('(').is_some_and(|(_, flags)| flags.contains('C')) => {
            Finding::new(TOPIC, Severity::Ok, "the kernel's console is ttyS0")
        }
        Some(_) => Finding::new(
            TOPIC,
            Severity::Note,
            "the kernel's messages come to ttyS0, but /dev/console leads elsewhere: init's do not",
        )
        .remedy(add_to_command_line(&guest.system, "console=ttyS0,115200 (as the last console=)")),
    };
    for line in consoles.lines() {
        finding = finding.seen(line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    finding
}

fn login(guest: &Guest) -> Finding {
    let pids =
        guest.system.names("proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let on_it: Vec<_> = pids
        .filter_map(|pid| {
            let stat = guest.system.text(format!("proc/{pid}/stat"))?;
            let (head, rest) = stat.rsplit_once(')')?;
            // State, parent, group, session, terminal.
            (rest.split_whitespace().nth(4)? == TTY_S0)
                .then(|| format!("{} ({pid})", head.split_once('(').map_or("?", |(_, name)| name)))
        })
        .take(5)
        .collect();
    if on_it.is_empty() {
        return Finding::new(TOPIC, Severity::Note, "there is no login on ttyS0").remedy(
            if guest.system.exists("run/systemd/system") {
                "systemctl enable --now serial-getty@ttyS0.service"
            } else {
                "add ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100 to /etc/inittab, then kill -HUP 1"
            },
        );
    }
    Finding::new(TOPIC, Severity::Ok, "one can log in on ttyS0").seen(on_it.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn consoles_are_told_apart() {
        let mut recorded = fixture::recorded();
        assert_eq!(kernels(&recorded.guest()).severity, Severity::Ok);
        recorded.write("proc/consoles", "tty0 -WU (EC p ) 4:7\nttyS0 -W- (E p a) 4:64\n");
        assert_eq!(kernels(&recorded.guest()).severity, Severity::Note);
        recorded.write("proc/consoles", "tty0 -WU (EC p ) 4:7\n");
        recorded.write("etc/default/grub", "");
        let finding = kernels(&recorded.guest());
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.remedy.unwrap().contains("GRUB_CMDLINE_LINUX"));
    }

    #[test]
    fn a_process_on_the_terminal_is_a_login() {
        let mut recorded = fixture::recorded();
        recorded.write("proc/1/stat", "1 (systemd) S 0 1 1 0 -1\n");
        assert_eq!(login(&recorded.guest()).severity, Severity::Note);
        recorded.write("proc/77/stat", "77 (agetty) S 1 77 77 1088 77\n");
        let finding = login(&recorded.guest());
        assert_eq!((finding.severity, finding.evidence[0].as_str()), (Severity::Ok, "agetty (77)"));
    }
}
