//! The profile of a build: the CPU time of every command that make runs, by its target.
//!
//! make gets a shell, `shell.sh`, that runs each command like /bin/sh and logs its CPU time. The shell itself costs some
//! milliseconds per step, so profiles are made on request only.

use std::{fmt, fs, path::Path};

use serde::Serialize;
use support::file::{self, write_script};

use crate::make::error::Result;

const SHELL: &str = include_str!("shell.sh");
const LOG: &str = "profile.log";

/// The cost of a step of a build. Its text is a line of three fields separated by tabs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// CPU time of the command and its children in seconds, user and system.
    pub seconds: f64,
    /// The tool, as the kernel's make names it: `CC`, `RUSTC L`, `AR`.
    pub tool: String,
    /// The file that the step makes.
    pub target: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}\t{}\t{}", self.seconds, self.tool, self.target)
    }
}

impl Step {
    /// Parses the line of a step.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let seconds = fields.next()?.parse().ok()?;
        Some(Self { seconds, tool: fields.next()?.to_owned(), target: fields.next()?.to_owned() })
    }
}

/// Writes the shell to the build directory and returns make's `SHELL`.
pub(crate) fn install(build: &Path) -> Result<String> {
    let log = build.join(LOG);
    fs::write(&log, "").map_err(|e| file::Error::new("create", &log, e))?;
    Ok(write_script(&build.join("shell"), &[("log", &log.display().to_string())], SHELL)?)
}

/// The logged steps in the order in which they ended.
pub(crate) fn collect(build: &Path) -> Result<Vec<Step>> {
    let log = build.join(LOG);
    let text = fs::read_to_string(&log).map_err(|e| file::Error::new("read", &log, e))?;
    Ok(text.lines().filter_map(logged).collect())
}

/// Parses `0.310 0.042 CC [M]  fs/fuse/dev.o`: seconds in user and system mode, then the message of kbuild.
fn logged(line: &str) -> Option<Step> {
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
        assert!(steps[0].seconds > 0.0, "{steps:?}");
    }

    #[test]
    fn lines_that_were_not_written_whole_are_passed_over() {
        assert_eq!(logged("0.1"), None);
        assert_eq!(logged("0.100 0.001"), None);
        let whole = Step { seconds: 1.5, tool: "CC [M]".to_owned(), target: "a.o".to_owned() };
        assert_eq!(logged("1.000 0.500 CC [M]  a.o").as_ref(), Some(&whole));
        assert_eq!(Step::parse(&whole.to_string()), Some(whole));
    }
}
