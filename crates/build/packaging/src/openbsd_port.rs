//! The directory of a port for OpenBSD's ports(7).

use std::{fmt::Write as _, fs, path::Path};

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    files::{Output, write},
    lock::Lock,
};

/// Files of `packaging/openbsd` that the port has.
const FILES: [&str; 4] = ["Makefile", "pkg/DESCR", "pkg/PLIST", "pkg/README"];
/// Stands for the version in them.
const VERSION: &str = "@version@";
/// The list of crates, by which a port that was made before is known.
const CRATES: &str = "crates.inc";

/// The part of the root Cargo.toml that is used here.
#[derive(Deserialize)]
struct Manifest {
    workspace: Workspace,
}

#[derive(Deserialize)]
struct Workspace {
    package: Package,
}

#[derive(Deserialize)]
struct Package {
    version: String,
}

/// Makes the port of a checkout in the directory `to`, replacing an older one, and returns the names of its files.
pub fn openbsd_port(checkout: &Path, to: &Path) -> Result<Vec<String>> {
    let output = Output::new(to, "a port", CRATES)?;
    let cargo_toml = checkout.join("Cargo.toml");
    let manifest: Manifest = toml::from_str(&read(&cargo_toml)?)
        .map_err(|e| Error::Malformed { what: cargo_toml.display().to_string(), problem: e.to_string() })?;
    for name in FILES {
        let text = read(&checkout.join("packaging/openbsd").join(name))?;
        let text = text.replace(VERSION, &manifest.workspace.package.version);
        write(&output.dir().join(name), text.as_bytes())?;
    }
    write(&output.dir().join(CRATES), crates(&Lock::read(checkout)?).as_bytes())?;
    output.publish()?;
    Ok(FILES.into_iter().chain([CRATES]).map(str::to_owned).collect())
}

/// The crates of the registry in the syntax of cargo-module(5). Those for other platforms are among them: cargo resolves
/// the whole workspace, and fails if its directory of crates lacks one.
fn crates(lock: &Lock) -> String {
    let mut list = String::new();
    for package in lock.package.iter().filter(|package| package.source.is_some()) {
        let _ = writeln!(list, "MODCARGO_CRATES +=\t{}\t{}", package.name, package.version);
    }
    list
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}
