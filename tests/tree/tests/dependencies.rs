//! The dependencies against `deny.toml` and the root `Cargo.toml`, by what cargo says of them: licences, bans, sources,
//! the compiler that they need. For advisories, `cargo deny check` asks the database.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{CargoOpt, DepKindInfo, DependencyKind, Metadata, MetadataCommand, Node, Package};
use spdx::{Expression, LicenseReq, Licensee, ParseMode};
use tree_tests::{read, root};

const LINUX: &str = "x86_64-unknown-linux-gnu";
const OPENBSD: &str = "x86_64-unknown-openbsd";
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Crates that work on Linux alone, and those of the workspace that build and run kernels and guests.
const LINUX_ONLY: [&str; 19] = [
    "bench",
    "debian-archive",
    "devices",
    "doctor",
    "helper-vm",
    "image",
    "kernel-builder",
    "kvm-bindings",
    "kvm-ioctls",
    "landlock",
    "linux-loader",
    "linux-raw-sys",
    "rtime-clock",
    "runner",
    "seccompiler",
    "virtio-queue",
    "vm-memory",
    "vmm",
    "vmm-sys-util",
];

/// All packages that are compiled for a target with every feature.
fn metadata_for(target: &str) -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .features(CargoOpt::AllFeatures)
        .other_options(["--locked", "--filter-platform", target].map(str::to_owned))
        .exec()
        .expect("cargo knows the dependencies")
}

fn metadata() -> Metadata {
    metadata_for(LINUX)
}

/// The names of the crates that the program is built of for a target.
fn crates_of_the_program(target: &str) -> BTreeSet<String> {
    let metadata = metadata_for(target);
    let graph = metadata.resolve.as_ref().expect("cargo resolves the dependencies");
    let nodes: BTreeMap<_, _> = graph.nodes.iter().map(|node| (&node.id, node)).collect();
    let program = metadata.packages.iter().find(|package| package.name == "vmmlinux").expect("the program");
    let mut seen = BTreeSet::from([&program.id]);
    let mut open = vec![&program.id];
    while let Some(id) = open.pop() {
        let needed = |kind: &DepKindInfo| kind.kind != DependencyKind::Development;
        let dependencies = nodes[id].deps.iter().filter(|dependency| dependency.dep_kinds.iter().any(needed));
        open.extend(dependencies.map(|dependency| &dependency.pkg).filter(|id| seen.insert(*id)));
    }
    seen.into_iter().map(|id| metadata[id].name.to_string()).collect()
}

fn deny() -> toml::Table {
    read(&root().join("deny.toml")).parse().expect("deny.toml is TOML")
}

/// Whether `allowed` satisfies the licence of a package, an expression of SPDX or two names with a `/` between.
fn permits(allowed: &[Licensee], licence: Option<&str>) -> bool {
    let allows = |required: &LicenseReq| allowed.iter().any(|licence| licence.satisfies(required));
    licence
        .and_then(|licence| Expression::parse_mode(licence, ParseMode::LAX).ok())
        .is_some_and(|licence| licence.evaluate(allows))
}

#[test]
fn licences_are_allowed() {
    let allowed: Vec<_> = deny()["licenses"]["allow"]
        .as_array()
        .expect("a list of licences")
        .iter()
        .map(|licence| Licensee::parse(licence.as_str().expect("a licence's name")).expect("a name of SPDX"))
        .collect();
    assert!(!permits(&allowed, None) && !permits(&allowed, Some("MIT AND GPL-3.0-only")));

    let packages = [LINUX, OPENBSD].map(|target| metadata_for(target).packages).concat();
    let refused: Vec<_> = packages
        .iter()
        .filter(|package| !permits(&allowed, package.license.as_deref()))
        .map(|package| (&package.name, &package.license))
        .collect();

    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn sources_are_crates_io() {
    let metadata = metadata();
    let is_elsewhere =
        |package: &&Package| package.source.as_ref().is_some_and(|source| source.repr != CRATES_IO);
    let elsewhere: Vec<_> =
        metadata.packages.iter().filter(is_elsewhere).map(|package| &package.id).collect();

    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
}

#[test]
fn banned_crates_are_used_by_the_named_ones_alone() {
    let metadata = metadata();
    let graph = metadata.resolve.as_ref().expect("cargo resolves the dependencies");
    let deny = deny();
    for ban in deny["bans"]["deny"].as_array().expect("a list of bans") {
        let banned = ban["crate"].as_str().expect("a crate's name");
        let named = ban["wrappers"].as_array().expect("a list of crates");
        let mut named: Vec<_> = named.iter().map(|name| name.as_str().expect("a crate's name")).collect();
        named.sort_unstable();

        let is_user =
            |node: &&Node| node.dependencies.iter().any(|dependency| metadata[dependency].name == banned);
        let mut users: Vec<_> =
            graph.nodes.iter().filter(is_user).map(|node| metadata[&node.id].name.as_str()).collect();
        users.sort_unstable();

        assert_eq!(users, named, "{banned}: deny.toml names its users");
    }
}

#[test]
fn no_dependency_needs_a_newer_compiler_than_the_workspace() {
    let metadata = metadata();
    let version =
        |name: &str| metadata.packages.iter().find(|package| package.name == name)?.rust_version.clone();
    let stated = version("vmm").expect("the workspace states its compiler");

    let newer: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| package.rust_version.as_ref().is_some_and(|needed| *needed > stated))
        .map(|package| (&package.name, &package.rust_version))
        .collect();

    assert!(newer.is_empty(), "newer than {stated}: {newer:#?}");
}

#[test]
fn no_crate_of_the_openbsd_host_is_linux_only() {
    let (linux, openbsd) = (crates_of_the_program(LINUX), crates_of_the_program(OPENBSD));
    let linux_only: BTreeSet<_> = LINUX_ONLY.map(str::to_owned).into();

    // A name that is wrong or old would never be found.
    let unknown: Vec<_> = linux_only.difference(&linux).collect();
    let found: Vec<_> = linux_only.intersection(&openbsd).collect();

    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(found.is_empty(), "{found:?}");
    assert!(["pledge", "unveil", "vmconf"].iter().all(|name| openbsd.contains(*name)), "{openbsd:?}");
}
