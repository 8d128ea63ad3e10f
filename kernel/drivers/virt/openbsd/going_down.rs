// SPDX-License-Identifier: GPL-2.0

//! An orderly shutdown that is forced if it takes too long.

use kernel::{
    bindings,
    prelude::*,
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

/// How the system goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    PowerOff,
    Reboot,
}

/// The end by force, which comes when its time is up.
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

    fn run(this: Arc<Self>) {
        pr_emerg!("user space has not gone down in time: forcing it\n");
        // SAFETY: Safe to call in any context.
        unsafe { bindings::emergency_sync() };
        // It runs on its own, and does not say when it is done.
        fsleep(SYNC_TIME);
        if this.reboot.load(Relaxed) {
            // SAFETY: This is process context; a null command is none.
            unsafe { bindings::kernel_restart(core::ptr::null_mut()) };
        } else {
            // SAFETY: This is process context.
            unsafe { bindings::kernel_power_off() };
        }
    }
}

/// Takes the system down.
pub(crate) struct GoingDown(Arc<Force>);

impl GoingDown {
    pub(crate) fn new() -> Result<Self> {
        let force = pin_init!(Force {
            reboot: Atomic::new(false),
            work <- new_delayed_work!("vmmci::Force::work"),
        });
        Ok(Self(Arc::pin_init(force, GFP_KERNEL)?))
    }

    /// Asks user space to go down, and gives it `grace` seconds until it is forced; 0: never.
    ///
    /// False if it is on its way already: nothing changes then.
    pub(crate) fn start(&self, way: Way, grace: u32) -> bool {
        if grace > 0 {
            let force = self.0.clone();
            let jiffies = msecs_to_jiffies(grace.saturating_mul(1000));
            if workqueue::system_unbound()
                .enqueue_delayed(force, jiffies)
                .is_err()
            {
                return false;
            }
            self.0.reboot.store(way == Way::Reboot, Relaxed);
        }
        match way {
            // SAFETY: Safe to call in any context. True: at once if there is no user space for it.
            Way::PowerOff => unsafe { bindings::orderly_poweroff(true) },
            // SAFETY: Safe to call in any context.
            Way::Reboot => unsafe { bindings::orderly_reboot() },
        }
        true
    }
}

impl Drop for GoingDown {
    fn drop(&mut self) {
        // SAFETY: `self.0` is valid, and the work item with it. The work never drops the last
        // reference to itself here, so that this does not wait for itself.
        let was_waiting = unsafe {
            let work = DelayedWork::raw_as_work(&raw const self.0.work);
            let work = workqueue::Work::raw_get(work);
            bindings::cancel_delayed_work_sync(kernel::container_of!(
                work,
                bindings::delayed_work,
                work
            ))
        };
        if was_waiting {
            // SAFETY: The queue held a reference, made by `Arc::into_raw`, and has forgotten it.
            drop(unsafe { Arc::from_raw(Arc::as_ptr(&self.0)) });
        }
    }
}
