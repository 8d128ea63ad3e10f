//! What programs and libraries share: standard streams and, with the feature `files`, files, hashes, the cache, running
//! programs, interrupts, reporting progress and, on OpenBSD, restricting the process.
//!
//! Programs for guests take the streams alone.

#[cfg(feature = "files")]
pub mod archive;
#[cfg(feature = "files")]
pub mod cache;
#[cfg(feature = "files")]
pub mod file;
#[cfg(feature = "files")]
pub mod hash;
#[cfg(feature = "files")]
pub mod interrupt;
#[cfg(feature = "files")]
pub mod make;
#[cfg(feature = "files")]
pub mod progress;
#[cfg(feature = "files")]
pub mod run;
#[cfg(all(feature = "files", target_os = "openbsd"))]
pub mod sandbox;
mod streams;

pub use crate::streams::{Error, note_line, print, write};
