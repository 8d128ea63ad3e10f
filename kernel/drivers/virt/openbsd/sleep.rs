// SPDX-License-Identifier: GPL-2.0

//! The device while the guest sleeps, and after.
//!
//! The host does not know that a guest sleeps, and kills one that does not answer a stop. So a command
//! is acknowledged even then, wakes the guest from suspend-to-idle, and is obeyed when all runs again.

use core::marker::PhantomPinned;

use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

use crate::control::Control;

/// A PM notifier.
///
/// # Invariants
///
/// `block` is registered.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier<'a> {
    control: Arc<Control<'a>>,
    #[pin]
    block: Opaque<bindings::notifier_block>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: A notifier may be unregistered by any thread.
unsafe impl Send for Notifier<'_> {}

impl<'a> Notifier<'a> {
    pub(crate) fn new(control: &Arc<Control<'a>>) -> Result<Pin<KBox<Self>>> {
        let control = control.clone();
        KBox::pin_init(
            try_pin_init!(Self {
                control,
                block <- Opaque::ffi_init(|slot: *mut bindings::notifier_block| {
                    // SAFETY: The slot is there to be written to.
                    unsafe {
                        slot.write(bindings::notifier_block {
                            notifier_call: Some(sleeping),
                            next: core::ptr::null_mut(),
                            priority: 0,
                        });
                    }
                }),
                // SAFETY: The block is initialised, pinned, and unregistered before it goes.
                _: { to_result(unsafe { bindings::register_pm_notifier(block.get()) })? },
                _pin: PhantomPinned,
            }? Error),
            GFP_KERNEL,
        )
    }
}

#[pinned_drop]
impl PinnedDrop for Notifier<'_> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant.
        unsafe { bindings::unregister_pm_notifier(self.block.get()) };
    }
}

/// The notifier.
///
/// # Safety
///
/// `block` is that of a [`Notifier`].
unsafe extern "C" fn sleeping(
    block: *mut bindings::notifier_block,
    what: c_ulong,
    _data: *mut c_void,
) -> c_int {
    // SAFETY: By the safety requirements.
    let this: &Notifier<'_> = unsafe {
        &*kernel::container_of!(Opaque::cast_from(block.cast_const()), Notifier<'_>, block)
    };
    match what as u32 {
        bindings::PM_SUSPEND_PREPARE
        | bindings::PM_HIBERNATION_PREPARE
        | bindings::PM_RESTORE_PREPARE => this.control.sleeps(),
        bindings::PM_POST_SUSPEND | bindings::PM_POST_HIBERNATION | bindings::PM_POST_RESTORE => {
            this.control.woken();
        }
        _ => {}
    }
    bindings::NOTIFY_DONE as c_int
}
