// SPDX-License-Identifier: GPL-2.0

//! Driver for vmmci, the device through which vmd(8) of OpenBSD controls its guests.
//!
//! What is said to the device, and when, is in [`protocol`], which the project's user space daemon
//! and its machine share. This driver connects it to the kernel:
//!
//! - [`io`]: the device's registers;
//! - [`control`]: interrupts, the host's commands, and what is done about them;
//! - [`shutdown`]: an orderly shutdown that is forced if it takes too long;
//! - [`poweroff`]: tells the host when the guest goes down by itself;
//! - [`clock`]: the host's clock, and the system clock against it;
//! - [`ptp`]: the host's clock as a PTP clock;
//! - [`sysfs`]: the attributes of the device;
//! - [`pm`]: the device while the guest sleeps, and after.

use kernel::{
    device::Core,
    pci,
    prelude::*,
    sync::Arc,
    sysfs::Groups, //
};

mod clock;
mod control;
mod io;
#[cfg(CONFIG_PM_SLEEP)]
mod pm;
mod poweroff;
#[allow(dead_code, reason = "shared with programs that use more of it")]
#[allow(unreachable_pub, reason = "a crate of its own elsewhere")]
#[allow(unused_attributes, reason = "those of a crate")]
#[path = "protocol/lib.rs"]
mod protocol;
#[cfg(CONFIG_PTP_1588_CLOCK = "y")]
mod ptp;
mod shutdown;
mod sysfs;
#[cfg(CONFIG_OPENBSD_VMMCI_KUNIT_TEST)]
mod tests;

use clock::HostClock;
use control::{
    Control,
    Interrupts, //
};
use io::Registers;

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

/// What belongs to a bound device. Fields are dropped in this order: first what calls into
/// [`Control`], then [`Control`].
struct Bound<'bound> {
    #[cfg(CONFIG_PM_SLEEP)]
    _sleep: Pin<KBox<kernel::pm::Registration<pm::Sleep>>>,
    _poweroff: poweroff::PowerOff,
    #[cfg(CONFIG_PTP_1588_CLOCK = "y")]
    _ptp: Pin<KBox<kernel::ptp::Registration<ptp::PtpClock>>>,
    _interrupts: Interrupts<'bound>,
    control: Arc<Control>,
}

impl pci::Driver for Vmmci {
    type IdInfo = ();
    type Data<'bound> = Bound<'bound>;

    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;
    const DEV_GROUPS: Option<&'static Groups<pci::Adapter<Self>>> = Some(&sysfs::GROUPS);

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        let registers = Registers::new(pdev)?;
        let clock = Arc::pin_init(HostClock::new(registers.clone()), GFP_KERNEL)?;
        let control = Control::new(pdev.into(), registers.clone(), clock.clone())?;
        let bound = Bound {
            _interrupts: Interrupts::new(pdev, &control)?,
            #[cfg(CONFIG_PTP_1588_CLOCK = "y")]
            _ptp: ptp::PtpClock::register(pdev, &clock)?,
            _poweroff: poweroff::PowerOff::new(&registers)?,
            #[cfg(CONFIG_PM_SLEEP)]
            _sleep: pm::Sleep::register(&control)?,
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
                before the kernel does it by force; vmd ends the VM after 120. 0: never \
                (default 90)",
        },
        min_step: u32 {
            default: 1000,
            description: "Microseconds by which the system clock has to be wrong to be set when \
                the host says so (default 1000)",
        },
        follow: u32 {
            default: 0,
            description: "Seconds between two comparisons of the system clock with the host's, by \
                which it is set if it is off by more than 128 ms and no NTP daemon steers it; at \
                least 15. 0: never (default 0)",
        },
    },
}
