// SPDX-License-Identifier: GPL-2.0

//! The host's clock as a PTP clock that can be read only.
//!
//! A reading comes with the system time before and after the access at which the host takes its time
//! (`PTP_SYS_OFFSET_EXTENDED`), a few microseconds apart. The device does not tell the time counter
//! of that moment, so there is no `PTP_SYS_OFFSET_PRECISE`.

use core::marker::PhantomPinned;

use kernel::{
    bindings,
    error::from_err_ptr,
    pci,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

use crate::{
    bar,
    clock,
    control::Control, //
};

/// What the clock is called in `clock_name`, so that a program can tell it from others.
const NAME: &[u8] = b"OpenBSD vmmci";

/// A registered PTP clock.
///
/// # Invariants
///
/// `clock` is registered with `info`.
#[pin_data(PinnedDrop)]
pub(crate) struct HostClock<'a> {
    control: Arc<Control<'a>>,
    #[pin]
    info: Opaque<bindings::ptp_clock_info>,
    clock: *mut bindings::ptp_clock,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: A PTP clock may be unregistered by any thread.
unsafe impl Send for HostClock<'_> {}

impl<'a> HostClock<'a> {
    /// Registers the clock; `None` in a kernel without PTP clocks.
    pub(crate) fn new(
        pdev: &pci::Device<kernel::device::Bound>,
        control: &Arc<Control<'a>>,
    ) -> Result<Option<Pin<KBox<Self>>>> {
        if cfg!(not(CONFIG_PTP_1588_CLOCK)) {
            return Ok(None);
        }
        let control = control.clone();
        // SAFETY: The device lives as long as the reference.
        let parent = unsafe { &raw mut (*bar::raw(pdev)).dev };
        let clock = KBox::pin_init(
            try_pin_init!(Self {
                control,
                info <- Opaque::ffi_init(|slot: *mut bindings::ptp_clock_info| {
                    // SAFETY: The slot is there to be written to.
                    unsafe { slot.write(info()) };
                }),
                // SAFETY: `info` is initialised, pinned, and outlives the clock.
                clock: from_err_ptr(unsafe { bindings::ptp_clock_register(info.get(), parent) })?,
                _pin: PhantomPinned,
            }? Error),
            GFP_KERNEL,
        )?;
        Ok(Some(clock))
    }
}

#[pinned_drop]
impl PinnedDrop for HostClock<'_> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant. No callback runs after this.
        unsafe { bindings::ptp_clock_unregister(self.clock) };
    }
}

fn info() -> bindings::ptp_clock_info {
    let mut info = bindings::ptp_clock_info {
        owner: kernel::module::this_module::<crate::DriverModule>().as_ptr(),
        gettimex64: Some(read),
        settime64: Some(refuse_time),
        adjtime: Some(refuse_shift),
        adjfine: Some(refuse_rate),
        enable: Some(refuse_request),
        ..pin_init::zeroed()
    };
    for (to, from) in info.name.iter_mut().zip(NAME) {
        *to = *from;
    }
    info
}

/// `gettimex64`.
///
/// # Safety
///
/// `info` is that of a [`HostClock`], `time` is valid for writing, `around` too or null.
unsafe extern "C" fn read(
    info: *mut bindings::ptp_clock_info,
    time: *mut bindings::timespec64,
    around: *mut bindings::ptp_system_timestamp,
) -> c_int {
    // SAFETY: By the safety requirements.
    let this: &HostClock<'_> = unsafe {
        &*kernel::container_of!(Opaque::cast_from(info.cast_const()), HostClock<'_>, info)
    };
    let mut before = true;
    let now = || {
        if around.is_null() {
            return;
        }
        // SAFETY: By the safety requirements.
        unsafe {
            let snapshot = if before {
                &raw mut (*around).pre_sts
            } else {
                &raw mut (*around).post_sts
            };
            bindings::ktime_get_snapshot_id((*around).clockid, snapshot);
        }
        before = false;
    };
    let Some(((), host, ())) = this.control.host_time_between(now) else {
        return EIO.to_errno();
    };
    // SAFETY: By the safety requirements.
    unsafe { time.write(clock::timespec(host.nanos())) };
    0
}

extern "C" fn refuse_time(
    _info: *mut bindings::ptp_clock_info,
    _time: *const bindings::timespec64,
) -> c_int {
    EOPNOTSUPP.to_errno()
}

extern "C" fn refuse_shift(_info: *mut bindings::ptp_clock_info, _nanos: i64) -> c_int {
    EOPNOTSUPP.to_errno()
}

extern "C" fn refuse_rate(_info: *mut bindings::ptp_clock_info, _ppm: c_long) -> c_int {
    EOPNOTSUPP.to_errno()
}

extern "C" fn refuse_request(
    _info: *mut bindings::ptp_clock_info,
    _request: *mut bindings::ptp_clock_request,
    _on: c_int,
) -> c_int {
    EOPNOTSUPP.to_errno()
}
