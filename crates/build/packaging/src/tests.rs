//! A whole release of things that stand in for large ones, made twice.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use kernel_builder::FileRecord;
use support::hash::hash_file;

use super::*;

fn command() -> clap::Command {
    clap::Command::new("vmmlinux").version("1.2.3").about("Runs guests").subcommand(
        clap::Command::new("run").about("Run a guest").arg(clap::Arg::new("image").help("The disk")),
    )
}

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// A place with programs and a kernel's output directory.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        script(&dir.path().join("vmmlinux"), "echo vmmlinux 1.2.3");
        script(&dir.path().join("vmmlinux-guest"), "exit 1");
        script(
            &dir.path().join("vmmcid"),
            "case $1 in --version) echo vmmcid 1.2.3;; completions) echo \"for $2\";; esac",
        );
        for (kernel, package) in
            [("kernel", "linux-image-7.3.4_1_amd64.deb"), ("tar", "linux-7.3.4-vmmlinux-x86_64.tar.xz")]
        {
            Self::kernel(&dir.path().join(kernel), package);
        }
        Self(dir)
    }

    /// A build's output with one package.
    fn kernel(kernel: &Path, package: &str) {
        fs::create_dir(kernel).unwrap();
        let mut files = serde_json::Map::new();
        for (name, content) in [("bzImage", "k"), ("config", "CONFIG_X=y\n"), (package, "d")] {
            fs::write(kernel.join(name), content).unwrap();
            let sha256 = hash_file(&kernel.join(name)).unwrap();
            let record = FileRecord { size: content.len() as u64, sha256 };
            files.insert(name.to_owned(), serde_json::to_value(record).unwrap());
        }
        fs::write(kernel.join("minimal.qcow2"), "q").unwrap();
        fs::write(kernel.join("minimal.img"), "raw disks are too large").unwrap();
        let hash = "ab".repeat(32);
        let manifest = serde_json::json!({
            "name": "7.3", "series": "7.3", "release": "7.3.4-vmmlinux", "inputs": hash,
            "source": { "origin": "kernel.org", "version": "7.3.4", "sha256": hash },
            "patches": [{ "name": "0001-a.patch", "sha256": hash }],
            "overlay": [{ "name": "virt/openbsd/Kconfig", "sha256": hash }],
            "config": { "identity": hash, "sha256": hash },
            "toolchain": { "gcc": "gcc 12" },
            "times": { "started": "now", "prepare_seconds": 0.0, "configure_seconds": 0.0, "compile_seconds": 1.0 },
            "files": files,
        });
        fs::write(kernel.join("manifest.json"), manifest.to_string()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn make(&self, to: &str) -> Result<Vec<String>> {
        let (program, daemon, checkout) = (self.path("vmmlinux"), self.path("vmmcid"), checkout());
        let inputs = Inputs {
            program: &program,
            companions: &[self.path("vmmlinux-guest")],
            command: command(),
            daemon: &daemon,
            kernels: &[self.path("kernel"), self.path("tar")],
            checkout: &checkout,
            epoch: 1_700_000_000,
        };
        assemble(&inputs, &self.path(to), &|_| {})
    }
}

#[test]
fn a_release_is_whole_and_comes_out_the_same_twice() {
    let (here, there) = (Place::new(), Place::new());
    let names = here.make("out/release").unwrap();
    assert_eq!(
        names,
        [
            "linux-7.3.4-vmmlinux-x86_64.tar.xz",
            "linux-7.3.4-vmmlinux.cdx.json",
            "linux-7.3.4-vmmlinux.config",
            "linux-image-7.3.4_1_amd64.deb",
            "minimal-7.3.4-vmmlinux.qcow2",
            "vmmcid-1.2.3-x86_64.tar.xz",
            "vmmcid-1.2.3.cdx.json",
            "vmmcid_1.2.3_amd64.deb",
            "vmmlinux-1.2.3-x86_64.tar.xz",
            "vmmlinux-1.2.3.cdx.json",
            "SHA256SUMS",
        ]
    );
    assert_eq!(there.make("elsewhere").unwrap(), names);
    for name in &names {
        let read = |place: &Place, dir: &str| fs::read(place.path(dir).join(name)).unwrap();
        assert!(read(&here, "out/release") == read(&there, "elsewhere"), "{name}");
    }
    // The checksums are what the tool of that name takes.
    let bill = fs::read_to_string(here.path("out/release/linux-7.3.4-vmmlinux.cdx.json")).unwrap();
    assert!(bill.contains("x86_64.tar.xz") && bill.contains("_amd64.deb"));
    let checked = Command::new("sha256sum")
        .args(["--check", "--quiet", SUMS])
        .current_dir(here.path("out/release"))
        .status();
    assert!(checked.unwrap().success());

    let archive = here.path("out/release/vmmlinux-1.2.3-x86_64.tar.xz");
    let listed = Command::new("tar").args(["--list", "--verbose", "--file"]).arg(archive).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for line in [
        "vmmlinux-1.2.3/bin/vmmlinux\n",
        "vmmlinux-1.2.3/bin/vmmlinux-guest\n",
        "vmmlinux-1.2.3/share/man/man1/vmmlinux.1\n",
        "vmmlinux-1.2.3/share/man/man1/vmmlinux-run.1\n",
        "vmmlinux-1.2.3/share/zsh/site-functions/_vmmlinux\n",
        "vmmlinux-1.2.3/LICENSES/ISC.txt\n",
    ] {
        assert!(listed.contains(line), "{line}: {listed}");
    }
    assert!(!listed.contains("man1/vmmlinux-help"), "{listed}");

    // A second time over the first one, with nothing left beside it.
    here.make("out/release").unwrap();
    assert_eq!(fs::read_dir(here.path("out")).unwrap().count(), 1);
}

#[test]
fn bills_name_what_is_in_it() {
    let bill = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
    let daemon = bill(&sbom::of_package(&checkout(), "vmmcid").unwrap());
    assert_eq!(daemon["specVersion"], "1.5");
    assert_eq!(daemon["metadata"]["component"]["name"], "vmmcid");
    let components = daemon["components"].as_array().unwrap();
    let find = |name: &str| components.iter().find(|component| component["name"] == name);
    let clap = find("clap").expect("the daemon parses its command line");
    assert_eq!(clap["hashes"][0]["content"].as_str().unwrap().len(), 64);
    assert!(clap["purl"].as_str().unwrap().starts_with("pkg:cargo/clap@"));
    assert_eq!(find("clap_derive").unwrap()["scope"], "excluded");
    assert!(find("vmmci-protocol").is_some() && find("proptest").is_none() && find("kvm-ioctls").is_none());
    assert!(find("sha2").is_none(), "of `support` the daemon has the streams alone");

    let place = Place::new();
    let kernel = bill(&sbom::of_kernel(&Manifest::load(&place.path("kernel")).unwrap()).unwrap());
    let text = kernel.to_string();
    for part in
        ["0001-a.patch", "virt/openbsd/Kconfig", "made:bzImage", "vmmlinux:tool:gcc", "Linux-syscall-note"]
    {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_left() {
    let place = Place::new();
    fs::create_dir(place.path("mine")).unwrap();
    assert!(matches!(place.make("mine"), Err(Error::Taken { .. })));
    fs::write(place.path("kernel/config"), "CONFIG_X=n\n").unwrap();
    assert!(matches!(place.make("new"), Err(Error::Changed { .. })));
    script(&place.path("vmmlinux"), "echo vmmlinux 1.2.2");
    assert!(matches!(place.make("new"), Err(Error::OtherVersion { .. })));
    assert!(!place.path("new").exists());
    let left = fs::read_dir(place.0.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(left.count(), 0);
}

#[test]
fn a_port_has_the_crates_of_the_lock_file() {
    let dir = tempfile::tempdir().unwrap();
    let port = dir.path().join("port");

    openbsd_port(&checkout(), &port).unwrap();

    let list = fs::read_to_string(port.join("crates.inc")).unwrap();
    let listed: Vec<_> = list.lines().map(|line| line.split('\t').collect::<Vec<_>>()).collect();
    let lock = fs::read_to_string(checkout().join("Cargo.lock")).unwrap();
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    let locked: Vec<_> = lock
        .split("[[package]]")
        .filter(|package| value(package, "source").is_some())
        .map(|package| {
            [
                "MODCARGO_CRATES +=".to_owned(),
                value(package, "name").unwrap(),
                value(package, "version").unwrap(),
            ]
        })
        .collect();
    assert_eq!(listed, locked);
    assert!(listed.iter().any(|line| line[1] == "pledge"), "{list}");
}

#[test]
fn a_port_names_the_version_and_replaces_a_port_alone() {
    let dir = tempfile::tempdir().unwrap();
    let port = dir.path().join("port");

    let names = openbsd_port(&checkout(), &port).unwrap();
    openbsd_port(&checkout(), &port).unwrap();
    fs::remove_file(port.join("crates.inc")).unwrap();
    let refused = openbsd_port(&checkout(), &port).unwrap_err();

    assert_eq!(names, ["Makefile", "pkg/DESCR", "pkg/PLIST", "pkg/README", "crates.inc"]);
    let makefile = fs::read_to_string(port.join("Makefile")).unwrap();
    assert!(makefile.contains(&format!("V =\t\t{}\n", env!("CARGO_PKG_VERSION"))), "{makefile}");
    assert!(matches!(refused, Error::Taken { .. }), "{refused}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
