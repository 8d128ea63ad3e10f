//! The files of the tree, as the tests of its structure, prose and documentation read them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The root of the checkout.
///
/// # Panics
///
/// If this crate does not lie in `tests/tree`.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/tree lies in the root").to_owned()
}

/// The text of a file.
///
/// # Panics
///
/// If the file cannot be read.
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file below a directory of the checkout whose name ends in `.extension`, but for build outputs.
///
/// # Panics
///
/// If the directory cannot be read.
pub fn files(below: &str, extension: &str) -> Vec<PathBuf> {
    walkdir::WalkDir::new(root().join(below))
        .into_iter()
        .filter_entry(|entry| !(entry.file_type().is_dir() && entry.file_name() == "target"))
        .map(|entry| entry.expect("the tree is readable").into_path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect()
}
