//! The VMM: VMs with the hardware of OpenBSD's vmd(8), on KVM.
//!
//! A [`VirtualMachine`] is created from a [`Config`] and a [`Console`], controlled through its
//! [`Handle`], and run until the guest exits for an [`ExitReason`]. The crate `devices` has the
//! device models; the board here wires them as vmd does. Each vCPU has a thread that runs it and
//! handles its exits; one more thread runs the event loop for timers, console and network. KVM
//! provides the processor only: its interrupt controllers and timers are not used.
//!
//! # Differences between KVM and vmm
//!
//! - The host vendor's own hypercall instruction (VMMCALL on AMD, VMCALL on Intel) returns -ENOSYS
//!   in RAX; vmm injects #UD. The other vendor's instruction faults as under vmm, from Linux 5.19
//!   on. The hypercall that ends a VM of 8.0 needs a KVM with Xen support, as Debian's has.
//! - An INS or OUTS of a single item is reported by KVM as IN or OUT and works; vmd ends the VM.
//!   One that moves more items ends the VM here, too ([`StringIo`]).
//! - The pvclock page is written before each KVM_RUN. KVM re-enters the guest without an update
//!   after exits that it handles itself (CPUID, page faults of its own tables, host interrupts);
//!   vmm updates the page then, too.
//! - vmm injects an interrupt right after STI; KVM lets the next instruction complete first, as a
//!   processor does.
//! - CPUID leaves out of range answer as the last basic leaf under vmm; on AMD, KVM answers zeroes
//!   for most.
//! - MSRs that vmm reads from the processor (FEATURE_CONTROL, on AMD HWCR, P-state 0 and SEV
//!   status) are read through `/dev/cpu/0/msr`, and are 0 where that cannot be opened. Writes to
//!   FEATURE_CONTROL are dropped.
//! - Writing the PAT has no effect on memory types, as under vmm on AMD; vmm on Intel applies it.
//! - Time is counted with the TSC at the rate that the guest is told, as on OpenBSD
//!   ([`SystemClock`]). Where the host's CPUID lacks that rate it is measured ([`host_tsc_hz`]): a
//!   second is then a few ppm off the host's, for the guest and for vmd's clocks alike.
//! - A guest may be shown another vendor's processor ([`Config::vendor`]): CPUID and MSRs are those
//!   of vmm on such a host, instructions are the host's.
//!
//! `board/stock_firmware.rs` lists the concessions that let firmware boot that does not know vmd.

#![allow(
    clippy::cast_possible_truncation,
    reason = "registers, MSRs and fields of the boot protocol are parts of wider values"
)]

mod board;
mod boot;
mod clock;
mod config;
mod console;
mod device_id;
mod diagnosis;
mod error;
mod event_loop;
mod exit_reason;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod handle;
mod irqchip;
mod kvm;
mod run_control;
mod stats;
mod vcpu_thread;
mod virtual_machine;

pub use clock::SystemClock;
pub use config::{Boot, Config, MAX_HOST_HZ, Nic, NicBackendConfig, OnReset, Vendor};
pub use console::Console;
pub use diagnosis::{DeviceFault, FirmwareHalt, GuestLocation, OutsideRam, StringIo, VcpuError};
pub use error::Error;
pub use exit_reason::{ExitReason, FatalExit};
pub use handle::{ControlError, Handle, ShutdownOutcome, VmState, VmStatus};
pub use kvm::{probe, tsc::host_tsc_hz};
pub use stats::{Accesses, ExitKind, MARK, Mark, Phase, Statistics, report, trace};
pub use virtual_machine::VirtualMachine;
