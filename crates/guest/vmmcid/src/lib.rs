//! vmmcid: the guest's side of vmmci, the device through which OpenBSD's vmd(8) controls a guest, for kernels that have no
//! driver for it.
//!
//! Two processes share the work. The *worker* ([`worker`]) meets what comes from outside: it reads the device's registers
//! through sysfs, sets the clock, and answers `vmmcid status`. It has one capability, may open no file and make few system
//! calls ([`sandbox`]). The *supervisor* ([`supervisor`]) hears from it in a handful of words ([`link`]), takes the
//! system down ([`descent`]), runs hooks ([`hooks`]), and starts the worker again when the device has come back.
//!
//! What is done with the device is in [`watch`], which knows neither processes nor sysfs.
#![forbid(unsafe_code)]

pub mod check;
pub mod chrony;
pub mod cli;
pub mod clock;
pub mod config;
pub mod hooks;
pub mod init;
pub mod ipc;
pub mod log;
pub mod process;
pub mod rate_limit;
pub mod sandbox;
pub mod shutdown;
pub mod status;
pub mod supervisor;
pub mod watch;
pub mod worker;
