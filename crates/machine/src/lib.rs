//! The vmd machine: the hardware of OpenBSD's vmd(8) on KVM.

mod board;
mod boot;
mod clock;
mod config;
mod console;
mod cpu;
mod end;
mod error;
mod gate;
mod handle;
mod machine;
mod memory;
mod msr;
mod network;
mod places;
pub mod probe;
mod pvclock;
mod smbios;
mod statistics;
mod stock_firmware;
mod symbols;
mod tap;
pub mod trace;
mod vcpu;
mod works;

pub use clock::SystemClock;
pub use config::{Boot, BootDevice, Config, Disk, DiskFormat, Nic, NicBackend, OnReset};
pub use console::Console;
pub use cpu::host_tsc_hz;
pub use end::{At, DeviceFault, Ended, Killing, OutsideRam, StringIo, Stuck};
pub use error::Error;
pub use handle::{Asked, Handle, Refused, State, Status};
pub use machine::Machine;
pub use statistics::{Accesses, ExitKind, Phase, Statistics};
