//! Runs a VM in this process on the host's KVM, or in the helper VM, with its console and its control socket.
//!
//! [`run`] supervises one run from start to exit reason. [`detach`] starts this program again in the background.
//! In the helper VM, this program is init and runs the VM in process: [`run_in_helper_vm`].

mod config;
mod detach;
mod ending;
mod error;
mod exit_status;
mod guest_init;
mod helper;
mod in_process;
mod passt;
mod run;
mod terminal;

pub use config::{Accel, Network, RunConfig};
pub use detach::{Detached, detach, detached_name};
pub use error::{Error, Result};
pub use exit_status::{EXIT_STATUS_HELP, FAILED, FORCED, TIMED_OUT};
pub use guest_init::{in_helper_vm, run_in_helper_vm};
pub use run::{Outcome, resolve_accel, run};
pub use terminal::{RawMode, UnbufferedStdout, forward_input, raw_mode};
