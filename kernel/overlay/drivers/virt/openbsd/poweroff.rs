// SPDX-License-Identifier: GPL-2.0

//! Tells the host when the guest goes down by itself.
//!
//! vmd knows no power button and, up to 7.9, no power-off register: a guest that has powered off is
//! one whose CPU does nothing. It has to say so.
//!
//! - Power-off: said by a power-off handler, last of all. The host ends the VM 3 s later.
//! - Halt: said by a reboot notifier, because no handler of a driver's is called later.
//! - Reboot and kexec: not said, or the VM would not come back. The device is reset, so that the
//!   next kernel finds it quiet.

use kernel::{
    notifier::{
        Notifier,
        NotifyReturn, //
    },
    prelude::*,
    reboot::{
        self,
        SysOffHandler,
        SysOffMode,
        SysOffRegistration, //
    },
    time::{
        delay::udelay,
        Delta, //
    },
};

use crate::{
    io::Registers,
    protocol, //
};

/// How long the host is waited for after it was told, in milliseconds. It takes 3 s, by a clock
/// that may be late.
const PATIENCE: usize = 6000;

/// What is registered for the end of the system.
pub(crate) struct PowerOff {
    _restart_and_halt: Pin<KBox<reboot::Registration<RestartAndHalt>>>,
    _power_off: Pin<KBox<SysOffRegistration<LastWord>>>,
}

impl PowerOff {
    pub(crate) fn new(registers: &Registers) -> Result<Self> {
        let notifier = RestartAndHalt(registers.clone());
        let handler = LastWord(registers.clone());
        Ok(Self {
            _restart_and_halt: KBox::pin_init(reboot::Registration::new(notifier), GFP_KERNEL)?,
            _power_off: KBox::pin_init(SysOffRegistration::new(handler), GFP_KERNEL)?,
        })
    }
}

struct RestartAndHalt(Registers);

impl Notifier<reboot::Chain> for RestartAndHalt {
    fn notify(&self, event: reboot::Event) -> NotifyReturn {
        match event {
            reboot::Event::Restart => protocol::reset(&self.0),
            reboot::Event::Halt => {
                protocol::power_off(&self.0);
            }
            reboot::Event::PowerOff => {}
        }
        NotifyReturn::Done
    }
}

struct LastWord(Registers);

impl SysOffHandler for LastWord {
    const MODE: SysOffMode = SysOffMode::PowerOff;

    fn handle(&self) -> NotifyReturn {
        if protocol::power_off(&self.0) {
            for _ in 0..PATIENCE {
                udelay(Delta::from_millis(1));
            }
            pr_emerg!("the host was told that this VM powers off, and did not end it\n");
        }
        // vmd ends a VM whose CPU cannot be woken. That is also the way for a guest that the host
        // has told to reboot, and that powers off instead: the host does not listen to it then.
        reboot::halt()
    }
}
