//! The vmd machine: the hardware of OpenBSD's vmd(8) on KVM.
//!
//! A [`Machine`] is made from a [`Config`] and a [`Console`], controlled through its [`Handle`], and run until the guest
//! has [`ExitReason`]. The device models are the crate `devices`; here they are wired as vmd wires them, and driven by a thread
//! for each virtual CPU, which runs it and answers its accesses, and one that waits for timers, console and network.
//! KVM lends the processor and nothing else: its interrupt controllers and timers are not used.
//!
//! # What KVM does otherwise than vmm
//!
//! - The host vendor's own hypercall instruction (VMMCALL on AMD, VMCALL on Intel) answers -ENOSYS in RAX where vmm has
//!   #UD. The other vendor's faults as under vmm, where KVM can be told so (Linux 5.19).
//! - An INS or OUTS that moves a single item looks like an IN or OUT to KVM's clients and passes; vmd ends the VM. Those
//!   that move more end it here, too ([`StringIo`]).
//! - The pvclock page is written before each entry that this program makes. KVM enters the guest again by itself after
//!   exits that it handles alone (CPUID, its page tables' faults, the host's interrupts), where vmm writes it anew.
//! - vmm injects an interrupt at once after STI; KVM heeds that the next instruction comes first, as a processor does.
//! - CPUID leaves that are out of range answer as the last basic leaf under vmm; on AMD, KVM has zeroes for most.
//! - MSRs that vmm lets a guest read from the processor (FEATURE_CONTROL, on AMD HWCR, P-state 0 and SEV status) are read
//!   through `/dev/cpu/0/msr`, and are 0 where that cannot be opened. Writing FEATURE_CONTROL does nothing.
//! - The PAT is a register that changes nothing, as under vmm on AMD; on Intel vmm has that, too.
//! - Time is counted with the TSC, at the rate that the guest is told, as on OpenBSD ([`SystemClock`]). Where the host's
//!   CPUID does not tell that rate it is measured ([`host_tsc_hz`]): a second is then a few ppm off the host's, for the
//!   guest and for what it takes for its host alike.
//! - A guest may be told that the processor is another vendor's ([`Config::vendor`]). That is CPUID and MSRs as vmm has
//!   them on such a host; instructions do what the host's do.
//!
//! What lets firmware boot that does not know vmd is listed in `board/stock_firmware.rs`.

mod board;
mod boot;
mod clock;
mod config;
mod console;
mod diagnosis;
mod error;
mod event_loop;
mod exit_reason;
mod handle;
mod irqchip;
mod kvm;
mod machine;
mod run_control;
mod sipi;
mod stats;
mod vcpu_thread;

pub use clock::SystemClock;
pub use config::{Boot, BootDevice, Config, Disk, DiskFormat, Nic, NicBackend, OnReset, Vendor};
pub use console::Console;
pub use diagnosis::{At, DeviceFault, OutsideRam, StringIo, VcpuError};
pub use error::Error;
pub use exit_reason::{ExitReason, FatalExit};
pub use handle::{Handle, Refused, ShutdownOutcome, State, Status};
pub use kvm::{probe, tsc::host_tsc_hz};
pub use machine::Machine;
pub use stats::{Accesses, ExitKind, MARK, Mark, Phase, Statistics, report, trace};
