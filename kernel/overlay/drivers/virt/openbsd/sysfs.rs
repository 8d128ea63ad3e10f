// SPDX-License-Identifier: GPL-2.0

//! The directory `vmmci` of the PCI device in sysfs.
//!
//! Documentation/ABI/testing/sysfs-driver-vmmci describes the files.

use core::fmt::{
    Display,
    Write, //
};

use kernel::{
    device_attribute_group,
    pci,
    prelude::*,
    str::Formatter,
    sysfs::Attribute, //
};

use crate::Vmmci;

device_attribute_group! {
    /// The files. To read one never keeps the interrupt thread from acknowledging a stop.
    pub(crate) static GROUPS: Groups<pci::Adapter<Vmmci>> = c"vmmci", [
        Attribute::new(c"offset_ns", 0o444, |bound, output| {
            line(output, bound.control.compare().ok_or(EIO)?.offset())
        }),
        Attribute::new(c"offset_error_ns", 0o444, |bound, output| {
            line(output, bound.control.compare().ok_or(EIO)?.error())
        }),
        Attribute::new(c"last_step_ns", 0o444, |bound, output| {
            line(output, bound.control.last_step())
        }),
        Attribute::new(c"steps", 0o444, |bound, output| {
            line(output, bound.control.counters.steps.get())
        }),
        Attribute::new(c"interrupts", 0o444, |bound, output| {
            line(output, bound.control.counters.interrupts.get())
        }),
        Attribute::new(c"shutdown_commands", 0o444, |bound, output| {
            line(output, bound.control.counters.shutdowns.get())
        }),
        Attribute::new(c"reboot_commands", 0o444, |bound, output| {
            line(output, bound.control.counters.reboots.get())
        }),
        Attribute::new(c"syncrtc_commands", 0o444, |bound, output| {
            line(output, bound.control.counters.syncs.get())
        }),
    ];
}

/// Writes a value as a line of its own.
fn line(output: &mut Formatter<'_>, value: impl Display) -> Result {
    Ok(writeln!(output, "{value}")?)
}
