// SPDX-License-Identifier: GPL-2.0

//! Driver for vmmci, the device through which vmd(8) of OpenBSD controls its guests.
//!
//! What is said to the device, and when, is in [`protocol`], which the project's user space daemon
//! and its machine share. This driver connects it to the kernel:
//!
//! - [`bar`]: the device's registers;
//! - [`control`]: interrupts, commands, and what is done about them;
//! - [`going_down`]: an orderly shutdown that is forced if it takes too long;
//! - [`leaving`]: tells the host when the guest goes down by itself;
//! - [`clock`]: the system clock against the host's;
//! - [`ptp`]: the host's clock as a PTP clock;
//! - [`files`]: what can be read in sysfs;
//! - [`sleep`]: the device after the guest has slept.

use kernel::{
    device::Core,
    pci,
    prelude::*,
    sync::Arc, //
};

mod bar;
mod clock;
mod control;
mod files;
mod going_down;
mod leaving;
#[allow(dead_code, reason = "shared with programs that use more of it")]
#[allow(unreachable_pub, reason = "a crate of its own elsewhere")]
#[allow(unused_attributes, reason = "those of a crate")]
#[path = "protocol/lib.rs"]
mod protocol;
mod ptp;
#[cfg(CONFIG_PM_SLEEP)]
mod sleep;
#[cfg(CONFIG_OPENBSD_VMMCI_KUNIT_TEST)]
mod tests;

use control::{
    Control,
    Interrupts, //
};

kernel::pci_device_table!(
    PCI_TABLE,
    <Vmmci as pci::Driver>::IdInfo,
    [(
        pci::DeviceId::from_id(
            pci::Vendor::from_raw(protocol::VENDOR_ID),
            protocol::DEVICE_ID as u32
        ),
        ()
    )]
);

struct Vmmci;

/// Everything that a bound device has. Fields are dropped in this order: first what calls into
/// [`Control`], then [`Control`].
struct Bound<'bound> {
    #[cfg(CONFIG_PM_SLEEP)]
    _sleep: Pin<KBox<sleep::Notifier<'bound>>>,
    _leaving: Pin<KBox<leaving::Leaving<'bound>>>,
    _files: Pin<KBox<files::Files<'bound>>>,
    _ptp: Option<Pin<KBox<ptp::HostClock<'bound>>>>,
    _interrupts: Interrupts<'bound>,
    control: Arc<Control<'bound>>,
}

impl pci::Driver for Vmmci {
    type IdInfo = ();
    type Data<'bound> = Bound<'bound>;

    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        let registers = bar::map(pdev)?;
        let control = Control::new(pdev, registers)?;
        let bound = Bound {
            _interrupts: Interrupts::new(pdev, &control)?,
            _ptp: ptp::HostClock::new(pdev, &control)?,
            _files: files::Files::new(pdev, &control)?,
            _leaving: leaving::Leaving::new(registers)?,
            #[cfg(CONFIG_PM_SLEEP)]
            _sleep: sleep::Notifier::new(&control)?,
            control,
        };
        // From here on there may be commands.
        bound.control.start()?;
        Ok(bound)
    }

    fn unbind<'bound>(_pdev: &'bound pci::Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        this.control.stop();
    }
}

kernel::module_pci_driver! {
    type: Vmmci,
    name: "vmmci",
    authors: ["vmmlinux maintainers"],
    description: "OpenBSD VMM control interface",
    license: "GPL",
    params: {
        grace: u32 {
            default: 90,
            description: "Seconds that user space has to go down after the host has asked for it, \
                before the kernel does it by force; vmd ends the VM after 120. 0: never (default 90)",
        },
        min_step: u32 {
            default: 1000,
            description: "Microseconds by which the system clock has to be wrong to be set when \
                the host says so (default 1000)",
        },
    },
}
