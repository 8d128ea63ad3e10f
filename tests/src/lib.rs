//! What the end-to-end tests share.

pub mod chrony;
pub mod daemon;
pub mod driver;
pub mod fidelity;
pub mod init;
pub mod initramfs;
pub mod kernels;
pub mod marks;
pub mod probes;
pub mod run;
pub mod shell;
pub mod storm;
