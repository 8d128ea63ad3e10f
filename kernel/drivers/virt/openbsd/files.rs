// SPDX-License-Identifier: GPL-2.0

//! What can be read in sysfs: the directory `vmmci` of the PCI device.

use core::marker::PhantomPinned;

use kernel::{
    bindings,
    error::to_result,
    pci,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

use crate::{
    bar,
    control::Control, //
};

/// A file and its number.
struct File {
    name: &'static CStr,
    value: fn(&Control<'_>) -> Result<i64>,
}

// CAST: The counters fit until they have counted once a nanosecond for 292 years.
const FILES: [File; 8] = [
    File {
        name: c"offset_ns",
        value: |control| Ok(control.compare().ok_or(EIO)?.offset()),
    },
    File {
        name: c"offset_error_ns",
        value: |control| Ok(control.compare().ok_or(EIO)?.error()),
    },
    File {
        name: c"last_step_ns",
        value: |control| Ok(control.last_step()),
    },
    File {
        name: c"steps",
        value: |control| Ok(control.counters.steps.get() as i64),
    },
    File {
        name: c"interrupts",
        value: |control| Ok(control.counters.interrupts.get() as i64),
    },
    File {
        name: c"shutdown_commands",
        value: |control| Ok(control.counters.shutdowns.get() as i64),
    },
    File {
        name: c"reboot_commands",
        value: |control| Ok(control.counters.reboots.get() as i64),
    },
    File {
        name: c"syncrtc_commands",
        value: |control| Ok(control.counters.syncs.get() as i64),
    },
];

/// An attribute that knows whose it is.
#[repr(C)]
struct Attribute {
    attribute: bindings::device_attribute,
    /// The [`Files`] that this is part of, as [`Files::files`] made it.
    control: *const c_void,
    value: fn(&Control<'_>) -> Result<i64>,
}

/// The files, created.
///
/// # Invariants
///
/// `group` has been created in `directory`, from attributes that point to `control`.
#[pin_data(PinnedDrop)]
pub(crate) struct Files<'a> {
    control: Arc<Control<'a>>,
    attributes: [Opaque<Attribute>; FILES.len()],
    /// Those, and a null pointer.
    list: [*mut bindings::attribute; FILES.len() + 1],
    group: bindings::attribute_group,
    directory: *mut bindings::kobject,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: The directory may be removed by any thread.
unsafe impl Send for Files<'_> {}

impl<'a> Files<'a> {
    pub(crate) fn new(
        pdev: &pci::Device<kernel::device::Bound>,
        control: &Arc<Control<'a>>,
    ) -> Result<Pin<KBox<Self>>> {
        let control = control.clone();
        // SAFETY: The device lives as long as the reference.
        let directory = unsafe { &raw mut (*bar::raw(pdev)).dev.kobj };
        KBox::pin_init(
            try_pin_init!(&this in Self {
                attributes: FILES.map(|file| attribute(&file, &control)),
                list: [core::ptr::null_mut(); FILES.len() + 1],
                group: bindings::attribute_group {
                    name: c"vmmci".as_char_ptr(),
                    ..pin_init::zeroed()
                },
                directory,
                control,
                _: {
                    // SAFETY: All fields are initialised by now, and pinned.
                    let this = unsafe { &mut *this.as_ptr() };
                    for (entry, attribute) in this.list.iter_mut().zip(&this.attributes) {
                        // SAFETY: A projection of a valid pointer.
                        *entry = unsafe { &raw mut (*attribute.get()).attribute.attr };
                    }
                    this.group.__bindgen_anon_2.attrs = this.list.as_mut_ptr();
                    // SAFETY: The device is there; all that the group refers to is pinned, and
                    // stays until the group is removed.
                    to_result(unsafe { bindings::sysfs_create_group(this.directory, &this.group) })?;
                },
                _pin: PhantomPinned,
            }? Error),
            GFP_KERNEL,
        )
    }
}

#[pinned_drop]
impl PinnedDrop for Files<'_> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant. This waits for those who are reading.
        unsafe { bindings::sysfs_remove_group(self.directory, &self.group) };
    }
}

fn attribute(file: &File, control: &Arc<Control<'_>>) -> Opaque<Attribute> {
    let mut attribute: bindings::device_attribute = pin_init::zeroed();
    attribute.attr.name = file.name.as_char_ptr();
    attribute.attr.mode = 0o444;
    attribute.__bindgen_anon_1.show = Some(show);
    #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
    {
        attribute.attr.key = kernel::static_lock_class!().as_ptr();
    }
    Opaque::new(Attribute {
        attribute,
        control: Arc::as_ptr(control).cast(),
        value: file.value,
    })
}

/// Writes a file's number.
///
/// # Safety
///
/// `attribute` is that of an [`Attribute`] of a [`Files`] that exists; `page` has room for a page.
unsafe extern "C" fn show(
    _dev: *mut bindings::device,
    attribute: *mut bindings::device_attribute,
    page: *mut c_char,
) -> isize {
    // SAFETY: By the safety requirements, and `device_attribute` is the first field.
    let attribute = unsafe { &*attribute.cast_const().cast::<Attribute>() };
    // SAFETY: The `Files` keep it.
    let control = unsafe { &*attribute.control.cast::<Control<'_>>() };
    match (attribute.value)(control) {
        // SAFETY: By the safety requirements.
        Ok(value) => unsafe { bindings::sysfs_emit(page, c"%lld\n".as_char_ptr(), value) as isize },
        Err(error) => error.to_errno() as isize,
    }
}
