//! Debian's chrony for a guest that has nothing else of Debian's.

use std::{
    io,
    path::{Path, PathBuf},
};

use debian_archive::Debian;
use support::{cache::Cache, progress::Quiet};

/// The packages whose libraries chronyd and chronyc are linked to, directly or not.
const LIBRARIES: [&str; 16] = [
    "libbsd0",
    "libc6",
    "libcap2",
    "libedit2",
    "libffi8",
    "libgmp10",
    "libgnutls30t64",
    "libhogweed6t64",
    "libidn2-0",
    "libmd0",
    "libnettle8t64",
    "libp11-kit0",
    "libseccomp2",
    "libtasn1-6",
    "libtinfo6",
    "libunistring5",
];
const LIBRARY_DIR: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";

/// The files, by their names in the guest: chronyd, chronyc, the loader and the libraries.
pub fn files(cache: &Cache) -> Vec<(String, PathBuf)> {
    let debian = Debian::new(cache, "trixie", &Quiet);
    let package = |name: &str| debian.package(name).expect("Debian's package can be had").join("usr");
    let chrony = package("chrony");
    let mut files = vec![
        ("sbin/chronyd".to_owned(), chrony.join("sbin/chronyd")),
        ("bin/chronyc".to_owned(), chrony.join("bin/chronyc")),
        (LOADER.to_owned(), package("libc6").join(LOADER)),
    ];
    for name in LIBRARIES {
        let dir = package(name).join(LIBRARY_DIR);
        files.extend(libraries(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())));
    }
    files
}

/// The libraries in a directory, by the names that programs ask for.
fn libraries(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in dir.read_dir()? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.contains(".so.") {
            found.push((format!("{LIBRARY_DIR}/{name}"), path));
        }
    }
    Ok(found)
}
