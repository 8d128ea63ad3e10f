// SPDX-License-Identifier: GPL-2.0

//! The host's clock as a PTP clock that can be read only.
//!
//! A reading comes with the system time before and after the access at which the host takes its
//! time (`PTP_SYS_OFFSET_EXTENDED`), a few microseconds apart. The device does not tell the time
//! counter of that moment, so there is no `PTP_SYS_OFFSET_PRECISE`.

use kernel::{
    pci,
    prelude::*,
    ptp::{
        Clock,
        Registration,
        SystemTimestamps, //
    },
    sync::Arc,
    time::Delta, //
};

use crate::clock::HostClock;

/// The PTP clock.
pub(crate) struct PtpClock(Arc<HostClock>);

impl PtpClock {
    /// Registers the clock.
    pub(crate) fn register(
        pdev: &pci::Device<kernel::device::Bound>,
        clock: &Arc<HostClock>,
    ) -> Result<Pin<KBox<Registration<Self>>>> {
        let clock = Self(clock.clone());
        KBox::pin_init(Registration::new(pdev.as_ref(), clock), GFP_KERNEL)
    }
}

#[vtable]
impl Clock for PtpClock {
    const NAME: &'static CStr = c"OpenBSD vmmci";
    type OwnerModule = crate::DriverModule;

    fn gettimex(&self, system: &mut SystemTimestamps<'_>) -> Result<Delta> {
        let mut latched = false;
        let now = || {
            if latched {
                system.after();
            } else {
                system.before();
            }
            latched = true;
        };
        let ((), time, ()) = self.0.read_between(now).ok_or(EIO)?;
        Ok(Delta::from_nanos(time.nanos()))
    }
}
