//! Examines a Linux guest of OpenBSD's vmd(8) from inside.
//!
//! [`Guest::look`] reads what the guest shows of itself ([`System`]), finds out which vmd it runs on ([`Host`]), and, unless
//! told not to, measures for some seconds ([`Measured`]). [`examine`] turns these into findings, one module of [`checks`]
//! per topic. It changes nothing in the guest or the device.
#![forbid(unsafe_code)]

mod args;
pub mod checks;
mod guest;
mod host;
mod log;
mod measure;
mod report;
mod system;

#[cfg(test)]
mod fixture;

pub use args::Args;
pub use guest::{Guest, Kernel};
pub use host::Host;
pub use log::{Line, Log};
pub use measure::{HostClock, Interrupts, Measured, Rate, Sleep};
pub use report::{Finding, Report, Severity};
pub use system::{Registers, System};

/// Examines a guest. `None` if the host is not vmd.
pub fn examine(guest: &Guest) -> Report {
    let mut findings = vec![checks::host::check(guest)];
    if guest.host.is_vmd() {
        findings.extend(checks::clock::check(guest));
        findings.extend(checks::tick::check(guest));
        findings.extend(checks::control::check(guest));
        findings.extend(checks::console::check(guest));
        findings.extend(checks::virtio::check(guest));
        findings.extend(checks::reboot::check(guest));
        findings.extend(checks::configuration::check(guest));
        findings.extend(checks::history::check(guest));
    }
    Report::new(guest, findings)
}
