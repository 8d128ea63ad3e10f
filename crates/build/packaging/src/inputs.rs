//! The inputs of a release.

use std::path::{Path, PathBuf};

/// The inputs of a release.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The program, linked statically.
    pub program: &'a Path,
    /// Programs that are installed beside it.
    pub companions: &'a [PathBuf],
    /// The command line of the program, for manual pages and completions.
    pub command: clap::Command,
    /// The guests' daemon, linked statically.
    pub daemon: &'a Path,
    /// Output directories of kernel builds: their packages and qcow2 images are taken.
    pub kernels: &'a [PathBuf],
    /// The checkout: dependencies and licences.
    pub checkout: &'a Path,
    /// The time of all files, in seconds since 1970.
    pub epoch: u64,
}
