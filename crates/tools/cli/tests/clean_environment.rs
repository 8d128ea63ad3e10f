//! The environment does not reach the kernel's make: `LLVM=1 vmmlinux config show` resolves with gcc.

use std::{fs, path::Path, process::Command};

/// A made-up kernel whose configuration is what was asked for. It fails if a variable of the environment would change the
/// configuration of a kernel. A real one sets CC and HOSTCC itself, so of the environment's CC there is nothing to see; it
/// reads LLVM, KCFLAGS and many others.
const MAKEFILE: &str = "\
VERSION = 7
PATCHLEVEL = 3
SUBLEVEL = 4
EXTRAVERSION =

leaked = $(foreach name,CC HOSTCC LLVM KCFLAGS KCONFIG_SEED,$(if $(filter environment,$(origin $(name))),$(name)))

allnoconfig olddefconfig:
\t@test -z '$(strip $(leaked))' || { echo 'in the environment: $(strip $(leaked))' >&2; exit 1; }
\t@cp '$(KCONFIG_ALLCONFIG)' '$(KCONFIG_CONFIG)'
";

fn made_up_tree(dir: &Path) {
    fs::write(dir.join("Makefile"), MAKEFILE).unwrap();
    fs::write(dir.join("Kconfig"), "mainmenu \"A made-up kernel\"\n").unwrap();
}

#[test]
fn variables_of_the_environment_do_not_reach_the_configuration() {
    let tree = tempfile::tempdir().unwrap();
    made_up_tree(tree.path());
    let output = Command::new(env!("CARGO_BIN_EXE_vmmlinux"))
        .args(["config", "show", "--resolved", "--tree"])
        .arg(tree.path())
        .envs(["CC", "HOSTCC", "LLVM", "KCFLAGS", "KCONFIG_SEED"].map(|name| (name, "/bin/false")))
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");
    let config = String::from_utf8_lossy(&output.stdout);
    assert!(config.contains("CONFIG_VIRTIO_BLK=y"), "{config}");
}
