//! The end-to-end cases, one module for each part of the project. They boot guests in the helper VM and are therefore
//! ignored unless asked for: `make e2e`, and `make long-test` for those named `long_`.

#![expect(clippy::print_stdout, reason = "the runner shows what a case measured")]

mod bench;
mod cdrom;
mod chrony;
mod debian;
mod doctor;
mod driver;
mod exits;
mod fidelity;
mod firewall;
mod guests;
mod kernel;
mod kernels;
mod module;
mod run;
mod smp;
mod soak;
mod tick;
mod vmmci;
mod vmmcid;
