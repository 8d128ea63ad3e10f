//! The probe guest: an initramfs with the probe programs, and the taking apart of what they print.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::initramfs::Initramfs;

/// The probes that are programs, by the name of their source in `tests/probes`.
const PROGRAMS: [&str; 8] =
    ["cpuid_dump", "msrdump", "pio", "pittest", "rtctest", "v1cfg", "slp", "vmmci_mon"];

/// The line that each probe's output begins with, before its name.
const MARK: &str = "=== PROBE ";

fn probes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("probes")
}

/// Writes the probe guest's initramfs to `to`.
///
/// `busybox` is a static busybox; `modules` are loaded in this order before the probes run.
pub fn initramfs(to: &Path, busybox: &Path, modules: &[PathBuf]) -> io::Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut archive = Initramfs::create(to, &["bin", "probes"])?;
    archive.copy("init", &probes().join("init"))?;
    archive.copy("bin/busybox", busybox)?;
    archive.copy("probes/dump.sh", &probes().join("dump.sh"))?;
    for name in PROGRAMS {
        let binary = scratch.path().join(name);
        compile(name, &binary)?;
        archive.copy(&format!("probes/{name}"), &binary)?;
    }
    for (index, module) in modules.iter().enumerate() {
        archive.copy(&format!("modules/{index:02}.ko"), module)?;
    }
    archive.finish()
}

/// Compiles the probe `name` to the static program `to`.
pub fn compile(name: &str, to: &Path) -> io::Result<()> {
    let source = probes().join(name).with_extension("c");
    let output = Command::new("cc").args(["-static", "-O1", "-o"]).arg(to).arg(&source).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("cc {}: {}", source.display(), String::from_utf8_lossy(&output.stderr))))
}

/// What each probe printed, by name, from all that came over the console. The guest's last mark is `end`: without it
/// the run was cut short, and that is the error.
pub fn sections(console: &str) -> Result<BTreeMap<String, String>, String> {
    let mut sections = BTreeMap::new();
    let mut current: Option<(String, String)> = None;
    for line in console.lines() {
        if let Some(name) = line.trim_end_matches('\r').strip_prefix(MARK) {
            sections.extend(current.replace((name.to_owned(), String::new())));
        } else if let Some((_, text)) = &mut current {
            text.push_str(line);
            text.push('\n');
        }
    }
    match current {
        Some((last, _)) if last == "end" => Ok(sections),
        Some((last, text)) => Err(format!("the guest stopped in probe {last}, which printed:\n{text}")),
        None => Err(format!("the guest never got to its probes; the console shows:\n{console}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn output_is_split_at_the_marks() {
        let console = "boot\r\n=== PROBE a\r\n1\r\n2\r\n=== PROBE b\n3\n=== PROBE end\n";
        let sections = sections(console).unwrap();
        assert_eq!(sections.len(), 2);
        assert_eq!(sections["a"], "1\r\n2\r\n".replace('\r', ""));
        assert_eq!(sections["b"], "3\n");
    }

    #[test]
    fn a_guest_that_died_early_is_an_error_with_its_last_words() {
        assert!(sections("=== PROBE a\noops\n").unwrap_err().contains("oops"));
        assert!(sections("Kernel panic\n").unwrap_err().contains("Kernel panic"));
    }

    #[test]
    fn the_probes_compile_and_the_archive_holds_them() {
        let dir = tempfile::tempdir().unwrap();
        let (busybox, to) = (dir.path().join("busybox"), dir.path().join("initramfs"));
        fs::write(&busybox, "#!").unwrap();
        initramfs(&to, &busybox, &[]).unwrap();
        let archive = fs::read(&to).unwrap();
        for name in PROGRAMS {
            let path = format!("probes/{name}");
            assert!(archive.windows(path.len()).any(|window| window == path.as_bytes()), "{path}");
        }
    }
}
