//! Builds: what comes out, when make is not even asked, and what a failure leaves.

#![expect(clippy::print_stderr, reason = "--nocapture shows it")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use kernel_builder::{
    Built, Error, FetchError, KernelBuilder, MakeError, Options, OutputError, Package, Request, Result,
};
use support::hash::hash_file;

use crate::fixture::{Config, FILES, PATCH, Place};

/// The request of most tests.
fn request(out: &Path, package: Option<Package>) -> Request<'_> {
    Request {
        series: "7.3",
        name: "test",
        out,
        tree: None,
        configuration: &Config("A=1"),
        jobs: Some(2),
        package,
        patched: true,
        profile: false,
    }
}

/// Builds with a configuration and perhaps a package.
fn build(
    builder: &KernelBuilder,
    place: &Place,
    config: &'static str,
    package: Option<Package>,
) -> Result<Built> {
    builder.build(&Request { configuration: &Config(config), ..request(&place.out, package) })
}

/// The log of the only build directory.
fn log(place: &Place) -> PathBuf {
    let builds = place.cached("builds");
    assert_eq!(builds.len(), 1, "{builds:?}");
    place.cache().join("builds").join(&builds[0]).join("build.log")
}

fn compiled(place: &Place) -> Vec<String> {
    let log = fs::read_to_string(log(place)).unwrap();
    log.lines().filter_map(|line| line.strip_prefix("# CC      ")).map(str::to_owned).collect()
}

#[test]
fn a_build_leaves_all_that_it_promises() {
    let place = Place::new();
    place.patch("0001-sum-subtract.patch", PATCH);
    let built = build(&place.builder(), &place, "A=1", Some(Package::Tar)).unwrap();
    assert!(!built.up_to_date);
    let dir = place.out().join("test");
    for file in [
        "bzImage",
        "vmlinux",
        "vmlinux.debug",
        "System.map",
        "config",
        "manifest.json",
        "linux-7.3.4-x86_64.tar.xz",
        "modules/lib/modules/7.3.4/kernel/hello.ko",
    ] {
        assert!(dir.join(file).is_file(), "{file}");
    }
    assert!(
        fs::symlink_metadata(dir.join("modules/lib/modules/7.3.4/build")).is_err(),
        "a path of this machine"
    );
    let size = |file: &str| fs::metadata(dir.join(file)).unwrap().len();
    assert!(size("vmlinux") < size("vmlinux.debug"));
    let sums =
        Command::new("sha256sum").args(["--check", "--quiet", "SHA256SUMS"]).current_dir(&dir).status();
    assert!(sums.unwrap().success());
    let manifest = kernel_builder::Manifest::load(&dir).unwrap();
    assert_eq!(manifest.release, "7.3.4");
    assert_eq!(manifest.patches[0].name, "test/0001-sum-subtract.patch");
    assert_eq!(manifest.config.sha256, hash_file(&dir.join("config")).unwrap());
    let image = fs::read(dir.join("bzImage")).unwrap();
    assert!(
        image.starts_with(b"vmmlinux@vmmlinux Wed Nov 18 11:06:40 UTC 2026"),
        "{}",
        String::from_utf8_lossy(&image[..60])
    );
    let tarball =
        Command::new("tar").arg("-tvf").arg(dir.join("linux-7.3.4-x86_64.tar.xz")).output().unwrap();
    let tarball = String::from_utf8(tarball.stdout).unwrap();
    for (mode, file) in [
        ("-rwxr-xr-x 0/0", "linux-7.3.4/install.sh"),
        ("-rw-r--r-- 0/0", "linux-7.3.4/boot/vmlinuz-7.3.4"),
        ("-rw-r--r-- 0/0", "linux-7.3.4/lib/modules/7.3.4/kernel/hello.ko"),
    ] {
        let found = tarball.lines().any(|line| line.starts_with(mode) && line.ends_with(&format!(" {file}")));
        assert!(found, "{file}: {tarball}");
    }
    assert_eq!(fs::read_dir(place.out()).unwrap().count(), 1, "nothing beside it");
}

#[test]
fn an_unchanged_build_does_not_start_make_and_a_changed_one_makes_what_changed() {
    let place = Place::new();
    build(&place.builder(), &place, "A=1", None).unwrap();
    assert_eq!(compiled(&place).len(), 2);
    fs::remove_file(log(&place)).unwrap();
    assert!(build(&place.builder(), &place, "A=1", None).unwrap().up_to_date);
    assert!(!log(&place).exists(), "make was started");
    // A patch of one file.
    place.patch("0001-sum-subtract.patch", PATCH);
    assert!(!build(&place.builder(), &place, "A=1", None).unwrap().up_to_date);
    assert_eq!(compiled(&place), ["lib/sum.o"]);
    // And back.
    fs::remove_file(place.kernel_dir().join("patches/test/0001-sum-subtract.patch")).unwrap();
    build(&place.builder(), &place, "A=1", None).unwrap();
    assert_eq!(compiled(&place), ["lib/sum.o"]);
    // The configuration is everybody's prerequisite in this tree.
    build(&place.builder(), &place, "A=2", None).unwrap();
    assert_eq!(compiled(&place).len(), 2);
}

#[test]
fn a_profile_tells_what_was_made_and_leaves_the_same_kernel() {
    let place = Place::new();
    let build = |name, profile| {
        let request = Request { name, profile, ..request(&place.out, None) };
        place.builder().build(&request).unwrap()
    };
    let (plain, profiled) = (build("plain", false), build("profiled", true));
    assert_eq!(plain.profile, []);
    let mut steps: Vec<_> =
        profiled.profile.iter().map(|step| (step.tool.as_str(), step.target.as_str())).collect();
    steps.sort_unstable();
    assert_eq!(steps, [("CC", "init/main.o"), ("CC", "lib/sum.o"), ("LD", "vmlinux")]);
    assert_eq!(plain.manifest.files["vmlinux"], profiled.manifest.files["vmlinux"]);
    // Nothing was made, so nothing cost anything.
    let again = build("profiled", true);
    assert!(again.up_to_date && again.profile.is_empty());
}

#[test]
fn a_source_as_it_was_released_has_no_patches_and_leaves_the_patched_one_alone() {
    let place = Place::new();
    place.patch("0001-sum-subtract.patch", PATCH);
    let build = |name, patched| {
        let request = Request { name, patched, ..request(&place.out, None) };
        place.builder().build(&request).unwrap().manifest
    };
    let (ours, released) = (build("ours", true), build("released", false));
    assert_eq!((ours.patches.len(), released.patches.len()), (1, 0));
    assert_eq!(released.source, ours.source);
    assert_ne!(released.files["vmlinux"], ours.files["vmlinux"]);
    assert_eq!(place.cached("trees").len(), 2);
    assert!(
        place.builder().build(&Request { name: "ours", ..request(&place.out, None) }).unwrap().up_to_date
    );
}

#[test]
fn an_output_that_was_damaged_is_made_again() {
    let place = Place::new();
    build(&place.builder(), &place, "A=1", None).unwrap();
    fs::remove_file(place.out().join("test/bzImage")).unwrap();
    assert!(!build(&place.builder(), &place, "A=1", None).unwrap().up_to_date);
    assert!(place.out().join("test/bzImage").is_file());
}

#[test]
fn what_the_user_put_beside_the_kernel_stays() {
    let place = Place::new();
    build(&place.builder(), &place, "A=1", None).unwrap();
    fs::write(place.out().join("test/disk.raw"), "an image").unwrap();
    build(&place.builder(), &place, "A=2", None).unwrap();
    assert_eq!(fs::read_to_string(place.out().join("test/disk.raw")).unwrap(), "an image");
}

#[test]
fn a_directory_that_no_build_made_is_not_replaced() {
    let place = Place::new();
    fs::create_dir_all(place.out().join("test")).unwrap();
    fs::write(place.out().join("test/thesis.txt"), "years of work").unwrap();
    let error = build(&place.builder(), &place, "A=1", None).unwrap_err();
    assert!(error.to_string().contains("refusing to replace"), "{error}");
    assert!(place.out().join("test/thesis.txt").is_file());
}

#[test]
fn a_failure_names_target_and_command_and_leaves_the_last_good_output() {
    let place = Place::new();
    build(&place.builder(), &place, "A=1", None).unwrap();
    let good = hash_file(&place.out().join("test/bzImage")).unwrap();
    place.patch("0001-typo.patch", &PATCH.replace("+\treturn a - b;", "+\treturn a - c;"));
    let error = build(&place.builder(), &place, "A=1", None).unwrap_err();
    let Error::Make(MakeError::Failed { target, command, output, log, .. }) = &error else {
        panic!("{error}")
    };
    assert!(target.ends_with("lib/sum.o"), "{target}");
    assert!(command.contains(&format!("-c -o {target}")), "{command}");
    assert!(output.contains("undeclared"), "{output}");
    assert!(log.is_file());
    assert_eq!(hash_file(&place.out().join("test/bzImage")).unwrap(), good);
    assert_eq!(fs::read_dir(place.out()).unwrap().count(), 1, "nothing half-written beside it");
}

#[test]
fn two_builds_in_different_places_are_the_same_bit_for_bit() {
    let sums = || {
        let place = Place::new();
        build(&place.builder(), &place, "A=1", None).unwrap();
        fs::read_to_string(place.out().join("test/SHA256SUMS")).unwrap()
    };
    // The made-up kernel is compiled with debug information, which holds the source's path.
    assert_eq!(sums(), sums());
}

#[test]
fn missing_tools_are_reported_all_at_once_before_anything_is_fetched() {
    let place = Place::new();
    let bin = place.dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let path = std::env::var("PATH").unwrap();
    for tool in ["gcc", "make", "ld", "as", "bison", "perl", "python3", "git", "curl", "xz", "zstd", "cpio"] {
        if let Some(real) = std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|file| file.is_file())
        {
            symlink(real, bin.join(tool)).unwrap();
        }
    }
    // One that is there and too old.
    fs::remove_file(bin.join("bison")).ok();
    script(&bin.join("bison"), "echo 'bison (GNU Bison) 1.28'");
    let builder = place.builder_with(Options { path: Some(bin.into_os_string()), ..place.options() });
    let error = build(&builder, &place, "A=1", None).unwrap_err();
    let Error::Make(MakeError::Missing { missing }) = &error else { panic!("{error}") };
    let all = missing.iter().map(|m| format!("{m}: {}", m.remedy)).collect::<Vec<_>>().join("\n");
    for part in [
        "flex is missing",
        "bc is missing",
        "depmod is missing",
        "bison 1.28 is too old",
        "apt-get install flex",
    ] {
        assert!(all.contains(part), "{part} in:\n{all}");
    }
    assert_eq!(place.cached("downloads"), Vec::<String>::new());
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// Runs a test of this binary on a disk of `kilobytes`.
fn on_a_tiny_disk(test: &str, kilobytes: u32) {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size={kilobytes}k none {0} || exit 77; TINY_DISK={0} exec {1} --exact {test} --ignored --nocapture",
        dir.path().display(),
        std::env::current_exe().unwrap().display(),
    );
    let status =
        Command::new("unshare").args(["--mount", "--map-root-user", "sh", "-c"]).arg(script).status();
    match status.map(|status| status.code()) {
        Ok(Some(0)) => {}
        Ok(Some(1 | 77)) | Err(_) if !may_unshare() => {
            eprintln!("SKIPPED {test}: this system does not allow mount namespaces");
        }
        other => panic!("{test} failed on a tiny disk: {other:?}"),
    }
}

fn may_unshare() -> bool {
    let try_mount = "mount -t tmpfs none /mnt";
    let status = Command::new("unshare").args(["--mount", "--map-root-user", "sh", "-c", try_mount]).status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn a_disk_that_fills_up_while_unpacking_is_said_and_nothing_is_left() {
    on_a_tiny_disk("build::full_while_unpacking", 200);
}

#[test]
#[ignore = "runs on the tiny disk that another test makes"]
fn full_while_unpacking() {
    let mut place = Place::new();
    let mut files = FILES.to_vec();
    let big = "x".repeat(1 << 20);
    files.push(("big.txt", &big));
    place.offer("7.3.5", &crate::fixture::tarball("7.3.5", &files), &place.key);
    place.cache = std::env::var_os("TINY_DISK").unwrap().into();
    let error = place.builder().prepare("7.3").unwrap_err();
    assert!(
        matches!(&error, Error::Fetch(FetchError::File(e)) if e.help.is_some_and(|help| help.contains("disk is full"))),
        "{error:?}"
    );
    assert_eq!(place.cached("pristine"), Vec::<String>::new());
    assert_eq!(place.cached("trees"), Vec::<String>::new());
}

#[test]
fn a_disk_that_fills_up_with_the_outputs_leaves_the_last_good_ones() {
    on_a_tiny_disk("build::full_while_staging", 60);
}

#[test]
#[ignore = "runs on the tiny disk that another test makes"]
fn full_while_staging() {
    let mut place = Place::new();
    place.out = std::env::var_os("TINY_DISK").unwrap().into();
    build(&place.builder(), &place, "A=1", None).unwrap();
    let before = fs::read_to_string(place.out().join("test/SHA256SUMS")).unwrap();
    let free = rustix::fs::statvfs(place.out()).unwrap();
    fs::write(
        place.out().join("filler"),
        vec![0; usize::try_from((free.f_bavail - 1) * free.f_bsize).unwrap()],
    )
    .unwrap();
    let error = build(&place.builder(), &place, "A=2", None).unwrap_err();
    assert!(
        matches!(&error, Error::Output(OutputError::File(e)) if e.help.is_some_and(|help| help.contains("disk is full"))),
        "{error:?}"
    );
    assert_eq!(fs::read_to_string(place.out().join("test/SHA256SUMS")).unwrap(), before);
    assert_eq!(fs::read_dir(place.out()).unwrap().count(), 2, "the output and the filler");
}
