// SPDX-License-Identifier: GPL-2.0

//! An orderly shutdown that is forced if it takes too long.

use kernel::{
    fs,
    prelude::*,
    reboot,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta, //
    },
    workqueue::{
        self,
        impl_has_delayed_work,
        new_delayed_work,
        DelayedWork,
        WorkItem, //
    },
};

/// How long data that was not written back has for it, before the system is ended by force.
const SYNC_TIME: Delta = Delta::from_secs(3);

/// What the system does after it has gone down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShutdownKind {
    PowerOff,
    Reboot,
}

/// The end by force, when the time for an orderly one is up.
#[pin_data]
struct Force {
    reboot: Atomic<bool>,
    #[pin]
    work: DelayedWork<Self>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Force { self.work }
}

impl WorkItem for Force {
    type Pointer = Arc<Self>;

    // Unbinding the device waits for this, with the device locked: nothing here may lock a device.
    fn run(this: Arc<Self>) {
        pr_emerg!("user space has not gone down in time: forcing it\n");
        fs::emergency_sync();
        // It runs on its own, and does not say when it is done.
        fsleep(SYNC_TIME);
        let go_down = if this.reboot.load(Relaxed) {
            reboot::schedule_restart
        } else {
            reboot::schedule_power_off
        };
        // It fails for want of memory.
        while go_down().is_err() {
            fsleep(SYNC_TIME);
        }
    }
}

/// Shuts the system down.
pub(crate) struct Shutdown(Arc<Force>);

impl Shutdown {
    pub(crate) fn new() -> Result<Self> {
        let force = pin_init!(Force {
            reboot: Atomic::new(false),
            work <- new_delayed_work!("vmmci::Force::work"),
        });
        Ok(Self(Arc::pin_init(force, GFP_KERNEL)?))
    }

    /// Asks user space to go down, and forces it after `grace` seconds; 0: never.
    ///
    /// Returns false if a shutdown is under way already, which is not changed then.
    pub(crate) fn start(&self, kind: ShutdownKind, grace: u32) -> bool {
        if grace > 0 {
            let force = self.0.clone();
            let jiffies = msecs_to_jiffies(grace.saturating_mul(1000));
            if workqueue::system_unbound()
                .enqueue_delayed(force, jiffies)
                .is_err()
            {
                return false;
            }
            self.0.reboot.store(kind == ShutdownKind::Reboot, Relaxed);
        }
        match kind {
            // By force at once if there is no user space for it.
            ShutdownKind::PowerOff => reboot::orderly_poweroff(true),
            ShutdownKind::Reboot => reboot::orderly_reboot(),
        }
        true
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        self.0.work.cancel_sync();
    }
}
