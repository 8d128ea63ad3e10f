//! Parsing make's log: steps, failed targets, messages.

use std::path::{Path, PathBuf};

/// The log's place in a build directory.
pub(crate) fn log_path(build: &Path) -> PathBuf {
    build.join("build.log")
}

/// The file of a line that starts a step: `  CC      init/main.o`, or with V=1 `# CC [M]  init/main.o`.
pub(crate) fn step(line: &str) -> Option<&str> {
    let line = line.strip_prefix("  ").or_else(|| line.strip_prefix("# "))?;
    let mut words = line.split_whitespace();
    let tool = words.next()?;
    let is_tool =
        tool.len() >= 2 && tool.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    // Between tool and file may stand a short flag: `[M]`, `L`.
    let (first, second) = (words.next()?, words.next());
    let file = second.unwrap_or(first);
    (is_tool && (second.is_none() || first.len() <= 3) && words.next().is_none()).then_some(file)
}

/// The target of `make[3]: *** [../scripts/Makefile.build:229: init/main.o] Error 1`.
pub(crate) fn failed_target(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("*** [")?;
    let (inside, result) = rest.rsplit_once("] ")?;
    // A directory or phony target failed only because something in it did.
    let target = inside.rsplit(": ").next()?;
    (result.starts_with("Error") || result.starts_with("Killed")).then_some(target)
}

/// The last command in the log that was to make a target.
pub(crate) fn command_for<'a>(log: &'a str, target: &str) -> Option<&'a str> {
    let makes = |line: &&str| {
        let line = line.trim();
        !line.starts_with(['#', '$'])
            && !line.contains("***")
            && line.split([' ', ';', '"', '\'']).any(|word| word == target)
    };
    let spells_output = |line: &&str| line.contains(&format!("-o {target}"));
    let announced = || {
        let lines: Vec<&str> = log.lines().collect();
        let at =
            lines.iter().rposition(|line| line.starts_with("# ") && line.ends_with(&format!(" {target}")))?;
        lines.get(at + 1).copied()
    };
    let commands = || log.lines().filter(makes);
    commands().rfind(spells_output).or_else(|| commands().next_back()).or_else(announced).map(str::trim)
}

/// The log without the commands that went well: messages of compilers and of make.
pub(crate) fn messages(log: &str) -> String {
    // A command is indented by two blanks; so are lines of source that a compiler quotes, after their number.
    let is_command = |line: &str| {
        let mut after = line.strip_prefix("  ").unwrap_or_default().chars();
        after.next().is_some_and(|c| !c.is_whitespace() && !c.is_ascii_digit() && c != '|')
    };
    let is_message = |line: &&str| {
        !(line.is_empty() || line.starts_with(['#', '$']) || line.starts_with("set -e;") || is_command(line))
    };
    let lines: Vec<&str> =
        log.lines().filter(is_message).map(|line| line.get(..300).unwrap_or(line)).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
$ make -C tree O=obj V=1 all
# CC      init/main.o
  gcc -Wp,-MMD,init/.main.o.d -c -o init/main.o ../init/main.c
# CC      init/version.o
  gcc -c -o init/version.o ../init/version.c
../init/main.c: In function 'start_kernel':
../init/main.c:7:2: error: expected ';' before '}' token
    7 |  return
      |        ^
make[3]: *** [../scripts/Makefile.build:229: init/main.o] Error 1
make[2]: *** [../Makefile:1300: init] Error 2
";

    #[test]
    fn the_first_failed_target_and_its_command_are_named() {
        let target = LOG.lines().find_map(failed_target).expect("a target failed");
        assert_eq!(target, "init/main.o");
        assert_eq!(
            command_for(LOG, target),
            Some("gcc -Wp,-MMD,init/.main.o.d -c -o init/main.o ../init/main.c")
        );
    }

    #[test]
    fn a_command_that_does_not_spell_its_output_is_the_one_after_the_announcement() {
        let log = "# HOSTRUSTC scripts/gen\n  rustc --out-dir scripts/ gen.rs\nerror: no\n";
        assert_eq!(command_for(log, "scripts/gen"), Some("rustc --out-dir scripts/ gen.rs"));
    }

    #[test]
    fn messages_leave_out_commands_and_keep_what_compilers_say() {
        let messages = messages(LOG);
        assert!(!messages.contains("gcc"), "{messages}");
        assert!(messages.contains("    7 |  return\n      |        ^"), "{messages}");
    }

    #[test]
    fn steps_are_seen_with_and_without_v1() {
        assert_eq!(step("  CC      init/main.o"), Some("init/main.o"));
        assert_eq!(step("  CC [M]  fs/ext4/inode.o"), Some("fs/ext4/inode.o"));
        assert_eq!(step("# RUSTC L rust/core.o"), Some("rust/core.o"));
        assert_eq!(step("# LD      vmlinux"), Some("vmlinux"));
        assert_eq!(step("  gcc -c -o init/main.o"), None);
        assert_eq!(step("make[1]: Entering directory 'obj'"), None);
    }
}
