// SPDX-License-Identifier: GPL-2.0

//! The device's registers: BAR 0, in I/O port space.

use kernel::{
    device::Core,
    io::Io,
    pci,
    prelude::*,
    sync::Arc, //
};

use crate::protocol;

/// The size of the registers in bytes.
const SIZE: usize = protocol::register::MICROS_HIGH as usize + 4;

/// The device's registers. They read as all ones after the device was unbound.
#[derive(Clone)]
pub(crate) struct Registers(Arc<pci::DevresIoBar<SIZE>>);

impl Registers {
    /// Enables the device and maps its registers, until it is unbound.
    pub(crate) fn new(pdev: &pci::Device<Core<'_>>) -> Result<Self> {
        pdev.enable_device()?;
        let bar = pdev.iomap_io_region_sized::<SIZE>(0, c"vmmci")?;
        Ok(Self(Arc::new(bar.into_devres()?, GFP_KERNEL)?))
    }
}

impl protocol::Registers for Registers {
    // vmd answers the first byte of a register with all of it, and no others, whatever the width of
    // the access. The two registers that are not aligned are bytes.
    fn read(&self, offset: u16) -> u32 {
        let offset = usize::from(offset);
        self.0
            .try_access_with(|bar| {
                if offset % 4 == 0 {
                    bar.try_read32(offset)
                } else {
                    bar.try_read8(offset).map(u32::from)
                }
            })
            .and_then(Result::ok)
            .unwrap_or(u32::MAX)
    }

    fn write(&self, offset: u16, value: u32) {
        let offset = usize::from(offset);
        // Neither a device that was unbound nor an offset outside of the BAR is written to.
        let _ = self.0.try_access_with(|bar| {
            if offset % 4 == 0 {
                bar.try_write32(value, offset)
            } else {
                // CAST: The byte registers have no more bits than these.
                bar.try_write8(value as u8, offset)
            }
        });
    }
}
