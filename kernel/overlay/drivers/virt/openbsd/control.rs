// SPDX-License-Identifier: GPL-2.0

//! Interrupts, the host's commands, and what is done about them.

#[cfg(CONFIG_PM_SLEEP)]
use kernel::pm;
use kernel::{
    device::Core,
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
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::msecs_to_jiffies,
    workqueue::{
        self,
        impl_has_delayed_work,
        new_delayed_work,
        DelayedWork,
        WorkItem, //
    },
};

use crate::{
    clock::{
        self,
        HostClock, //
    },
    io::Registers,
    module_parameters,
    protocol::{
        self,
        follow,
        step::Left,
        Action,
        Comparison,
        Driver,
        Features,
        ProbeError, //
    },
    shutdown::{
        Shutdown,
        ShutdownKind, //
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

/// Returns whether the n-th message of a kind is logged: the first ten are, then those after ever
/// longer silence. A host that commands without end does not fill the log.
pub(crate) const fn is_logged(n: u64) -> bool {
    n < 10 || n.is_power_of_two()
}

/// The device's side of the protocol, and whether there may be one.
#[derive(Default)]
struct State {
    /// `None` before the device is started and after it is stopped.
    driver: Option<Driver<Registers>>,
    /// Set when the device is unbound: it is not started again.
    unbound: bool,
}

/// The device in use.
#[pin_data]
pub(crate) struct Control {
    pdev: ARef<pci::Device>,
    registers: Registers,
    /// Only what answers the host locks it: the interrupt thread, and what starts and stops the
    /// device. Those who read the host's clock do not.
    #[pin]
    state: Mutex<State>,
    clock: Arc<HostClock>,
    shutdown: Shutdown,
    last_step: Atomic<i64>,
    /// Whether it was logged that the device shows unknown commands.
    warned: Atomic<bool>,
    /// Whether the guest sleeps, or is about to: commands have to wait then.
    #[cfg(CONFIG_PM_SLEEP)]
    asleep: Atomic<bool>,
    /// The next comparison of the clocks, if they are compared regularly.
    #[pin]
    follower: DelayedWork<Self>,
    pub(crate) counters: Counters,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Control { self.follower }
}

impl Control {
    pub(crate) fn new(
        pdev: ARef<pci::Device>,
        registers: Registers,
        clock: Arc<HostClock>,
    ) -> Result<Arc<Self>> {
        let shutdown = Shutdown::new()?;
        Arc::pin_init(
            pin_init!(Self {
                pdev,
                registers,
                state <- new_mutex!(State::default(), "vmmci::Control::state"),
                clock,
                shutdown,
                last_step: Atomic::new(0),
                warned: Atomic::new(false),
                #[cfg(CONFIG_PM_SLEEP)]
                asleep: Atomic::new(false),
                follower <- new_delayed_work!("vmmci::Control::follower"),
                counters: Counters::default(),
            }),
            GFP_KERNEL,
        )
    }

    /// Tells the host that there is a driver, and does what the host may be waiting for already.
    pub(crate) fn start(self: &Arc<Self>) -> Result {
        let mut state = self.state.lock();
        if state.unbound {
            return Err(ENODEV);
        }
        let driver = Driver::probe(self.registers.clone())
            .inspect_err(|error| dev_err!(self.pdev, "{error}\n"))
            .map_err(|_| ENODEV)?;
        let features = driver.features();
        dev_info!(self.pdev, "the host has features {:#x}\n", features.0);
        state.driver = Some(driver);
        self.clock
            .set_available(features.contains(Features::TIME_SYNC));
        // Not after `unbound` is set, or it would not be cancelled.
        self.clone().schedule_follower();
        drop(state);
        self.handle_commands(false);
        Ok(())
    }

    /// Tells the host that there is no driver any more.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.unbound = true;
        self.clock.set_available(false);
        if let Some(driver) = state.driver.take() {
            driver.remove();
        }
        drop(state);
        self.follower.cancel_sync();
    }

    /// Puts commands off, because the guest is about to sleep: from now on a stop is acknowledged
    /// and wakes the guest, and is carried out after [`Control::resume`].
    #[cfg(CONFIG_PM_SLEEP)]
    pub(crate) fn suspend(&self) {
        self.asleep.store(true, Relaxed);
    }

    /// Sets the device up again after a sleep: after hibernation it is a new VM's.
    #[cfg(CONFIG_PM_SLEEP)]
    pub(crate) fn resume(self: &Arc<Self>) {
        self.asleep.store(false, Relaxed);
        // The error is in the log; the guest goes on without the device.
        let _ = self.start();
    }

    /// Compares the system clock with the host's, if that can be read.
    pub(crate) fn compare(&self) -> Option<Comparison> {
        self.clock.compare()
    }

    /// Returns by how many nanoseconds the clock was set forward the last time.
    pub(crate) fn last_step(&self) -> i64 {
        self.last_step.load(Relaxed)
    }

    /// Carries out the host's commands; `changed` tells that there was an interrupt.
    fn handle_commands(&self, changed: bool) {
        let mut state = self.state.lock();
        let Some(driver) = &mut state.driver else {
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
                pm::wake_up();
                return;
            }
            match action {
                Action::PowerOff => {
                    self.start_shutdown(ShutdownKind::PowerOff, &self.counters.shutdowns)
                }
                Action::Reboot => self.start_shutdown(ShutdownKind::Reboot, &self.counters.reboots),
                Action::SetClock => {
                    self.sync_clock();
                    driver.clock_is_set();
                }
            }
        }
        if let Some(value) = driver.unknown() {
            if !self.warned.xchg(true, Relaxed) {
                dev_warn!(
                    self.pdev,
                    "unknown command {value:#x} ignored, like all that follow\n"
                );
            }
        }
    }

    fn start_shutdown(&self, kind: ShutdownKind, counter: &Counter) {
        let logged = is_logged(counter.count());
        let grace = *module_parameters::grace.value_ref();
        if !self.shutdown.start(kind, grace) {
            return;
        }
        if logged {
            match kind {
                ShutdownKind::PowerOff => dev_info!(self.pdev, "the host wants a shutdown\n"),
                ShutdownKind::Reboot => {
                    dev_info!(self.pdev, "the host wants a reboot, or a stop\n")
                }
            }
        }
    }

    /// Sets the clock, because the host says that its own has jumped.
    fn sync_clock(&self) {
        let logged = is_logged(self.counters.syncs.count());
        let Some(comparison) = self.clock.compare() else {
            if logged {
                dev_warn!(
                    self.pdev,
                    "the host's clock has jumped, and cannot be read\n"
                );
            }
            return;
        };
        let offset = comparison.offset();
        if offset.saturating_abs() < min_step() {
            if logged {
                dev_info!(
                    self.pdev,
                    "the host's clock has jumped, ours is right ({offset} ns)\n"
                );
            }
            return;
        }
        self.set_clock(comparison, logged);
    }

    fn set_clock(&self, comparison: Comparison, logged: bool) {
        let step = comparison.offset().saturating_neg();
        let result = self.clock.set_system_clock(comparison, min_step());
        if result.is_ok() {
            self.counters.steps.count();
            self.last_step.store(step, Relaxed);
        }
        if !logged {
            return;
        }
        let (sign, seconds, micros) = clock::in_words(step);
        match result {
            Ok(left) => {
                dev_info!(self.pdev, "clock set by {sign}{seconds}.{micros:06} s\n");
                match left {
                    Left::Compared(left) if !left.is_within(min_step()) => dev_warn!(
                        self.pdev,
                        "the clock is still off by {} ns\n",
                        left.offset()
                    ),
                    _ => {}
                }
            }
            Err(error) => dev_warn!(
                self.pdev,
                "clock not set by {sign}{seconds}.{micros:06} s: {error:?}\n"
            ),
        }
    }

    /// Has the clocks compared after the interval that the parameter `follow` says, if there is
    /// one.
    fn schedule_follower(self: Arc<Self>) {
        let Some(seconds) = follow::interval(*module_parameters::follow.value_ref()) else {
            return;
        };
        let delay = msecs_to_jiffies(seconds.saturating_mul(1000));
        // It is not scheduled a second time if it is already.
        let _ = workqueue::system_freezable_power_efficient().enqueue_delayed(self, delay);
    }

    /// Sets the clock to the host's if it is far off, unless an NTP daemon sees to that.
    fn follow_host(&self) {
        if clock::is_steered() {
            return;
        }
        let syncs = self.counters.syncs.get();
        let Some(comparison) = self.clock.compare().filter(|c| follow::is_due(*c)) else {
            return;
        };
        // If the host has asked for it meanwhile, the interrupt thread sets the clock. It does not
        // wait for this worker, which has no priority; should both set the clock nevertheless, the
        // second look of either corrects it.
        if self.counters.syncs.get() == syncs {
            self.set_clock(comparison, is_logged(self.counters.steps.get()));
        }
    }
}

impl WorkItem for Control {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.follow_host();
        this.schedule_follower();
    }
}

/// Returns the smallest error of the clock that is corrected when the host asks for it, in
/// nanoseconds.
fn min_step() -> i64 {
    i64::from(*module_parameters::min_step.value_ref()) * 1000
}

/// The handler of the device's interrupt.
struct Handler(Arc<Control>);

impl ThreadedHandler for Handler {
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
        self.0.handle_commands(true);
        IrqReturn::Handled
    }
}

/// The device's interrupt, requested.
///
/// The registration comes first: it is dropped before the vectors that it refers to.
pub(crate) struct Interrupts<'a> {
    _registration: Pin<KBox<ThreadedRegistration<'a, Handler>>>,
    _vectors: KBox<pci::IrqVectorRegistration<'a>>,
}

/// Returns the flags of the interrupt: vmd's first devices have a line each, which stays on while
/// the guest sleeps.
fn flags() -> irq::Flags {
    if cfg!(CONFIG_PM_SLEEP) {
        irq::Flags::SHARED | irq::Flags::NO_SUSPEND
    } else {
        irq::Flags::SHARED
    }
}

impl<'a> Interrupts<'a> {
    pub(crate) fn new(pdev: &'a pci::Device<Core<'_>>, control: &Arc<Control>) -> Result<Self> {
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
