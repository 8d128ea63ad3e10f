//! Hooks: the administrator's programs, run before the system goes down and after the host has slept.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    init::Init,
    log::{Level, Log},
    process::{self, Failure},
    trusted::{Refusal, Trusted},
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

/// A hook, opened after it was checked.
#[derive(Debug)]
pub struct Hook {
    /// Its path in the directory of hooks.
    pub path: PathBuf,
    file: Trusted,
}

impl Hook {
    fn open(path: PathBuf, owner: u32) -> Result<Self, (PathBuf, String)> {
        match Trusted::open(&path, owner) {
            Ok(file) if !file.is_file() => Err((path, "it is no file".to_owned())),
            Ok(file) if !file.is_executable() => Err((path, "it is not executable".to_owned())),
            Ok(file) => Ok(Self { path, file }),
            Err(refusal) => Err((path, refusal.to_string())),
        }
    }
}

/// The hooks of a directory in the order of their names, and the refused files with the reasons.
#[derive(Debug, Default)]
pub struct Found {
    /// Hooks to run.
    pub programs: Vec<Hook>,
    /// Refused files, with the reason.
    pub refused: Vec<(PathBuf, String)>,
}

/// Returns the programs that only root and `owner` can change, as [`Trusted::open`] has it.
pub fn find(directory: &Path, owner: u32) -> Found {
    let mut found = Found::default();
    let entries = match Trusted::open(directory, owner) {
        Ok(opened) => opened.entries().map_err(|error| error.to_string()),
        Err(Refusal::Missing) => return found,
        Err(refusal) => Err(refusal.to_string()),
    };
    let names = match entries {
        Ok(names) => names,
        Err(why) => {
            found.refused.push((directory.to_owned(), why));
            return found;
        }
    };
    for name in names {
        let path = directory.join(&name);
        let name = name.to_string_lossy();
        // Editors' and dpkg's leftovers, and a README.
        if name.starts_with('.') || name.ends_with('~') || name.contains(".dpkg-") || name == "README" {
            continue;
        }
        match Hook::open(path, owner) {
            Ok(hook) => found.programs.push(hook),
            Err(refused) => found.refused.push(refused),
        }
    }
    found
}

/// Runs an event's hooks one after the other, all within `limit`.
pub fn run(
    hooks: &Path,
    moment: Moment,
    environment: &[(&str, String)],
    limit: Duration,
    init: &Init,
    log: &Arc<Log>,
) {
    let found = find(&moment.directory(hooks), 0);
    for (path, why) in &found.refused {
        log.say(Level::Warning, format!("hook {} is left out: {why}", path.display()));
    }
    let end = Instant::now() + limit;
    for hook in found.programs {
        let left = end.saturating_duration_since(Instant::now());
        let path = hook.path.display();
        if left.is_zero() {
            log.say(Level::Warning, format!("hook {path} is left out: time is up"));
            continue;
        }
        let result = match run_one(&mut command(&hook, moment, environment, left, init), left, &hook, log) {
            // systemd-run failed: the hook runs in the daemon's own, tighter sandbox.
            Err(Failure::NotStarted(_)) if *init == Init::Systemd => {
                let left = end.saturating_duration_since(Instant::now());
                run_one(&mut plain(&hook, moment, environment), left, &hook, log)
            }
            result => result,
        };
        match result {
            Ok(()) => log.say(Level::Info, format!("hook {path} is done")),
            Err(failure) => log.say(Level::Warning, format!("hook {path} {failure}")),
        }
    }
}

/// Runs a hook whose output goes to the log, within the log's budget for hooks.
fn run_one(command: &mut Command, limit: Duration, hook: &Hook, log: &Arc<Log>) -> Result<(), Failure> {
    let name = hook.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut output = Output { name, log: Arc::clone(log), dropped: 0 };
    process::run_with_output(command, limit, move |line| output.pass(line, Instant::now()))
}

/// A hook's way to the log.
struct Output {
    name: String,
    log: Arc<Log>,
    dropped: u64,
}

impl Output {
    fn pass(&mut self, line: &str, now: Instant) {
        self.dropped += u64::from(!self.log.hook_line(&self.name, line, now));
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.dropped > 0 {
            let text = format!("hook {}: {} more lines are not shown", self.name, self.dropped);
            self.log.say(Level::Warning, text);
        }
    }
}

/// Runs the very file that was checked.
fn plain(hook: &Hook, moment: Moment, environment: &[(&str, String)]) -> Command {
    let mut command = Command::new(hook.file.path());
    command.arg0(&hook.path).env("VMMCID_HOOK", &hook.path);
    command.env("VMMCID_EVENT", moment.name()).env("PATH", process::PATH);
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    command
}

/// Under systemd a hook is a unit of its own: the daemon's sandbox is not the hook's. systemd opens the hook's path again,
/// in which only root can have changed anything since.
fn command(
    hook: &Hook,
    moment: Moment,
    environment: &[(&str, String)],
    limit: Duration,
    init: &Init,
) -> Command {
    if *init != Init::Systemd {
        return plain(hook, moment, environment);
    }
    let path = hook.path.display();
    let mut command = Command::new("systemd-run");
    command
        .env("PATH", process::PATH)
        .args(["--quiet", "--wait", "--collect", "--service-type=oneshot"])
        .arg(format!("--property=TimeoutStartSec={}", limit.as_secs().max(1)))
        .arg(format!("--description=vmmcid {} hook {path}", moment.name()))
        .arg(format!("--setenv=VMMCID_HOOK={path}"))
        .arg(format!("--setenv=VMMCID_EVENT={}", moment.name()));
    for (name, value) in environment {
        command.arg(format!("--setenv={name}={value}"));
    }
    command.arg("--").arg(&hook.path);
    command
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt},
    };

    use super::*;
    use crate::log::To;

    fn put(directory: &Path, name: &str, mode: u32, script: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn me(directory: &Path) -> u32 {
        fs::metadata(directory).unwrap().uid()
    }

    fn hook(directory: &Path, script: &str) -> Hook {
        let path = put(directory, "hook", 0o755, script);
        Hook::open(path, me(directory)).unwrap()
    }

    #[test]
    fn only_what_root_alone_can_change_is_run_in_the_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let second = put(dir.path(), "20-b", 0o755, "");
        let first = put(dir.path(), "10-a", 0o700, "");
        let open = put(dir.path(), "30-open", 0o757, "");
        put(dir.path(), "40-text", 0o644, "");
        put(dir.path(), "50-old~", 0o755, "");
        put(dir.path(), "README", 0o644, "");
        fs::create_dir(dir.path().join("60-directory")).unwrap();

        let found = find(dir.path(), me(dir.path()));

        let programs: Vec<_> = found.programs.iter().map(|hook| &hook.path).collect();
        assert_eq!(programs, [&first, &second]);
        let whys: Vec<_> = found.refused.iter().map(|(_, why)| why.as_str()).collect();
        let writable = Refusal::Writable(open).to_string();
        assert_eq!(whys, [&writable, "it is not executable", "it is no file"]);
    }

    #[test]
    fn a_directory_that_others_can_write_to_has_no_hooks() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "10-a", 0o755, "");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();

        let found = find(dir.path(), me(dir.path()));

        assert!(found.programs.is_empty());
        let why = Refusal::Writable(dir.path().to_owned()).to_string();
        assert_eq!(found.refused, [(dir.path().to_owned(), why)]);
    }

    #[test]
    fn a_directory_that_is_missing_has_no_hooks() {
        let found = find(Path::new("/nowhere/hooks.d"), 0);

        assert!(found.programs.is_empty() && found.refused.is_empty());
    }

    #[test]
    fn a_hook_learns_what_happened() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("#!/bin/sh\necho $VMMCID_EVENT $VMMCID_STEP $VMMCID_HOOK > {}\n", out.display());
        let hook = hook(dir.path(), &script);
        let environment = [("VMMCID_STEP", "10800.0".to_owned())];
        let mut command =
            command(&hook, Moment::AfterResume, &environment, Duration::from_secs(9), &Init::Busybox);

        process::run(&mut command, Duration::from_mins(1)).unwrap();

        let expected = format!("after-resume 10800.0 {}\n", hook.path.display());
        assert_eq!(fs::read_to_string(out).unwrap(), expected);
    }

    #[test]
    fn what_was_checked_is_run_and_not_what_has_come_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let hook = hook(dir.path(), &format!("#!/bin/sh\necho checked > {}\n", out.display()));
        fs::remove_file(&hook.path).unwrap();
        put(dir.path(), "hook", 0o755, "#!/bin/sh\nexit 1\n");

        process::run(&mut plain(&hook, Moment::BeforeStop, &[]), Duration::from_mins(1)).unwrap();

        assert_eq!(fs::read_to_string(out).unwrap(), "checked\n");
    }

    #[test]
    fn a_hook_that_does_not_stop_talking_does_not_fill_the_log() {
        let log = Arc::new(Log::new(To::Stderr));
        let mut output = Output { name: "hook".to_owned(), log: Arc::clone(&log), dropped: 0 };
        let now = Instant::now();

        for _ in 0..5000 {
            output.pass("a line", now);
        }

        assert!(output.dropped > 4000, "{}", output.dropped);
        assert!(!log.hook_line("another", "a line", now), "the budget is used up");
    }

    #[test]
    fn under_systemd_a_hook_is_a_unit() {
        let dir = tempfile::tempdir().unwrap();
        let hook = hook(dir.path(), "");
        let environment = [("VMMCID_COMMAND", "reboot".to_owned())];
        let limit = Duration::from_millis(20_500);

        let command = command(&hook, Moment::BeforeStop, &environment, limit, &Init::Systemd);

        let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(command.get_program(), "systemd-run");
        for word in [
            "--property=TimeoutStartSec=20",
            "--setenv=VMMCID_COMMAND=reboot",
            "--setenv=VMMCID_EVENT=before-stop",
        ] {
            assert!(words.contains(&word), "{words:?}");
        }
        assert_eq!(words[words.len() - 2..], ["--", hook.path.to_str().unwrap()]);
    }
}
