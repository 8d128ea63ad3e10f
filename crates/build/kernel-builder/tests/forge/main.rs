//! The forge, tried on a kernel in name with a mirror on the local disk.

mod build;
mod fixture;
mod source;
