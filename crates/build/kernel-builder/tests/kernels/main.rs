//! The kernel builder with a made-up kernel and a mirror on the local disk.

mod build;
mod fixture;
mod source;
