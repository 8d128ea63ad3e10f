//! Debian's archive: packages of any suite, fetched by the system's apt and unpacked in the cache, never installed.
//!
//! [`Debian`] gives the files of a package, or a kernel with its modules; [`Apt`] gives the packages themselves.

mod apt;
mod deb822;
mod debian;
mod error;
mod kernel;
mod mirrors;
mod modules;

pub use crate::{
    apt::{Apt, Offer, version_lt},
    debian::Debian,
    error::{Error, Result},
    kernel::DebianKernel,
};
