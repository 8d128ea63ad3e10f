//! Commands of the control device in an order and a number that no vmd sends.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use crate::{
    event::Event,
    run::{Run, vmmlinux},
};

/// Pseudo-random numbers: xorshift.
fn numbers(mut state: u32) -> impl Iterator<Item = u32> {
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}

/// The commands at the end of a storm: nothing to do, with an interrupt.
pub const CALM: [(u32, u32); 1] = [(0, 1)];

/// Shows commands to a guest, one after the other: value and number of interrupts.
///
/// # Panics
///
/// If the machine does not take them.
pub fn show(name: &str, commands: &[(u32, u32)]) {
    let mut ctl = Command::new(vmmlinux())
        .args(["ctl", name, "show-commands"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("vmmlinux starts");
    let mut stdin = ctl.stdin.take().expect("piped");
    for (value, interrupts) in commands {
        writeln!(stdin, "{value} {interrupts}").expect("vmmlinux reads");
    }
    drop(stdin);
    assert!(ctl.wait().expect("vmmlinux ends").success());
}

/// `times` commands, known and unknown, some without an interrupt, some with two.
pub fn commands(times: usize) -> Vec<(u32, u32)> {
    const VALUES: [u32; 8] = [0, 1, 2, 3, 3, 4, 0x8000_0000, u32::MAX];
    numbers(0x1234_5678)
        .take(times)
        .map(|n| (VALUES[n as usize % VALUES.len()], n >> 8 & 0xff))
        .map(|(value, n)| (value, [0, 1, 1, 1, 2][n as usize % 5]))
        .collect()
}

/// How many commands come between two losses of the driver, more or less.
pub const CHURN: usize = 30;

/// Shows commands to a guest that carries out `churn`, and ends that.
pub fn churn(run: &mut Run, commands: &[(u32, u32)]) {
    for (index, some) in commands.chunks(CHURN).enumerate() {
        run.expect_events(&Event::Again, index + 1);
        // The driver does not bind to a device whose register is left with all ones.
        show(run.name(), &[some, &CALM].concat());
    }
    run.send(b"done\n");
}
