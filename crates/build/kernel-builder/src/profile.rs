//! What each step of a build costs: the processor time of every command that make runs, by what it makes.
//!
//! make is given a shell, `shell.sh`, that runs each command as make's own would and notes its cost. It costs some
//! milliseconds a step itself, so a build is profiled only if that is asked for.

use std::{fmt, fs, path::Path};

use serde::Serialize;

use crate::{
    cache::write_script,
    error::{Error, Result},
};

const SHELL: &str = include_str!("profile/shell.sh");
const LOG: &str = "profile.log";

/// What a step of a build cost. As a text it is a line of three fields between tabs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Processor time of its command and all that this started, user and system.
    pub seconds: f64,
    /// What made it, in the words of the kernel's make: `CC`, `RUSTC L`, `AR`.
    pub tool: String,
    /// What it made.
    pub target: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}\t{}\t{}", self.seconds, self.tool, self.target)
    }
}

impl Step {
    /// Reads the line of a step.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let seconds = fields.next()?.parse().ok()?;
        Some(Self { seconds, tool: fields.next()?.to_owned(), target: fields.next()?.to_owned() })
    }
}

/// Puts the shell into the directory of a build, and gives make's `SHELL`.
pub(crate) fn install(build: &Path) -> Result<String> {
    let log = build.join(LOG);
    fs::write(&log, "").map_err(|e| Error::io("create", &log, e))?;
    write_script(&build.join("shell"), &[("log", &log.display().to_string())], SHELL)
}

/// What the shell has noted, in the order in which the steps ended.
pub(crate) fn collect(build: &Path) -> Result<Vec<Step>> {
    let log = build.join(LOG);
    let text = fs::read_to_string(&log).map_err(|e| Error::io("read", &log, e))?;
    Ok(text.lines().filter_map(noted).collect())
}

/// `0.310 0.042 CC [M]  fs/fuse/dev.o`: seconds in user and system mode, then what kbuild said.
fn noted(line: &str) -> Option<Step> {
    let mut words = line.split_whitespace();
    let mut seconds = || words.next()?.parse::<f64>().ok();
    let seconds = seconds()? + seconds()?;
    let said: Vec<&str> = words.collect();
    let (target, tool) = said.split_last()?;
    Some(Step { seconds, tool: tool.join(" "), target: (*target).to_owned() })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn steps_are_noted_with_what_they_cost_and_all_commands_do_what_they_did() {
        let dir = tempfile::tempdir().unwrap();
        let shell = install(dir.path()).unwrap();
        let run = |command: &str| {
            let output = Command::new(&shell).args(["-c", command]).output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let work = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo out; echo \"it's\" >&2; exit 3";
        let (code, out, err) = run(&format!("set -e; echo '# CC [M]  a/b.o'; {work}"));
        assert_eq!((code, out.as_str(), err.as_str()), (Some(3), "# CC [M]  a/b.o\nout\n", "it's\n"));
        assert_eq!(run("echo plain; exit 2"), (Some(2), "plain\n".to_owned(), String::new()));
        assert_eq!(run("echo '# GEN     x'").0, Some(0));
        let steps = collect(dir.path()).unwrap();
        let names: Vec<_> = steps.iter().map(|step| (step.tool.as_str(), step.target.as_str())).collect();
        assert_eq!(names, [("CC [M]", "a/b.o"), ("GEN", "x")]);
        assert!(steps[0].seconds > steps[1].seconds, "{steps:?}");
    }

    #[test]
    fn lines_that_were_not_written_whole_are_passed_over() {
        assert_eq!(noted("0.1"), None);
        assert_eq!(noted("0.100 0.001"), None);
        let whole = Step { seconds: 1.5, tool: "CC [M]".to_owned(), target: "a.o".to_owned() };
        assert_eq!(noted("1.000 0.500 CC [M]  a.o").as_ref(), Some(&whole));
        assert_eq!(Step::parse(&whole.to_string()), Some(whole));
    }
}
