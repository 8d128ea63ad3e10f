//! The kernel's make: toolchain, runs, log, profile.

pub(crate) mod error;
pub(crate) mod log;
pub(crate) mod profile;
pub(crate) mod runner;
pub(crate) mod toolchain;
