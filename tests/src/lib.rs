//! What the end-to-end tests share.

pub mod daemon;
pub mod fidelity;
pub mod initramfs;
pub mod probes;
pub mod run;
pub mod shell;
