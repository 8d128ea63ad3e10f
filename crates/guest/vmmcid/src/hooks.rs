//! Hooks: the administrator's programs, run before the system goes down and after the host has slept.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    init::Init,
    log::{Level, Log},
    process::{self, Failure},
};

/// The events that run hooks; each has a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A stop was acknowledged; init has not been asked yet.
    BeforeStop,
    /// The clock was set after SYNCRTC.
    AfterResume,
}

impl Moment {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::BeforeStop, Self::AfterResume];

    /// Its name in `VMMCID_EVENT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforeStop => "before-stop",
            Self::AfterResume => "after-resume",
        }
    }

    /// Its directory below the hooks' directory.
    pub fn directory(self, hooks: &Path) -> PathBuf {
        hooks.join(self.name()).with_extension("d")
    }
}

/// The hooks of a directory in the order of their names, and the refused files with the reasons.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Hooks to run.
    pub programs: Vec<PathBuf>,
    /// Refused files, with the reason.
    pub refused: Vec<(PathBuf, &'static str)>,
}

/// Returns the programs that belong to `owner` (root) and that only `owner` can write to.
pub fn find(directory: &Path, owner: u32) -> Found {
    let mut found = Found::default();
    match fs::metadata(directory) {
        Ok(metadata) => {
            if let Some(why) = unsafe_for(owner, &metadata) {
                found.refused.push((directory.to_owned(), why));
                return found;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
        Err(_) => {
            found.refused.push((directory.to_owned(), "it cannot be read"));
            return found;
        }
    }
    let mut paths: Vec<_> =
        fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Editors' and dpkg's leftovers, and a README.
        if name.starts_with('.') || name.ends_with('~') || name.contains(".dpkg-") || name == "README" {
            continue;
        }
        match fs::metadata(&path) {
            Ok(metadata) if !metadata.is_file() => found.refused.push((path, "it is no file")),
            Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
                found.refused.push((path, "it is not executable"));
            }
            Ok(metadata) => match unsafe_for(owner, &metadata) {
                Some(why) => found.refused.push((path, why)),
                None => found.programs.push(path),
            },
            Err(_) => found.refused.push((path, "it cannot be read")),
        }
    }
    found
}

fn unsafe_for(owner: u32, metadata: &fs::Metadata) -> Option<&'static str> {
    if metadata.uid() != owner {
        Some("it does not belong to root")
    } else if metadata.mode() & 0o022 != 0 {
        Some("others than its owner can write to it")
    } else {
        None
    }
}

/// Runs an event's hooks one after the other, all within `limit`.
pub fn run(
    hooks: &Path,
    moment: Moment,
    environment: &[(&str, String)],
    limit: Duration,
    init: &Init,
    log: &Log,
) {
    let found = find(&moment.directory(hooks), 0);
    for (path, why) in &found.refused {
        log.say(Level::Warning, format!("hook {} is left out: {why}", path.display()));
    }
    let end = Instant::now() + limit;
    for path in found.programs {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            log.say(Level::Warning, format!("hook {} is left out: time is up", path.display()));
            continue;
        }
        let mut command = command(&path, moment, environment, left, init);
        let result = match process::run(&mut command, left) {
            // systemd-run failed: the hook runs in the daemon's own, tighter sandbox.
            Err(Failure::NotStarted(_)) if *init == Init::Systemd => {
                let mut command = plain(&path, moment, environment);
                process::run(&mut command, end.saturating_duration_since(Instant::now()))
            }
            result => result,
        };
        match result {
            Ok(()) => log.say(Level::Info, format!("hook {} is done", path.display())),
            Err(failure) => log.say(Level::Warning, format!("hook {} {failure}", path.display())),
        }
    }
}

fn plain(path: &Path, moment: Moment, environment: &[(&str, String)]) -> Command {
    let mut command = Command::new(path);
    command.env("VMMCID_EVENT", moment.name()).env("PATH", process::PATH);
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    command
}

/// Under systemd a hook is a unit of its own: the daemon's sandbox is not the hook's.
fn command(
    path: &Path,
    moment: Moment,
    environment: &[(&str, String)],
    limit: Duration,
    init: &Init,
) -> Command {
    if *init != Init::Systemd {
        return plain(path, moment, environment);
    }
    let mut command = Command::new("systemd-run");
    command
        .env("PATH", process::PATH)
        .args(["--quiet", "--wait", "--collect", "--service-type=oneshot"])
        .arg(format!("--property=TimeoutStartSec={}", limit.as_secs().max(1)))
        .arg(format!("--description=vmmcid {} hook {}", moment.name(), path.display()))
        .arg(format!("--setenv=VMMCID_EVENT={}", moment.name()));
    for (name, value) in environment {
        command.arg(format!("--setenv={name}={value}"));
    }
    command.arg("--").arg(path);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(directory: &Path, name: &str, mode: u32, script: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn me(directory: &Path) -> u32 {
        fs::metadata(directory).unwrap().uid()
    }

    #[test]
    fn only_what_root_alone_can_change_is_run_in_the_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let second = put(dir.path(), "20-b", 0o755, "");
        let first = put(dir.path(), "10-a", 0o700, "");
        for (name, mode) in [("30-open", 0o757), ("31-group", 0o775), ("40-text", 0o644)] {
            put(dir.path(), name, mode, "");
        }
        put(dir.path(), "50-old~", 0o755, "");
        put(dir.path(), "README", 0o644, "");
        fs::create_dir(dir.path().join("60-directory")).unwrap();
        let found = find(dir.path(), me(dir.path()));
        assert_eq!(found.programs, [first, second]);
        let whys: Vec<_> = found.refused.iter().map(|(_, why)| *why).collect();
        let open = "others than its owner can write to it";
        assert_eq!(whys, [open, open, "it is not executable", "it is no file"]);
        assert_eq!(find(dir.path(), me(dir.path()) + 1).refused[0].1, "it does not belong to root");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(find(dir.path(), me(dir.path())).refused, [(dir.path().to_owned(), open)]);
        assert_eq!(find(Path::new("/nowhere"), 0), Found::default());
    }

    #[test]
    fn a_hook_learns_what_happened() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("#!/bin/sh\necho $VMMCID_EVENT $VMMCID_STEP > {}/out\n", dir.path().display());
        let path = put(dir.path(), "hook", 0o755, &script);
        let environment = [("VMMCID_STEP", "10800.0".to_owned())];
        let mut command =
            command(&path, Moment::AfterResume, &environment, Duration::from_secs(9), &Init::Busybox);
        process::run(&mut command, Duration::from_mins(1)).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("out")).unwrap(), "after-resume 10800.0\n");
    }

    #[test]
    fn under_systemd_a_hook_is_a_unit() {
        let environment = [("VMMCID_COMMAND", "reboot".to_owned())];
        let limit = Duration::from_millis(20_500);
        let command = command(Path::new("/h"), Moment::BeforeStop, &environment, limit, &Init::Systemd);
        let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(command.get_program(), "systemd-run");
        for word in [
            "--property=TimeoutStartSec=20",
            "--setenv=VMMCID_COMMAND=reboot",
            "--setenv=VMMCID_EVENT=before-stop",
        ] {
            assert!(words.contains(&word), "{words:?}");
        }
        assert_eq!(words[words.len() - 2..], ["--", "/h"]);
    }
}
