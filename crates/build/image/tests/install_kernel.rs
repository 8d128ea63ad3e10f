//! `guests/common/install-kernel` on boot partitions that are directories.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../guests/common/install-kernel");

struct Guest(tempfile::TempDir);

impl Guest {
    /// As `vmmlinux image` leaves it, with a first kernel.
    fn new() -> Self {
        let guest = Self(tempfile::tempdir().unwrap());
        fs::create_dir(guest.boot("")).unwrap();
        fs::write(guest.boot("vmlinuz"), "kernel 1").unwrap();
        fs::write(
            guest.boot("syslinux.cfg"),
            "DEFAULT linux\n\nLABEL linux\n  MENU LABEL 1\n  KERNEL /vmlinuz\n  APPEND root=x quiet\n",
        )
        .unwrap();
        guest
    }

    fn boot(&self, name: &str) -> PathBuf {
        self.0.path().join("boot").join(name)
    }

    fn kernel(&self, release: &str, content: &str, initrd: Option<&str>) -> PathBuf {
        if let Some(initrd) = initrd {
            fs::write(self.0.path().join(format!("initrd.img-{release}")), initrd).unwrap();
        }
        let path = self.0.path().join(format!("vmlinuz-{release}"));
        fs::write(&path, content).unwrap();
        path
    }

    fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("sh");
        command.arg(SCRIPT).arg("--boot").arg(self.boot("")).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn install(&self, release: &str, content: &str, initrd: Option<&str>) -> String {
        let kernel = self.kernel(release, content, initrd);
        self.run(&[release, kernel.to_str().unwrap()])
    }

    /// Label, release, content of the kernel and of the initial RAM disk of each entry.
    fn entries(&self) -> Vec<[String; 4]> {
        let configuration = fs::read_to_string(self.boot("syslinux.cfg")).unwrap();
        assert!(configuration.contains("DEFAULT linux\n"), "{configuration}");
        let read = |path: Option<&str>| {
            let path = path.map(|path| self.boot(path.trim_start_matches('/')));
            path.map_or_else(String::new, |path| fs::read_to_string(path).unwrap())
        };
        let entries = configuration.split("\nLABEL ").skip(1);
        entries
            .map(|entry| {
                let value = |key: &str| entry.lines().find_map(|line| line.trim().strip_prefix(key));
                assert_eq!(value("APPEND "), Some("root=x quiet"), "{configuration}");
                let label = entry.lines().next().unwrap().to_owned();
                let release = value("MENU LABEL ").unwrap_or_default().to_owned();
                [label, release, read(value("KERNEL ")), read(value("INITRD "))]
            })
            .collect()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.boot(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn a_new_kernel_boots_and_the_one_before_stays() {
    let guest = Guest::new();
    assert!(guest.install("2", "kernel 2", Some("initrd 2")).contains("2 boots next; \"old\""));
    assert_eq!(guest.entries(), [["linux", "2", "kernel 2", "initrd 2"], ["old", "1", "kernel 1", ""]]);
    guest.install("3", "kernel 3", None);
    assert_eq!(guest.entries(), [["linux", "3", "kernel 3", ""], ["old", "2", "kernel 2", "initrd 2"]]);
    // The same again is no reason to forget the one before.
    guest.install("3", "kernel 3", Some("initrd 3"));
    assert_eq!(
        guest.entries(),
        [["linux", "3", "kernel 3", "initrd 3"], ["old", "2", "kernel 2", "initrd 2"]]
    );
    assert_eq!(guest.files(), ["initrd.img", "initrd.old", "syslinux.cfg", "vmlinuz", "vmlinuz.old"]);
}

#[test]
fn a_kernel_that_is_removed_leaves_nothing() {
    let guest = Guest::new();
    guest.install("2", "kernel 2", Some("initrd 2"));
    assert!(guest.run(&["--remove", "2"]).contains("1 boots next"));
    assert_eq!(guest.entries(), [["linux", "1", "kernel 1", ""]]);
    assert_eq!(guest.files(), ["syslinux.cfg", "vmlinuz"]);
    guest.install("2", "kernel 2", Some("initrd 2"));
    guest.run(&["--remove", "1"]);
    assert_eq!(guest.entries(), [["linux", "2", "kernel 2", "initrd 2"]]);
    assert_eq!(guest.files(), ["initrd.img", "syslinux.cfg", "vmlinuz"]);
    // The last one, and one that is not there.
    assert!(guest.run(&["--remove", "2"]).contains("2 stays"));
    assert_eq!(guest.run(&["--remove", "9"]), "");
    assert_eq!(guest.entries(), [["linux", "2", "kernel 2", "initrd 2"]]);
}

#[test]
fn an_initial_ram_disk_goes_to_its_kernel() {
    let guest = Guest::new();
    guest.install("2", "kernel 2", Some("initrd 2"));
    guest.install("3", "kernel 3", Some("initrd 3"));
    let initrd = |release: &str, content: &str| {
        let kernel = guest.kernel(release, "", Some(content));
        guest.run(&["--initrd", release, kernel.to_str().unwrap()]);
    };
    initrd("2", "again 2");
    initrd("3", "again 3");
    initrd("1", "another's");
    assert_eq!(guest.entries(), [["linux", "3", "kernel 3", "again 3"], ["old", "2", "kernel 2", "again 2"]]);
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    let guest = Guest::new();
    let run = |boot: &Path, arguments: &[&str]| {
        Command::new("sh").arg(SCRIPT).arg("--boot").arg(boot).args(arguments).output().unwrap()
    };
    let missing = run(&guest.boot(""), &["2", "/nowhere/vmlinuz"]);
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("there is no /nowhere/vmlinuz"));
    fs::create_dir(guest.boot("other")).unwrap();
    let kernel = guest.kernel("2", "kernel 2", None);
    let other = run(&guest.boot("other"), &["2", kernel.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("is not the boot partition of syslinux"));
    assert_eq!(guest.entries(), [["linux", "1", "kernel 1", ""]]);
}
