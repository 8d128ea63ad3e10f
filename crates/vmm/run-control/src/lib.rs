//! Run control of a VM's vCPU threads: kicks, pause and end of the guest, and the SIPI states.
//!
//! The crate knows neither KVM nor the board, so that it can be checked by itself: `make models`
//! runs it under [loom](https://docs.rs/loom), with the models of `tests/models.rs`.

mod sipi;
mod sync;
mod vcpu_run_control;

pub use sipi::{SipiState, SipiStates};
pub use vcpu_run_control::{KickTarget, Registration, VcpuRunControl};
