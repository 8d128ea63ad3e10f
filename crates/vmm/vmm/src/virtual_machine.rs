//! The VM: starts the guest, runs it, and restarts it when it resets itself.

use std::{
    num::NonZeroU64,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
};

use devices::{clock::HostTicks, memory_map::MemoryMap};
use kvm_ioctls::{Kvm, VcpuFd};
use parking_lot::Mutex;
use run_control::SipiStates;
use vm_memory::GuestMemoryMmap;

use crate::{
    board::{Board, BoardConfig, nic::NicBackend},
    boot,
    clock::SystemClock,
    config::{Boot, Config, OnReset},
    console::{Console, ConsoleTee, OutputQueue},
    diagnosis::symbols::Symbols,
    error::{Error, Unusable},
    event_loop::EventLoop,
    exit_reason::ExitReason,
    handle::{Handle, SharedVm},
    irqchip::IrqChip,
    kvm::{cpuid::HostCpu, memory, msr, tsc::rdtsc, vcpu},
    run_control::VcpuRunControl,
    stats::{Counters, trace},
    vcpu_thread::VmInstance,
};

/// A VM whose guest has not run yet.
pub struct VirtualMachine {
    config: Config,
    kvm: Kvm,
    cpu: HostCpu,
    symbols: Symbols,
    input: Option<OwnedFd>,
    trace: Option<Mutex<trace::Writer>>,
    nics: Vec<NicBackend>,
    shared: Arc<SharedVm>,
}

impl VirtualMachine {
    /// A VM with `config` and the serial console `console`. Kernel, firmware and disks are opened
    /// later, at each start of the guest; the formats of the disks are settled here.
    pub fn new(mut config: Config, console: Console) -> Result<Self, Error> {
        config.check()?;
        config.settle_formats()?;
        let kvm = Kvm::new()
            .map_err(|errno| Unusable::NoKvm { source: std::io::Error::from_raw_os_error(errno.errno()) })?;
        let cpu = HostCpu::new(&kvm, &config)?;
        let tsc_hz = cpu.tsc_hz.map_or(0, NonZeroU64::get);
        let symbols = config.symbols.as_deref().map(Symbols::read).transpose()?.unwrap_or_default();
        let trace = config.trace.as_deref().map(|path| trace::Writer::create(path, tsc_hz)).transpose()?;
        // A host whose TSC's rate must be configured is a helper VM: its kernel only estimates that
        // rate for its clocks.
        let clock = Arc::new(SystemClock::new(cpu.tsc_hz, config.tsc_hz.is_none()));
        let nics = (0..)
            .zip(&config.nics)
            .map(|(index, nic)| NicBackend::connect(nic, index, &(Arc::clone(&clock) as _)))
            .collect::<Result<_, _>>()?;
        let run_control = Arc::new(VcpuRunControl::new(config.cpus));
        let waiting = Arc::clone(&run_control);
        let output = OutputQueue::start(console.output, move || waiting.kick_every_vcpu())?;
        let shared = Arc::new(SharedVm {
            name: config.name.clone(),
            generation: config.generation,
            memory: config.memory,
            cpus: config.cpus,
            clock,
            run_control,
            counters: Arc::new(Mutex::new(Counters::new(tsc_hz))),
            output,
            event_loop: Mutex::default(),
        });
        Ok(Self {
            config,
            kvm,
            cpu,
            symbols,
            input: console.input,
            trace: trace.map(Mutex::new),
            nics,
            shared,
        })
    }

    /// A handle to control the VM.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Runs the guest on the calling thread until it ends and its console output is written. A guest
    /// that resets itself is restarted as vmd does it: with new devices and memory, and files opened
    /// again.
    pub fn run(mut self) -> Result<ExitReason, Error> {
        let result = self.run_to_end();
        self.shared.output.drain();
        result
    }

    fn run_to_end(&mut self) -> Result<ExitReason, Error> {
        loop {
            let (reason, stopping) = self.run_once()?;
            match after_exit(reason, stopping, self.restarts()) {
                AfterExit::Restart => {
                    tracing::info!(name = self.config.name, "the guest reset itself and is restarted");
                }
                AfterExit::End(reason) => {
                    if let Some(trace) = self.trace.take() {
                        trace.into_inner().finish()?;
                    }
                    return Ok(reason);
                }
            }
        }
    }

    /// Whether a reset restarts the guest. vmd ends a VM that was started with a boot device (`-B`)
    /// (vmd.c, `IMSG_VMDOP_TERMINATE_VM_EVENT`).
    fn restarts(&self) -> bool {
        match self.config.on_reset {
            OnReset::Vmd => !matches!(self.config.boot, Boot::Firmware { device: Some(_), .. }),
            OnReset::Restart => true,
            OnReset::End => false,
        }
    }

    /// Runs the guest from a start to its next exit. Returns the exit reason, and whether the guest
    /// had been asked to shut down for good.
    fn run_once(&self) -> Result<(ExitReason, bool), Error> {
        let Self { config, shared, .. } = self;
        let map = memory::map(&config.capabilities(), config.memory)?;
        let ram = memory::allocate(&map)?;
        let vm = vcpu::create_vm(&self.kvm, &ram)?;
        msr::set_filter(&vm, self.cpu.extensions)?;
        if config.capabilities().hypercall_ends_vm && !vcpu::intercept_hypercalls(&vm) {
            tracing::debug!("this KVM cannot pass on hypercalls: 0x1234 does not end the VM");
        }
        let boot_fd = vcpu::create(&vm, 0)?;
        let other_fds = (1..config.cpus)
            .map(|number| Ok((number, vcpu::create(&vm, number)?)))
            .collect::<Result<Vec<_>, Error>>()?;
        let created = boot_fd.get_sregs().map_err(Error::kvm("get the system registers (KVM_GET_SREGS)"))?;
        let guest = boot::load(config, &ram, &map, &created)?;
        let run_control = Arc::clone(&shared.run_control);
        let irqchip = IrqChip::new(
            &config.capabilities(),
            config.cpus,
            Arc::clone(&shared.clock) as _,
            HostTicks::new(config.host_hz),
            move |vcpu| run_control.kick(vcpu),
        );
        let board = self.board(irqchip.clone(), &ram, map, &guest)?;
        let event_loop = Arc::new(EventLoop::new(board, Arc::clone(&shared.clock))?);
        shared.publish(&event_loop);
        let started = rdtsc();
        shared.counters.lock().start(started);
        if let Some(trace) = &self.trace {
            trace.lock().add(trace::Record::Start);
        }
        let instance = VmInstance {
            config,
            cpu: &self.cpu,
            shared,
            event_loop: &event_loop,
            irqchip: &irqchip,
            sipi: SipiStates::new(config.cpus),
            ram: &ram,
            now: &|| shared.clock.now(),
            symbols: &self.symbols,
            trace: self.trace.as_ref(),
            started,
        };
        let result = run_threads(&instance, self.input.as_ref().map(AsFd::as_fd), boot_fd, &guest, other_fds);
        *shared.event_loop.lock() = None;
        // Taken even after an error, so that it does not end the next run.
        let reason = shared.run_control.take_exit_reason();
        result?;
        let reason = reason.expect("vCPU threads return only after the exit reason is set");
        Ok((reason, event_loop.with(|board| board.vmmci().stopping())))
    }

    /// A board for one run of `guest`.
    fn board(
        &self,
        irqchip: IrqChip,
        ram: &GuestMemoryMmap,
        map: MemoryMap,
        guest: &boot::LoadedGuest,
    ) -> Result<Board, Error> {
        let shared = &self.shared;
        Board::new(BoardConfig {
            config: &self.config,
            clock: Arc::clone(&shared.clock) as _,
            irqchip,
            ram: ram.clone(),
            map,
            console: Box::new(ConsoleTee::new(
                Arc::clone(&shared.output),
                Arc::clone(&shared.counters),
                self.config.ready.as_deref(),
                self.config.marks,
            )),
            nics: &self.nics,
            on_end: Box::new({
                let run_control = Arc::clone(&shared.run_control);
                move |end| run_control.request_exit(end.into())
            }),
            on_power_off: Box::new({
                let run_control = Arc::clone(&shared.run_control);
                move || run_control.request_exit(ExitReason::PoweredOff)
            }),
            stock_firmware: guest.firmware.is_some_and(|firmware| !firmware.knows_vmd),
        })
    }
}

impl Drop for VirtualMachine {
    fn drop(&mut self) {
        self.shared.output.close();
    }
}

/// Stops the event loop when dropped, even by a panic, so that the scope can join its thread.
struct StopEventLoop<'a>(&'a EventLoop);

impl Drop for StopEventLoop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Ends the guest when the event thread exits while the guest runs, by error or panic.
struct EndOnDrop<'a>(&'a VcpuRunControl);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.finish(ExitReason::Killed);
    }
}

/// The result of a thread; a panic goes on in the calling thread.
fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs the guest's threads until it exits: the event loop and the vCPUs from 1 on, each on its own
/// thread, and vCPU 0 on the calling one.
fn run_threads(
    instance: &VmInstance<'_>,
    input: Option<BorrowedFd<'_>>,
    boot_fd: VcpuFd,
    guest: &boot::LoadedGuest,
    other_fds: Vec<(u8, VcpuFd)>,
) -> Result<(), Error> {
    let run_control = &instance.shared.run_control;
    thread::scope(|scope| {
        let stop_event_loop = StopEventLoop(instance.event_loop);
        let events = thread::Builder::new()
            .name("events".into())
            .spawn_scoped(scope, || {
                // It returns without an error only after the guest has exited.
                let _end = EndOnDrop(run_control);
                instance.event_loop.run(input)
            })
            .map_err(|source| Error::Host { what: "start the event thread", source })?;
        let others: Result<Vec<_>, Error> = other_fds
            .into_iter()
            .map(|(number, fd)| {
                thread::Builder::new()
                    .name(format!("vcpu-{number}"))
                    .spawn_scoped(scope, move || instance.run_application_processor(number, fd))
                    .map_err(|source| Error::Host { what: "start a vCPU thread", source })
            })
            .collect();
        let result = match others {
            Ok(others) => others
                .into_iter()
                .fold(instance.run_boot_processor(boot_fd, guest), |result, other| result.and(join(other))),
            Err(error) => {
                run_control.finish(ExitReason::Killed);
                Err(error)
            }
        };
        drop(stop_event_loop);
        join(events)?;
        result
    })
}

/// What follows an exit of the guest.
#[derive(Debug, PartialEq, Eq)]
enum AfterExit {
    Restart,
    End(ExitReason),
}

/// What follows an exit for `reason`, by vmd's rules: a reset restarts the guest unless it was
/// asked to stop, and a guest that was asked to stop may also halt (vmm.c, `vmm_sighdlr`).
fn after_exit(reason: ExitReason, stopping: bool, restarts: bool) -> AfterExit {
    match reason {
        ExitReason::Reset | ExitReason::HaltedWithInterruptsOff(_) | ExitReason::PoweredOff if stopping => {
            AfterExit::End(ExitReason::Stopped)
        }
        ExitReason::Reset if restarts => AfterExit::Restart,
        reason => AfterExit::End(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::GuestLocation;

    #[test]
    fn a_reset_restarts_unless_the_guest_was_asked_to_stop_or_configured_to_end() {
        assert_eq!(after_exit(ExitReason::Reset, false, true), AfterExit::Restart);
        assert_eq!(after_exit(ExitReason::Reset, false, false), AfterExit::End(ExitReason::Reset));
        assert_eq!(after_exit(ExitReason::Reset, true, true), AfterExit::End(ExitReason::Stopped));
    }

    #[test]
    fn a_halt_completes_a_stop() {
        let halted = ExitReason::HaltedWithInterruptsOff(GuestLocation::default());
        assert_eq!(after_exit(halted.clone(), true, true), AfterExit::End(ExitReason::Stopped));
        assert_eq!(after_exit(halted.clone(), false, true), AfterExit::End(halted));
    }

    #[test]
    fn a_kill_stays_a_kill_during_a_stop() {
        assert_eq!(after_exit(ExitReason::NotFinished, true, true), AfterExit::End(ExitReason::NotFinished));
        assert_eq!(after_exit(ExitReason::Killed, true, true), AfterExit::End(ExitReason::Killed));
    }
}
