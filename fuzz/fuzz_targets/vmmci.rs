//! vmmci under arbitrary actions of guest and host.
#![no_main]

use std::sync::Arc;

use devices::{
    clock::{Clock, HostTicks, Timed},
    pci::PciFunction,
    vmmci::{ACK_TIMEOUT, FINISH_TIMEOUT, Vmmci},
};
use libfuzzer_sys::fuzz_target;
use vmd_release::Generation;
use vmmlinux_fuzz::{Step, clock, line};

const OFFSETS: [u16; 14] = [0, 4, 8, 12, 14, 16, 18, 19, 20, 24, 28, 32, 36, 0xfff];

fuzz_target!(|script: Vec<Step>| {
    let clock = clock();
    let mut device = Vmmci::new(
        Generation::V7_8.capabilities(),
        Arc::clone(&clock) as _,
        HostTicks::default(),
        line(6),
        Box::new(|_| {}),
    );
    for step in script {
        if let Some(mut access) = step.access(&OFFSETS) {
            let offset = access.port;
            device.bar_access(offset, &mut access);
        }
        match step {
            Step::Wait { micros } => clock.advance(u64::from(micros) * 1000),
            Step::SetClock { seconds } => clock.set_realtime(u64::from(seconds) * 1_000_000_000),
            Step::Other { what, .. } => match what % 6 {
                0 => drop(device.stop()),
                1 => drop(device.reboot()),
                2 => drop(device.shutdown()),
                3 => drop(device.sync_rtc()),
                4 => device.force_stop(),
                _ => device.reset(),
            },
            _ => {}
        }
        device.expire();
        let now = clock.monotonic();
        let longest = ACK_TIMEOUT.max(FINISH_TIMEOUT) + 20_000_000;
        assert!(device.deadline().is_none_or(|at| at > now && at <= now + longest));
    }
});
