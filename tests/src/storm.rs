//! Commands without end, as no vmd sends them.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use crate::run::{Run, vmmlinux};

/// A few numbers that look random: xorshift.
fn numbers(mut state: u32) -> impl Iterator<Item = u32> {
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    })
}

/// The last words: there is nothing more to do, said with an interrupt.
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

/// So many commands, known and unknown, some without an interrupt, some with two.
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

/// Shows commands to a guest that carries out `churn`.
pub fn churn(run: &mut Run, commands: &[(u32, u32)]) {
    for (index, some) in commands.chunks(CHURN).enumerate() {
        run.expect_times("guest: again", index + 1);
        // A device that is left with all ones is none, and its driver would not come again.
        show(run.name(), &[some, &CALM].concat());
    }
    run.send(b"done\n");
}
