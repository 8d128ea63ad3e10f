// SPDX-License-Identifier: GPL-2.0

//! The device's registers: a BAR in I/O port space, as a backend of the kernel's I/O traits.

use core::marker::PhantomData;

use kernel::{
    bindings,
    device::Core,
    error::{
        from_err_ptr,
        to_result, //
    },
    io::{
        Io,
        IoBackend,
        IoBase,
        IoCapable,
        Region, //
    },
    pci,
    prelude::*,
    ptr::KnownSize, //
};

use crate::protocol;

/// A view of a BAR that is accessed by port instructions.
///
/// [`pci::Bar`] is for memory: it reads by `readl()`, which is wrong for ports. `ioread32()` and its
/// like take either.
///
/// # Invariants
///
/// `ptr` is aligned for `T`, and the range of `T`'s size that starts there is part of what
/// `pcim_iomap_region()` has mapped of a BAR of a device that is bound for `'a`.
pub(crate) struct Ports<'a, T: ?Sized> {
    ptr: *mut T,
    _bound: PhantomData<&'a ()>,
}

impl<T: ?Sized> Copy for Ports<'_, T> {}
impl<T: ?Sized> Clone for Ports<'_, T> {
    #[inline]
    fn clone(&self) -> Self {
        *self
    }
}

// SAFETY: A port has no thread that it belongs to.
unsafe impl<T: ?Sized> Send for Ports<'_, T> {}
// SAFETY: Each access is one instruction, and the device orders them.
unsafe impl<T: ?Sized> Sync for Ports<'_, T> {}

/// The [`IoBackend`] of [`Ports`].
pub(crate) struct PortBackend;

impl IoBackend for PortBackend {
    type View<'a, T: ?Sized + KnownSize> = Ports<'a, T>;

    #[inline]
    fn as_ptr<'a, T: ?Sized + KnownSize>(view: Ports<'a, T>) -> *mut T {
        view.ptr
    }

    #[inline]
    unsafe fn project_view<'a, T: ?Sized + KnownSize, U: ?Sized + KnownSize>(
        _view: Self::View<'a, T>,
        ptr: *mut U,
    ) -> Self::View<'a, U> {
        // INVARIANT: By the safety requirements, `ptr` is a part of `view`.
        Ports {
            ptr,
            _bound: PhantomData,
        }
    }
}

impl<'a, T: ?Sized + KnownSize> IoBase<'a> for Ports<'a, T> {
    type Backend = PortBackend;
    type Target = T;

    #[inline]
    fn as_view(self) -> Self {
        self
    }
}

impl IoCapable<u8> for PortBackend {
    #[inline]
    fn io_read(view: Ports<'_, u8>) -> u8 {
        // SAFETY: By the type invariant, this is part of a mapped BAR.
        let value = unsafe { bindings::ioread8(view.ptr.cast()) };
        // CAST: It is declared as `unsigned int`, but reads a byte.
        value as u8
    }

    #[inline]
    fn io_write(view: Ports<'_, u8>, value: u8) {
        // SAFETY: By the type invariant, this is part of a mapped BAR.
        unsafe { bindings::iowrite8(value, view.ptr.cast()) }
    }
}

impl IoCapable<u32> for PortBackend {
    #[inline]
    fn io_read(view: Ports<'_, u32>) -> u32 {
        // SAFETY: By the type invariant, this is part of a mapped BAR.
        unsafe { bindings::ioread32(view.ptr.cast()) }
    }

    #[inline]
    fn io_write(view: Ports<'_, u32>, value: u32) {
        // SAFETY: By the type invariant, this is part of a mapped BAR.
        unsafe { bindings::iowrite32(value, view.ptr.cast()) }
    }
}

/// Where the registers end.
const END: usize = protocol::register::MICROS_HIGH as usize + 4;

/// The device's registers.
pub(crate) type Registers<'a> = Ports<'a, Region<END>>;

impl protocol::Registers for Registers<'_> {
    // vmd answers the first byte of a register with all of it, and no others, whatever the width of
    // the access. The two registers that are not aligned are bytes.
    #[inline]
    fn read(&self, offset: u16) -> u32 {
        let offset = usize::from(offset);
        if offset % 4 == 0 {
            self.try_read32(offset)
        } else {
            self.try_read8(offset).map(u32::from)
        }
        .unwrap_or(u32::MAX)
    }

    #[inline]
    fn write(&self, offset: u16, value: u32) {
        let offset = usize::from(offset);
        // An offset outside of the BAR is none of the protocol's.
        let _ = if offset % 4 == 0 {
            self.try_write32(value, offset)
        } else {
            // CAST: The byte registers have no more bits than these.
            self.try_write8(value as u8, offset)
        };
    }
}

/// The device as C knows it.
pub(crate) fn raw<Ctx: kernel::device::DeviceContext>(
    pdev: &pci::Device<Ctx>,
) -> *mut bindings::pci_dev {
    // CAST: `pci::Device` is a transparent wrapper of `struct pci_dev`.
    core::ptr::from_ref(pdev).cast_mut().cast()
}

/// Enables the device and maps its registers, until it is unbound.
pub(crate) fn map<'bound>(pdev: &'bound pci::Device<Core<'_>>) -> Result<Registers<'bound>> {
    // SAFETY: The device is being bound, so that resources can be managed.
    to_result(unsafe { bindings::pcim_enable_device(raw(pdev)) })?;
    let size = usize::try_from(pdev.resource_len(0)?)?;
    // SAFETY: As above; BAR 0 is a valid number, the name is static.
    let address =
        from_err_ptr(unsafe { bindings::pcim_iomap_region(raw(pdev), 0, c"vmmci".as_char_ptr()) })?;
    // INVARIANT: The alignment is checked here; managed resources are released after the driver's
    // data is gone.
    Ok(Ports {
        ptr: Region::ptr_try_from_raw_parts_mut(address.cast(), size)?,
        _bound: PhantomData,
    })
}
