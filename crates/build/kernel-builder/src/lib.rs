//! From source to kernel: fetches the source of a series, verifies and unpacks it, applies patches and drivers, checks the
//! toolchain, builds, and collects the outputs.
//!
//! [`KernelBuilder::prepare`] returns a tree to configure or read, [`KernelBuilder::build`] a kernel.

mod build;
mod builder;
mod configuration;
mod counter;
mod error;
mod fetch;
mod inputs;
mod make;
mod options;
mod output;
mod patch;
mod state;
mod tree;

pub use crate::{
    build::{Built, Request},
    builder::KernelBuilder,
    configuration::{BoxedDiagnostic, Configuration},
    error::{Error, Result},
    fetch::{
        error::FetchError,
        lock::{Locked, Origin},
        series::{Key, Series, SeriesFile, find_kernel_dir},
        signature::Keyring,
    },
    make::{error::MakeError, profile::Step, toolchain::Toolchain},
    options::Options,
    output::{
        error::OutputError,
        manifest::{Config, FileRecord, Manifest, Times},
        package::Package,
    },
    patch::PatchError,
    tree::{
        additions::{Piece, Source},
        error::TreeError,
        prepare::PreparedTree,
    },
};
