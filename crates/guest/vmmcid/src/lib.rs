//! vmmcid: the guest's side of vmmci, the device through which OpenBSD's vmd(8) controls a guest, for kernels that have no
//! driver for it.
//!
//! Two processes share the work. The *worker* ([`worker`]) handles all input: it reads the device's registers through
//! sysfs, sets the clock and answers `vmmcid status`. It has one capability, opens no file and makes few system calls
//! ([`sandbox`]). The *supervisor* ([`supervisor`]) receives its reports ([`ipc`]), takes the system down ([`shutdown`]),
//! runs hooks ([`hooks`]) and restarts the worker when the device has come back.
//!
//! The protocol with the device is in [`watch`], which knows neither processes nor sysfs.
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
pub mod trusted;
pub mod watch;
pub mod worker;
