//! The machine: starts the guest, runs it, starts it again when it resets itself.

use std::{
    num::NonZeroU64,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use devices::clock::HostTicks;
use kvm_ioctls::{Kvm, VcpuFd};

use crate::{
    board::{Board, BoardConfig, nic::Wire, stock_firmware::StockFirmware},
    boot,
    clock::SystemClock,
    config::{Boot, Config, OnReset},
    console::{Console, SharedOutput, Tap},
    diagnosis::symbols::Symbols,
    error::{Error, Unusable},
    event_loop::EventLoop,
    exit_reason::ExitReason,
    handle::{Handle, Shared},
    irqchip::Interrupts,
    kvm::{cpuid::Cpu, memory, msr, tsc::rdtsc, vcpu},
    run_control::VcpuRunControl,
    sipi::Startups,
    stats::{Counters, trace},
    vcpu_thread::{Entry, VmInstance},
};

/// A machine that has not run yet.
pub struct Machine {
    config: Config,
    kvm: Kvm,
    cpu: Cpu,
    symbols: Symbols,
    output: SharedOutput,
    input: Option<std::os::fd::OwnedFd>,
    trace: Option<Mutex<trace::Writer>>,
    wires: Vec<Wire>,
    shared: Arc<Shared>,
}

impl Machine {
    /// A machine with `config`, whose serial console is `console`. Nothing runs yet; files that are only looked at
    /// when the guest starts (kernel, disks) are not opened yet.
    pub fn new(config: Config, console: Console) -> Result<Self, Error> {
        config.check()?;
        let kvm = Kvm::new()
            .map_err(|errno| Unusable::NoKvm { source: std::io::Error::from_raw_os_error(errno.errno()) })?;
        let cpu = Cpu::of_host(&kvm, &config)?;
        let tsc_hz = cpu.tsc_hz.map_or(0, NonZeroU64::get);
        let symbols = config.symbols.as_deref().map(Symbols::read).transpose()?.unwrap_or_default();
        let trace = config.trace.as_deref().map(|path| trace::Writer::create(path, tsc_hz)).transpose()?;
        let trace = trace.map(Mutex::new);
        // Whoever had to be told the TSC's rate has guessed at it for its own clocks.
        let clock = Arc::new(SystemClock::new(cpu.tsc_hz, config.tsc_hz.is_none()));
        let nics = (0..).zip(&config.nics);
        let wires = nics
            .map(|(index, nic)| Wire::plug_in(nic, index, &(Arc::clone(&clock) as _)))
            .collect::<Result<_, _>>()?;
        let shared = Arc::new(Shared {
            name: config.name.clone(),
            generation: config.generation,
            memory: config.memory,
            cpus: config.cpus,
            clock,
            run_control: Arc::new(VcpuRunControl::new(config.cpus)),
            counters: Arc::new(Mutex::new(Counters::new(tsc_hz))),
            control: Mutex::default(),
        });
        Ok(Self {
            config,
            kvm,
            cpu,
            symbols,
            output: Arc::new(Mutex::new(console.output)),
            input: console.input,
            trace,
            wires,
            shared,
        })
    }

    /// The control side's end of the machine; clones are the same.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Runs the guest until it ends, on the calling thread. A guest that resets itself is started again as vmd does:
    /// everything is made anew, files are opened again.
    pub fn run(mut self) -> Result<ExitReason, Error> {
        loop {
            let (ended, stopping) = self.run_once()?;
            match after(ended, stopping, self.restarts()) {
                After::Restart => {
                    tracing::info!(name = self.config.name, "the guest reset itself and is started again");
                }
                After::End(ended) => {
                    if let Some(trace) = self.trace.take() {
                        trace.into_inner().unwrap_or_else(PoisonError::into_inner).finish()?;
                    }
                    return Ok(ended);
                }
            }
        }
    }

    /// Whether a reset starts the guest again. vmd ends a VM instead that was started with a boot device (`-B`)
    /// (vmd.c, `IMSG_VMDOP_TERMINATE_VM_EVENT`).
    fn restarts(&self) -> bool {
        match self.config.on_reset {
            OnReset::Vmd => !matches!(self.config.boot, Boot::Firmware { device: Some(_), .. }),
            OnReset::Restart => true,
            OnReset::End => false,
        }
    }

    /// One life of the guest: how it ended, and whether it had been told to go down for good.
    fn run_once(&self) -> Result<(ExitReason, bool), Error> {
        let Self { config, shared, .. } = self;
        let map = memory::map(config.generation, config.memory)?;
        let ram = memory::allocate(&map)?;
        let vm = vcpu::create_vm(&self.kvm, &ram)?;
        msr::set_filter(&vm, self.cpu.extensions)?;
        let boot_fd = vcpu::create(&vm, 0)?;
        let other_fds = (1..config.cpus)
            .map(|number| Ok((number, vcpu::create(&vm, number)?)))
            .collect::<Result<Vec<_>, Error>>()?;
        let created = boot_fd.get_sregs().map_err(Error::kvm("to show the guest's system registers"))?;
        let loaded = boot::load(config, &ram, &map.e820(), &created)?;

        let interrupts = Interrupts::new(
            config.generation,
            config.cpus,
            Arc::clone(&shared.clock) as _,
            HostTicks::new(config.host_hz),
            {
                let run_control = Arc::clone(&shared.run_control);
                move |vcpu| run_control.kick(vcpu)
            },
        );
        let board = Board::new(BoardConfig {
            config,
            clock: Arc::clone(&shared.clock) as _,
            interrupts: interrupts.clone(),
            ram: ram.clone(),
            map,
            console: Box::new(Tap::new(
                Arc::clone(&self.output),
                Arc::clone(&shared.counters),
                config.ready.as_deref(),
                config.marks,
            )),
            wires: &self.wires,
            on_end: Box::new({
                let run_control = Arc::clone(&shared.run_control);
                move |end| run_control.end(end.into())
            }),
            on_power_off: Box::new({
                let run_control = Arc::clone(&shared.run_control);
                move || run_control.end(ExitReason::PoweredOff)
            }),
            stock_firmware: loaded
                .firmware
                .filter(|firmware| !firmware.knows_vmd)
                .map(|_| StockFirmware::new()),
        })?;
        let event_loop = Arc::new(EventLoop::new(board, Arc::clone(&shared.clock))?);
        shared.set_works(Some(Arc::clone(&event_loop)));
        let started = rdtsc();
        shared.counters.lock().unwrap_or_else(PoisonError::into_inner).start(started);
        if let Some(trace) = &self.trace {
            trace.lock().unwrap_or_else(PoisonError::into_inner).add(trace::Record::Start);
        }
        let life = VmInstance {
            config,
            cpu: &self.cpu,
            shared,
            event_loop: &event_loop,
            interrupts: &interrupts,
            startups: Startups::new(config.cpus),
            ram: &ram,
            now: &|| shared.clock.now(),
            symbols: &self.symbols,
            trace: self.trace.as_ref(),
            started,
        };
        let entry = Entry { regs: &loaded.regs, sregs: &loaded.sregs, firmware: loaded.firmware.is_some() };
        let result = run_threads(&life, self.input.as_ref().map(AsFd::as_fd), boot_fd, &entry, other_fds);
        shared.set_works(None);
        // Taken even if there is an error: who has left has said how the guest ends.
        let ended = shared.run_control.take_end();
        result?;
        let ended = ended.expect("no virtual CPU leaves before the guest ends");
        Ok((ended, event_loop.with(|board| board.vmmci().stopping())))
    }
}

/// Lets the event thread end, even if another panics: nobody would hear of that while it goes on.
struct StopEventLoop<'a>(&'a EventLoop);

impl Drop for StopEventLoop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Runs one life of the guest: the event thread, the first virtual CPU on the calling thread, and the others on threads
/// of their own.
fn run_threads(
    life: &VmInstance<'_>,
    input: Option<BorrowedFd<'_>>,
    boot_fd: VcpuFd,
    entry: &Entry<'_>,
    other_fds: Vec<(u8, VcpuFd)>,
) -> Result<(), Error> {
    let run_control = &life.shared.run_control;
    thread::scope(|scope| {
        let closing = StopEventLoop(life.event_loop);
        let events = thread::Builder::new()
            .name("events".into())
            .spawn_scoped(scope, || {
                life.event_loop.run_events(input).inspect_err(|_| run_control.end(ExitReason::Killed))
            })
            .map_err(|source| Error::Host { what: "start the event thread", source })?;
        let others: Result<Vec<_>, Error> = other_fds
            .into_iter()
            .map(|(number, fd)| {
                thread::Builder::new()
                    .name(format!("vcpu-{number}"))
                    .spawn_scoped(scope, move || life.run_application_processor(number, fd))
                    .map_err(|source| Error::Host { what: "start a virtual CPU's thread", source })
            })
            .collect();
        let result = match others {
            Ok(others) => {
                others.into_iter().fold(life.run_boot_processor(boot_fd, entry), |result, other| {
                    result.and(other.join().expect("a virtual CPU's thread does not panic"))
                })
            }
            Err(error) => {
                run_control.finish(ExitReason::Killed);
                Err(error)
            }
        };
        drop(closing);
        events.join().expect("the event thread does not panic")?;
        result
    })
}

/// What follows an end of the guest.
#[derive(Debug, PartialEq, Eq)]
enum After {
    Restart,
    End(ExitReason),
}

/// vmd's rules: a reset starts the guest again unless it was told to stop, and a guest that was told to stop may
/// also halt (vmm.c, `vmm_sighdlr`).
fn after(ended: ExitReason, stopping: bool, restarts: bool) -> After {
    match ended {
        ExitReason::Reset | ExitReason::HaltedWithInterruptsOff(_) | ExitReason::PoweredOff if stopping => {
            After::End(ExitReason::Stopped)
        }
        ExitReason::Reset if restarts => After::Restart,
        ended => After::End(ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnosis::At;

    #[test]
    fn a_reset_restarts_unless_the_guest_was_told_to_stop_or_the_user_not_to() {
        assert_eq!(after(ExitReason::Reset, false, true), After::Restart);
        assert_eq!(after(ExitReason::Reset, false, false), After::End(ExitReason::Reset));
        assert_eq!(after(ExitReason::Reset, true, true), After::End(ExitReason::Stopped));
    }

    #[test]
    fn a_halt_is_what_poweroff_comes_to() {
        let halted = ExitReason::HaltedWithInterruptsOff(At::default());
        assert_eq!(after(halted.clone(), true, true), After::End(ExitReason::Stopped));
        assert_eq!(after(halted.clone(), false, true), After::End(halted));
    }

    #[test]
    fn a_death_is_a_death_whatever_was_asked_for() {
        assert_eq!(after(ExitReason::NotFinished, true, true), After::End(ExitReason::NotFinished));
        assert_eq!(after(ExitReason::Killed, true, true), After::End(ExitReason::Killed));
    }
}
