//! Whether a root file system of the user's starts, and lets root log in on the serial console: what is missing is added
//! where that is possible, and told where it is not.

use crate::{settings::Parameters, tree::Tree};

use super::contents::{Contents, Text};

/// What Linux tries to run as init, without `/bin/sh`, at which nothing else would be started.
const INITS: [&str; 3] = ["sbin/init", "etc/init", "bin/init"];
/// Programs that offer a login, the simpler ones first.
const GETTYS: [&str; 4] = ["sbin/getty", "sbin/agetty", "usr/sbin/agetty", "bin/getty"];

/// The program that the kernel starts, by its path in the archive. `None` if there is none.
pub(super) fn init(contents: &Contents, parameters: Option<&Parameters>) -> Option<String> {
    if let Some(named) = parameters.and_then(|parameters| parameters.value("init")) {
        return contents.leads(named).then(|| named.to_owned());
    }
    let found = INITS.iter().find_map(|path| contents.resolve(path))?;
    Some(found.to_string_lossy().into_owned())
}

/// Adds to `tree` what init needs to offer a login on ttyS0. Returns remarks for the user.
pub(super) fn console(contents: &Contents, init: &str, tree: &mut Tree) -> Vec<String> {
    let mut remarks = Vec::new();
    match init.rsplit('/').next().unwrap_or_default() {
        // Its generator has a getty on every console of the kernel's.
        "systemd" => {}
        name => match contents.text("etc/inittab") {
            Some(inittab) if has_getty(&inittab.content) => {}
            Some(inittab) => match GETTYS.iter().find(|getty| contents.leads(getty)) {
                Some(getty) => {
                    replace(tree, "etc/inittab", inittab, with_getty(&inittab.content, getty));
                    remarks.push(format!("added to its /etc/inittab: {getty} on ttyS0, vmd's console"));
                }
                None => remarks.push(
                    "its /etc/inittab has no getty on ttyS0, and it has no getty to add there: vmd's console offers no login"
                        .to_owned(),
                ),
            },
            // Without an inittab busybox has a shell on the console.
            None if name == "busybox" => {}
            None => remarks.push(format!(
                "its init is /{init}, without /etc/inittab: see to it that a getty runs on ttyS0, vmd's console"
            )),
        },
    }
    if let Some(securetty) = contents.text("etc/securetty")
        && !securetty.content.lines().any(|line| line.trim() == "ttyS0")
    {
        replace(tree, "etc/securetty", securetty, appended(&securetty.content, "ttyS0"));
        remarks.push("added to its /etc/securetty: ttyS0, where root logs in".to_owned());
    }
    remarks
}

/// Whether an inittab has a program on the serial console. In busybox's, an entry without a terminal is on the console.
fn has_getty(inittab: &str) -> bool {
    inittab.lines().map(str::trim).filter(|line| !line.starts_with('#')).any(|line| {
        let mut fields = line.splitn(4, ':');
        let (id, action, process) = (fields.next(), fields.nth(1), fields.next());
        let stays = matches!(action, Some("respawn" | "askfirst"));
        let process = process.unwrap_or_default();
        stays
            && (id == Some("")
                || id == Some("console")
                || line.contains("ttyS0")
                || process.contains("console"))
    })
}

/// The inittab with a getty more, in the form of sysvinit or busybox.
fn with_getty(inittab: &str, getty: &str) -> String {
    let sysvinit =
        inittab.lines().any(|line| !line.trim().starts_with('#') && line.contains(":initdefault:"));
    let id = if sysvinit { "vmS0:2345" } else { "ttyS0:" };
    appended(inittab, &format!("{id}:respawn:/{getty} -L 115200 ttyS0 vt100"))
}

/// Sets root's password, whose hash is `password`, or tells that root has none to log in by.
pub(super) fn password(contents: &Contents, password: Option<&str>, tree: &mut Tree) -> Vec<String> {
    let Some(passwd) = contents.text("etc/passwd") else {
        return vec!["it has no /etc/passwd: nothing can log in".to_owned()];
    };
    let Some(in_passwd) = field(&passwd.content) else {
        return vec!["its /etc/passwd has no user root, who logs in on the console".to_owned()];
    };
    let shadow = contents.text("etc/shadow");
    let Some(hash) = password else {
        let locked = |field: &str| field.starts_with(['!', '*']);
        let in_shadow = shadow.and_then(|shadow| field(&shadow.content));
        // Without an entry in shadow, an `x` is no password's hash either.
        let is_locked = if in_passwd == "x" { in_shadow.is_none_or(locked) } else { locked(in_passwd) };
        return if is_locked {
            vec!["root's password is locked in it: root cannot log in on the console. --root-password sets one".to_owned()]
        } else {
            Vec::new()
        };
    };
    if in_passwd != "x" {
        replace(tree, "etc/passwd", passwd, with_field(&passwd.content, "x"));
    }
    match shadow {
        Some(shadow) if field(&shadow.content).is_some() => {
            replace(tree, "etc/shadow", shadow, with_field(&shadow.content, hash));
        }
        Some(shadow) => replace(tree, "etc/shadow", shadow, appended(&shadow.content, &entry(hash))),
        None => tree.file("etc/shadow", 0o600, entry(hash) + "\n"),
    }
    Vec::new()
}

fn entry(hash: &str) -> String {
    format!("root:{hash}:20000:0:99999:7:::")
}

/// The password's field of root.
fn field(accounts: &str) -> Option<&str> {
    accounts.lines().find_map(|line| line.strip_prefix("root:")?.split(':').next())
}

/// The accounts with another field of root's password.
fn with_field(accounts: &str, value: &str) -> String {
    let line = |line: &str| match line.strip_prefix("root:").and_then(|rest| rest.split_once(':')) {
        Some((_, rest)) => format!("root:{value}:{rest}\n"),
        None => format!("{line}\n"),
    };
    accounts.lines().map(line).collect()
}

fn appended(text: &str, line: &str) -> String {
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}{line}\n")
}

fn replace(tree: &mut Tree, path: &str, old: &Text, text: String) {
    tree.file_of_group(path, old.mode, old.group, text);
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::ours("ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100\n", true)]
    #[case::askfirst("::sysinit:/etc/rcS\n::askfirst:-/bin/sh\n", true)]
    #[case::console("console::respawn:/sbin/getty 0 console\n", true)]
    #[case::sysvinit("id:2:initdefault:\nT0:23:respawn:/sbin/getty -L ttyS0 9600 vt100\n", true)]
    #[case::alpine(
        "tty1::respawn:/sbin/getty 38400 tty1\n#ttyS0::respawn:/sbin/getty -L 0 ttyS0 vt100\n",
        false
    )]
    #[case::once("::sysinit:/sbin/openrc sysinit\n::shutdown:/sbin/openrc shutdown\n", false)]
    #[case::empty("", false)]
    fn a_getty_on_the_console_is_seen(#[case] inittab: &str, #[case] expected: bool) {
        assert_eq!(has_getty(inittab), expected);
    }

    #[rstest]
    #[case::busybox(
        "tty1::respawn:/sbin/getty 38400 tty1",
        "ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100"
    )]
    #[case::sysvinit("id:2:initdefault:\n", "vmS0:2345:respawn:/sbin/getty -L 115200 ttyS0 vt100")]
    fn a_getty_is_added_in_the_form_of_the_file(#[case] inittab: &str, #[case] added: &str) {
        let changed = with_getty(inittab, "sbin/getty");

        assert_eq!(changed.lines().last(), Some(added));
        assert!(has_getty(&changed) && changed.starts_with(inittab.trim_end()));
    }

    #[test]
    fn a_password_is_changed_in_roots_line_alone() {
        let changed = with_field("daemon:*:1:\nroot:*:19000:0:\nrooted:!:1:\n", "$6$x");

        assert_eq!(changed, "daemon:*:1:\nroot:$6$x:19000:0:\nrooted:!:1:\n");
    }
}
