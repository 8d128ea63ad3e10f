//! Kernels side by side in the vmd machine.
//!
//! Exits to the host are the currency on vmd, and they can be counted exactly; times on a shared or emulated processor
//! cannot be believed, so they are given as ratios of runs that took turns. Each bench is a function that runs guests
//! through a [`Runner`] and returns a [`Report`]:
//!
//! - [`clock`]: clocks against the host's, sleeps, suspends;
//! - [`boot`]: exits, time and memory until init runs and the guest is ready;
//! - [`idle`]: interrupts and exits of a guest that does nothing;
//! - [`io`]: exits per disk read and per TCP request;
//! - [`size`]: what kernels weigh; [`build`]: what ours costs to build.
//!
//! The guests' init is the program `vmmlinux-guest` ([`guest`]), which sends [`event`]s over the console ([`wire`]). The
//! machines are run by `vmmlinux run`.

pub mod boot;
pub mod build;
pub mod clock;
mod error;
pub mod event;
pub mod guest;
pub mod idle;
pub mod io;
mod kernels;
mod numbers;
mod report;
mod rounds;
mod run;
mod runner;
pub mod size;
pub mod wire;

pub use error::{Error, Result};
pub use kernels::{Baseline, Kernel};
pub use numbers::Spread;
pub use report::{Report, Table};
pub use run::{Machine, Window};
pub use runner::Runner;
