//! Kernels as vmmlinux builds them: the same twice, and of every series that is tracked.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use guest_tests::{
    event::Event,
    kernels,
    run::{Guest, HOSTS},
};
use support::cache::Cache;

/// `vmmlinux build` of the core workload, with its cache and its output below `root`.
fn build(root: &Path, more: &[&str]) -> PathBuf {
    // What was downloaded and installed is the user's; trees and builds are this build's own.
    let cache = root.join("vmmlinux");
    fs::create_dir_all(&cache).unwrap();
    let user = Cache::user().unwrap();
    for shared in ["downloads", "apt", "tools", "rust-src"] {
        fs::create_dir_all(user.root().join(shared)).unwrap();
        symlink(user.root().join(shared), cache.join(shared)).unwrap();
    }
    kernels::build("core", &["core"], &root.join("out"), |command| {
        command.args(more).env("XDG_CACHE_HOME", root)
    })
}

#[test]
#[ignore = "compiles two kernels: make long-test"]
fn long_two_builds_of_a_kernel_are_the_same_bit_for_bit() {
    assert!(
        env::var_os("CCACHE_DISABLE").is_some(),
        "set CCACHE_DISABLE=1: the second build would be made of the first one's objects"
    );
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let sums =
        |name: &str| fs::read_to_string(build(&place.path().join(name), &[]).join("SHA256SUMS")).unwrap();
    let (first, second) = (sums("one"), sums("another-place"));
    assert!(first.contains("bzImage"));
    assert_eq!(first, second);
}

#[test]
#[ignore = "compiles a kernel: make long-test"]
fn long_the_lts_kernel_is_built_and_boots() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let built = build(place.path(), &["--series", "6.12"]);
    let guest = Guest::with_kernel(built.join("bzImage"), &[]);
    for host in HOSTS {
        let ended = guest.run(&format!("lts-{host}"), "poweroff", &["--host", host]).end().assert_status(0);
        assert!(ended.has(&Event::Ready), "{host}: {}", ended.everything());
    }
}
