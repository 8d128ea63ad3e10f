// SPDX-License-Identifier: GPL-2.0

//! Tells the host when the guest goes down by itself.
//!
//! vmd knows no power button and, up to 7.9, no power-off register: a guest that has powered off is
//! one whose CPU does nothing. It has to say so.
//!
//! - Power-off: said by a power-off handler, last of all. The host ends the VM 3 s later.
//! - Halt: said by the reboot notifier, since nothing of ours is called later.
//! - Reboot and kexec: nothing is said, or the VM would not come back. The device is reset, so that
//!   the next kernel finds it quiet.

use core::marker::PhantomPinned;

use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    time::{
        delay::udelay,
        Delta, //
    },
    types::Opaque, //
};

use crate::{
    bar::Registers,
    protocol, //
};

/// How long the host is waited for after it was told, in milliseconds. It takes 3 s, by a clock that
/// may be late.
const PATIENCE: usize = 6000;

/// A reboot notifier and a power-off handler.
///
/// # Invariants
///
/// `notifier` is registered, and so is `handler`, with a pointer to this value.
#[pin_data(PinnedDrop)]
pub(crate) struct Leaving<'a> {
    registers: Registers<'a>,
    #[pin]
    notifier: Opaque<bindings::notifier_block>,
    handler: *mut bindings::sys_off_handler,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: Registering and unregistering may happen in different threads, and the registers may be
// used in any.
unsafe impl Send for Leaving<'_> {}

impl<'a> Leaving<'a> {
    pub(crate) fn new(registers: Registers<'a>) -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            try_pin_init!(&this in Self {
                registers,
                notifier <- Opaque::ffi_init(|slot: *mut bindings::notifier_block| {
                    // SAFETY: The slot is there to be written to.
                    unsafe {
                        slot.write(bindings::notifier_block {
                            notifier_call: Some(going),
                            next: core::ptr::null_mut(),
                            priority: 0,
                        });
                    }
                }),
                // SAFETY: The callback takes a pointer to this value, which is pinned and
                // unregistered before it goes.
                handler: from_err_ptr(unsafe {
                    bindings::register_sys_off_handler(
                        bindings::sys_off_mode_SYS_OFF_MODE_POWER_OFF,
                        bindings::SYS_OFF_PRIO_DEFAULT as c_int,
                        Some(power_off),
                        this.as_ptr().cast(),
                    )
                })?,
                _: {
                    // SAFETY: The block is initialised, pinned, and unregistered before it goes.
                    let registered =
                        to_result(unsafe { bindings::register_reboot_notifier(notifier.get()) });
                    if registered.is_err() {
                        // SAFETY: It was registered just now.
                        unsafe { bindings::unregister_sys_off_handler(*handler) };
                    }
                    registered?;
                },
                _pin: PhantomPinned,
            }),
            GFP_KERNEL,
        )
    }
}

#[pinned_drop]
impl PinnedDrop for Leaving<'_> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant, both are registered.
        unsafe {
            bindings::unregister_reboot_notifier(self.notifier.get());
            bindings::unregister_sys_off_handler(self.handler);
        }
    }
}

/// The reboot notifier.
///
/// # Safety
///
/// `block` is the notifier of a [`Leaving`].
unsafe extern "C" fn going(
    block: *mut bindings::notifier_block,
    how: c_ulong,
    _command: *mut c_void,
) -> c_int {
    // SAFETY: By the safety requirements.
    let this: &Leaving<'_> = unsafe {
        &*kernel::container_of!(Opaque::cast_from(block.cast_const()), Leaving<'_>, notifier)
    };
    match how as u32 {
        bindings::SYS_RESTART => protocol::reset(&this.registers),
        bindings::SYS_HALT => {
            protocol::power_off(&this.registers);
        }
        _ => {}
    }
    bindings::NOTIFY_DONE as c_int
}

/// The power-off handler.
///
/// # Safety
///
/// `data` comes with a pointer to a [`Leaving`].
unsafe extern "C" fn power_off(data: *mut bindings::sys_off_data) -> c_int {
    // SAFETY: By the safety requirements.
    let this = unsafe { &*(*data).cb_data.cast::<Leaving<'_>>() };
    if protocol::power_off(&this.registers) {
        for _ in 0..PATIENCE {
            udelay(Delta::from_millis(1));
        }
        pr_emerg!("the host was told that this VM powers off, and did not end it\n");
    }
    // vmd ends a VM whose CPU cannot be woken. That is also the way for a guest that the host has
    // told to reboot, and that powers off instead: the host does not listen to it then.
    #[cfg(CONFIG_X86)]
    loop {
        // SAFETY: Nothing is left to be done.
        unsafe { core::arch::asm!("cli; hlt", options(nomem, nostack)) };
    }
    #[cfg(not(CONFIG_X86))]
    (bindings::NOTIFY_DONE as c_int)
}
