//! Kernels built for tests: ours with other values for some symbols.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use toml::Table;

use crate::run::vmmlinux;

/// Builds the core workload with these symbols, whatever the configuration says of them, into a directory of `out`.
/// Sources and objects are the user's cache's, so that the second time is quick.
///
/// # Panics
///
/// If it cannot be built.
pub fn build_with(name: &str, symbols: &[(&str, &str)], out: &Path) -> PathBuf {
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel").canonicalize().expect("kernel/");
    let place = tempfile::tempdir().expect("a directory");
    let config = place.path().join("config");
    fs::create_dir(&config).expect("a directory");
    for entry in original.read_dir().expect("kernel/").map(|entry| entry.expect("an entry")) {
        if entry.file_name() != "config" {
            symlink(entry.path(), place.path().join(entry.file_name())).expect("a link");
        }
    }
    for entry in
        original.join("config").read_dir().expect("its config/").map(|entry| entry.expect("an entry"))
    {
        let text = fs::read_to_string(entry.path()).expect("a fragment");
        let text = if entry.file_name() == "core.toml" { changed(&text, symbols) } else { text };
        fs::write(config.join(entry.file_name()), text).expect("a fragment");
    }
    build(name, &["core"], out, |command| command.arg("--kernel-dir").arg(place.path()))
}

/// Builds these workloads into a directory of `out`, by a command that `more` may add to.
///
/// # Panics
///
/// If it cannot be built.
pub fn build(
    name: &str,
    workloads: &[&str],
    out: &Path,
    more: impl FnOnce(&mut Command) -> &mut Command,
) -> PathBuf {
    let mut command = Command::new(vmmlinux());
    command.args(["build", "--name", name, "--out"]).arg(out);
    for workload in workloads {
        command.args(["--workload", workload]);
    }
    more(&mut command);
    let built = command.output().expect("vmmlinux starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    out.join(name)
}

/// A fragment with other values for some symbols.
fn changed(fragment: &str, symbols: &[(&str, &str)]) -> String {
    let mut fragment: Table = fragment.parse().expect("a fragment");
    let entries = fragment["symbols"].as_table_mut().expect("symbols");
    for (name, value) in symbols {
        let entry = Table::from_iter(
            [("value", *value), ("why", "A test's.")].map(|(key, text)| (key.to_owned(), text.into())),
        );
        entries.insert((*name).to_owned(), entry.into());
    }
    fragment.to_string()
}
