//! The inputs of a build: their hash, the name of its build directory, and the make variables that exclude everything
//! else.

use std::path::{Path, PathBuf};

use jiff::{Timestamp, tz::TimeZone};
use support::hash::Hash;

use crate::{
    make::toolchain::Toolchain,
    output::package::{Package, SCRIPTS},
    tree::prepare::PreparedTree,
};

/// The hash over all inputs of a build.
pub(crate) fn inputs(
    tree: &PreparedTree,
    toolchain: &Toolchain,
    identity: &str,
    package: Option<Package>,
) -> String {
    let mut hash = Hash::new();
    hash.field(env!("CARGO_PKG_VERSION")).field(&tree.hash).field(identity).field(format!("{package:?}"));
    if package.is_some() {
        hash.field(SCRIPTS.concat());
    }
    for (tool, version) in &toolchain.versions {
        hash.field(tool).field(version);
    }
    for (name, value) in &toolchain.make_vars {
        hash.field(name).field(value);
    }
    hash.hex()
}

/// The hash over a requested configuration.
pub(crate) fn identity_hash(identity: &str) -> String {
    let mut hash = Hash::new();
    hash.field(identity);
    hash.hex()
}

/// The name of the build directory for a tree's path, a toolchain and an output name.
pub(crate) fn build_key(tree: &PreparedTree, toolchain: &Toolchain, name: &str) -> String {
    let mut hash = Hash::new();
    hash.field(tree.path.as_os_str().as_encoded_bytes());
    for (tool, version) in &toolchain.versions {
        hash.field(tool).field(version);
    }
    format!("{name}-{}", &hash.hex()[..16])
}

/// make variables that keep the machine's time, names and paths out of the kernel.
pub(crate) fn pinned_vars(
    tree: &PreparedTree,
    objects: &Path,
    toolchain: &Toolchain,
) -> Vec<(String, String)> {
    let date = Timestamp::from_second(tree.epoch)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned(TimeZone::UTC)
        .strftime("%a %b %e %H:%M:%S UTC %Y")
        .to_string();
    // Later mappings are tried first, so the directory of the objects, which may be below the tree, comes last.
    let mut places = vec![(tree.path.clone(), "linux"), (objects.to_owned(), "build")];
    let rust_src = toolchain.make_vars.iter().find(|(name, _)| name == "RUST_LIB_SRC");
    places.extend(rust_src.map(|(_, src)| (PathBuf::from(src), "rust")));
    let map = |option: &str| -> String {
        places
            .iter()
            .map(|(path, name)| format!("{option}={}=/{name}", path.display()))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut vars = toolchain.make_vars.clone();
    let mut set = |name: &str, value: String| vars.push((name.to_owned(), value));
    set("KBUILD_BUILD_TIMESTAMP", date);
    set("KBUILD_BUILD_USER", "vmmlinux".to_owned());
    set("KBUILD_BUILD_HOST", "vmmlinux".to_owned());
    set("KBUILD_BUILD_VERSION", "1".to_owned());
    set("KCFLAGS", map("-ffile-prefix-map"));
    set("KAFLAGS", map("-ffile-prefix-map"));
    set("KRUSTFLAGS", map("--remap-path-prefix"));
    vars
}
