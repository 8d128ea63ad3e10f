// SPDX-License-Identifier: GPL-2.0

//! Interrupts, commands, and what is done about them.

#[cfg(CONFIG_PM_SLEEP)]
use kernel::bindings;
use kernel::{
    device::{
        Bound,
        Core, //
    },
    fmt,
    irq::{
        self,
        IrqReturn,
        ThreadedHandler,
        ThreadedIrqReturn,
        ThreadedRegistration, //
    },
    new_mutex, pci,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
};

use crate::{
    bar::Registers,
    clock,
    going_down::{
        GoingDown,
        Way, //
    },
    module_parameters,
    protocol::{
        self,
        Action,
        Comparison,
        Driver,
        HostTime,
        ProbeError, //
    },
};

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// The most commands that are carried out for one interrupt. The host sends one; a device that has
/// always another one must not keep the thread forever.
const COMMANDS_PER_INTERRUPT: usize = 8;

/// What has happened since the device was bound.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) interrupts: Counter,
    pub(crate) shutdowns: Counter,
    pub(crate) reboots: Counter,
    pub(crate) syncs: Counter,
    pub(crate) steps: Counter,
}

/// A number that only grows, up to where it begins again.
pub(crate) struct Counter(Atomic<u64>);

impl Default for Counter {
    fn default() -> Self {
        Self(Atomic::new(0))
    }
}

impl Counter {
    fn count(&self) -> u64 {
        self.0.fetch_add(1, Relaxed)
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Whether the n-th message of a kind is worth its line: the first ten, then those after ever
/// longer silence. A host that commands without end does not fill the log.
pub(crate) const fn worth_a_line(n: u64) -> bool {
    n < 10 || n.is_power_of_two()
}

/// The device in use.
#[pin_data]
pub(crate) struct Control<'a> {
    pdev: &'a pci::Device<Bound>,
    registers: Registers<'a>,
    /// `None` before the device is started.
    #[pin]
    driver: Mutex<Option<Driver<Registers<'a>>>>,
    going_down: GoingDown,
    last_step: Atomic<i64>,
    /// Whether it was said that the device shows commands that are none.
    warned: Atomic<bool>,
    /// Whether the guest sleeps, or is about to: what the host wants has to wait then.
    #[cfg(CONFIG_PM_SLEEP)]
    asleep: Atomic<bool>,
    pub(crate) counters: Counters,
}

impl<'a> Control<'a> {
    pub(crate) fn new(pdev: &'a pci::Device<Bound>, registers: Registers<'a>) -> Result<Arc<Self>> {
        let going_down = GoingDown::new()?;
        Arc::pin_init(
            pin_init!(Self {
                pdev,
                registers,
                driver <- new_mutex!(None, "vmmci::Control::driver"),
                going_down,
                last_step: Atomic::new(0),
                warned: Atomic::new(false),
                #[cfg(CONFIG_PM_SLEEP)]
                asleep: Atomic::new(false),
                counters: Counters::default(),
            }),
            GFP_KERNEL,
        )
    }

    /// Tells the host that there is a driver, and does what the host may be waiting for already.
    pub(crate) fn start(&self) -> Result {
        let driver = Driver::probe(self.registers)
            .inspect_err(|error| dev_err!(self.pdev, "{error}\n"))
            .map_err(|_| ENODEV)?;
        dev_info!(
            self.pdev,
            "the host has features {:#x}\n",
            driver.features().0
        );
        *self.driver.lock() = Some(driver);
        self.obey(false);
        Ok(())
    }

    /// Tells the host that there is no driver any more.
    pub(crate) fn stop(&self) {
        if let Some(driver) = self.driver.lock().take() {
            driver.remove();
        }
    }

    /// The guest is about to sleep. From now on commands are acknowledged and wake it; what they
    /// ask for is done after [`Control::woken`].
    #[cfg(CONFIG_PM_SLEEP)]
    pub(crate) fn sleeps(&self) {
        self.asleep.store(true, Relaxed);
    }

    /// The guest is awake. What vmd keeps of the device meanwhile depends on how it slept: after
    /// hibernation it is a new VM's. So it is set up again.
    #[cfg(CONFIG_PM_SLEEP)]
    pub(crate) fn woken(&self) {
        self.asleep.store(false, Relaxed);
        // It has said why not; the guest goes on without.
        let _ = self.start();
    }

    /// Guest minus host, if the host's clock can be read.
    pub(crate) fn compare(&self) -> Option<Comparison> {
        clock::compare(self.driver.lock().as_ref()?)
    }

    /// [`Driver::host_time_between`].
    pub(crate) fn host_time_between<T>(&self, now: impl FnMut() -> T) -> Option<(T, HostTime, T)> {
        self.driver.lock().as_ref()?.host_time_between(now)
    }

    /// By how many nanoseconds the clock was set forward the last time.
    pub(crate) fn last_step(&self) -> i64 {
        self.last_step.load(Relaxed)
    }

    /// Does what the host says; `changed` tells that it has said something.
    fn obey(&self, changed: bool) {
        let mut lock = self.driver.lock();
        let Some(driver) = &mut *lock else {
            return;
        };
        let mut changed = changed;
        for _ in 0..COMMANDS_PER_INTERRUPT {
            let Some(action) = driver.poll(changed) else {
                break;
            };
            changed = false;
            // Processes are frozen, and the clock may stand. The command stays where it is.
            #[cfg(CONFIG_PM_SLEEP)]
            if self.asleep.load(Relaxed) {
                // SAFETY: Safe to call in any context.
                unsafe { bindings::pm_system_wakeup() };
                return;
            }
            match action {
                Action::PowerOff => self.go_down(Way::PowerOff, &self.counters.shutdowns),
                Action::Reboot => self.go_down(Way::Reboot, &self.counters.reboots),
                Action::SetClock => {
                    self.set_clock(driver);
                    driver.clock_is_set();
                }
            }
        }
        if let Some(value) = driver.unknown() {
            if !self.warned.xchg(true, Relaxed) {
                dev_warn!(
                    self.pdev,
                    "command {value:#x} is none that is known; it and its like are ignored\n"
                );
            }
        }
    }

    fn go_down(&self, way: Way, counter: &Counter) {
        let line = worth_a_line(counter.count());
        let grace = *module_parameters::grace.value_ref();
        if !self.going_down.start(way, grace) {
            return;
        }
        if line {
            match way {
                Way::PowerOff => dev_info!(self.pdev, "the host wants a shutdown\n"),
                Way::Reboot => dev_info!(self.pdev, "the host wants a reboot, or a stop\n"),
            }
        }
    }

    fn set_clock(&self, driver: &Driver<Registers<'_>>) {
        let line = worth_a_line(self.counters.syncs.count());
        let Some(comparison) = clock::compare(driver) else {
            if line {
                dev_warn!(
                    self.pdev,
                    "the host's clock has jumped, and cannot be read\n"
                );
            }
            return;
        };
        let offset = comparison.offset();
        let min_step = i64::from(*module_parameters::min_step.value_ref()) * 1000;
        if offset.saturating_abs() < min_step {
            if line {
                dev_info!(
                    self.pdev,
                    "the host's clock has jumped, ours is right ({offset} ns)\n"
                );
            }
            return;
        }
        let result = clock::set_back(offset);
        if result.is_ok() {
            self.counters.steps.count();
            self.last_step.store(offset.saturating_neg(), Relaxed);
        }
        if !line {
            return;
        }
        let sign = if offset > 0 { '-' } else { '+' };
        let size = clock::timespec(offset.saturating_abs());
        let (seconds, micros) = (size.tv_sec, size.tv_nsec / 1000);
        match result {
            Ok(()) => dev_info!(self.pdev, "clock set by {sign}{seconds}.{micros:06} s\n"),
            Err(error) => dev_warn!(
                self.pdev,
                "clock not set by {sign}{seconds}.{micros:06} s: {error:?}\n"
            ),
        }
    }
}

/// The handler of the device's interrupt.
struct Handler<'a>(Arc<Control<'a>>);

impl ThreadedHandler for Handler<'_> {
    fn handle(&self) -> ThreadedIrqReturn {
        if protocol::take_interrupt(&self.0.registers) {
            self.0.counters.interrupts.count();
            ThreadedIrqReturn::WakeThread
        } else {
            ThreadedIrqReturn::None
        }
    }

    // The thread has real-time priority: a busy guest answers in time.
    fn handle_threaded(&self) -> IrqReturn {
        self.0.obey(true);
        IrqReturn::Handled
    }
}

/// The device's interrupt, requested.
///
/// The registration comes first: it is dropped before the vectors that it refers to.
pub(crate) struct Interrupts<'a> {
    _registration: Pin<KBox<ThreadedRegistration<'a, Handler<'a>>>>,
    _vectors: KBox<pci::IrqVectorRegistration<'a>>,
}

/// vmd gives each of its first devices a line of its own. The line stays on while the guest sleeps.
fn flags() -> irq::Flags {
    if cfg!(CONFIG_PM_SLEEP) {
        irq::Flags::SHARED | irq::Flags::NO_SUSPEND
    } else {
        irq::Flags::SHARED
    }
}

impl<'a> Interrupts<'a> {
    pub(crate) fn new(pdev: &'a pci::Device<Core<'_>>, control: &Arc<Control<'a>>) -> Result<Self> {
        let types = pci::IrqTypes::default().with(pci::IrqType::Intx);
        let vectors = KBox::new(pdev.alloc_irq_vectors(1, 1, types)?, GFP_KERNEL)?;
        // SAFETY: The box's content stays where it is, and is dropped after the registration, the
        // only one to keep this reference.
        let lasting: &'a pci::IrqVectorRegistration<'a> =
            unsafe { &*core::ptr::from_ref(&*vectors) };
        let handler = Handler(control.clone());
        // SAFETY: The registration is dropped with this value.
        let registration = unsafe {
            ThreadedRegistration::new(lasting.index(0)?.into(), flags(), c"vmmci", Ok(handler))
        };
        Ok(Self {
            _registration: KBox::pin_init(registration, GFP_KERNEL)?,
            _vectors: vectors,
        })
    }
}
