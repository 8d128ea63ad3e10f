//! Running a machine: on the host's KVM or in a helper VM, with its console on the terminal and its control socket.

mod detach;
mod ending;
mod guest_init;
mod helper;
mod in_process;
mod passt;
mod plan;
mod session;
mod terminal;

pub(crate) use detach::{detach, detached};
pub(crate) use ending::TABLE as EXIT_STATUS;
pub(crate) use guest_init::{in_helper_vm, run_in_helper_vm};
pub(crate) use plan::{Accel, DiskArgument, Network, Plan, size};
pub(crate) use session::{Session, choose, run};
pub(crate) use terminal::{Screen, converse, raw_mode};
