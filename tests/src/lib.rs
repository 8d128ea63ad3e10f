//! The framework of the end-to-end tests. The cases are in `tests/cases`, the guests' programs in `src/agent`, `src/soak.rs` and
//! `src/clockwatch.rs`.

pub mod chrony;
pub mod daemon;
pub mod disk;
pub mod driver;
pub mod event;
pub mod fidelity;
pub mod init;
pub mod initramfs;
pub mod input;
pub mod kernels;
pub mod marks;
pub mod output;
pub mod probes;
pub mod run;
pub mod shell;
pub mod storm;
