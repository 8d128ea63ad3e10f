//! The machine: starts the guest, runs it, starts it again when it resets itself.

use std::{
    num::NonZeroU64,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use devices::{
    bus::{Direction, PortAccess},
    clock::HostTicks,
    mmio::{self, MmioAccess},
    reset,
};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::GuestMemoryMmap;

use crate::{
    board::{Board, Parts},
    boot,
    clock::SystemClock,
    config::{Boot, Config, OnReset},
    console::{Console, SharedOutput, Tap},
    cpu::Cpu,
    end::{DeviceFault, Ended, OutsideRam, StringIo, Stuck},
    error::Error,
    gate::{Gate, Pass},
    handle::{Handle, Shared},
    interrupts::{Interrupts, VCPU},
    memory,
    msr::{self, Msrs},
    network::Wire,
    probe::Unusable,
    pvclock::PvClock,
    statistics::{Counters, Phase},
    stock_firmware::StockFirmware,
    symbols::Symbols,
    trace,
    vcpu::{self, Exit, Vcpu, rdtsc},
    works::Works,
};

/// A machine that has not run yet.
pub struct Machine {
    config: Config,
    kvm: Kvm,
    cpu: Cpu,
    symbols: Symbols,
    output: SharedOutput,
    input: Option<std::os::fd::OwnedFd>,
    trace: Option<trace::Writer>,
    wires: Vec<Wire>,
    shared: Arc<Shared>,
}

impl Machine {
    /// A machine with `config`, whose serial console is `console`. Nothing runs yet; files that are only looked at
    /// when the guest starts (kernel, disks) are not opened yet.
    pub fn new(config: Config, console: Console) -> Result<Self, Error> {
        let kvm = Kvm::new()
            .map_err(|errno| Unusable::NoKvm { source: std::io::Error::from_raw_os_error(errno.errno()) })?;
        let cpu = Cpu::of_host(&kvm, &config)?;
        let tsc_hz = cpu.tsc_hz.map_or(0, NonZeroU64::get);
        let symbols = config.symbols.as_deref().map(Symbols::read).transpose()?.unwrap_or_default();
        let trace = config.trace.as_deref().map(|path| trace::Writer::create(path, tsc_hz)).transpose()?;
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
            clock,
            gate: Arc::new(Gate::default()),
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
    pub fn run(mut self) -> Result<Ended, Error> {
        loop {
            let (ended, stopping) = self.run_once()?;
            match after(ended, stopping, self.restarts()) {
                After::Restart => {
                    tracing::info!(name = self.config.name, "the guest reset itself and is started again");
                }
                After::End(ended) => {
                    if let Some(trace) = self.trace.take() {
                        trace.finish()?;
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
    fn run_once(&mut self) -> Result<(Ended, bool), Error> {
        let map = memory::map(self.config.generation, self.config.memory)?;
        let ram = memory::allocate(&map)?;
        let tsc_ahead = self.shared.clock.tsc_ahead();
        let (vm, mut vcpu) = self.processor(&ram, tsc_ahead)?;
        let loaded =
            boot::load(&self.config.boot, self.config.generation, &ram, &map.e820(), &vcpu.sregs()?)?;
        vcpu.set_registers(&loaded.regs, &loaded.sregs)?;

        let shared = Arc::clone(&self.shared);
        let interrupts = Interrupts::new(
            self.config.generation,
            Arc::clone(&shared.clock) as _,
            HostTicks::new(self.config.host_hz),
            {
                let gate = Arc::clone(&shared.gate);
                move || gate.kick()
            },
        );
        let board = Board::new(Parts {
            config: &self.config,
            clock: Arc::clone(&shared.clock) as _,
            interrupts: interrupts.clone(),
            ram: ram.clone(),
            map,
            console: Box::new(Tap::new(
                Arc::clone(&self.output),
                Arc::clone(&shared.counters),
                self.config.ready.as_deref(),
                self.config.marks,
            )),
            wires: &self.wires,
            on_end: Box::new({
                let gate = Arc::clone(&shared.gate);
                move |end| gate.end(end.into())
            }),
            on_power_off: Box::new({
                let gate = Arc::clone(&shared.gate);
                move || gate.end(Ended::PoweredOff)
            }),
            stock_firmware: loaded
                .firmware
                .filter(|firmware| !firmware.knows_vmd)
                .map(|_| StockFirmware::new()),
        })?;
        let works = Arc::new(Works::new(board, Arc::clone(&shared.clock))?);
        shared.set_works(Some(Arc::clone(&works)));
        let now = || shared.clock.now();
        let result = thread::scope(|scope| {
            let input = self.input.as_ref().map(AsFd::as_fd);
            let events = thread::Builder::new()
                .name("events".into())
                .spawn_scoped(scope, {
                    let works_gate = Arc::clone(&shared.gate);
                    let works = Arc::clone(&works);
                    move || works.run_events(input).inspect_err(|_| works_gate.end(Ended::Killed))
                })
                .map_err(|source| Error::Host { what: "start the event thread", source })?;
            let runner = Runner {
                vcpu,
                msrs: Msrs::new(self.cpu.extensions, msr::HostMsrs::open()),
                shared: &shared,
                works: &works,
                pvclock: PvClock::new(self.config.generation, self.cpu.tsc_hz, &now, ram.clone()),
                interrupts: &interrupts,
                symbols: &self.symbols,
                trace: self.trace.as_mut(),
                halted: false,
                tsc_ahead,
                in_firmware: loaded.firmware.is_some(),
                started: 0,
            };
            let ended = runner.run();
            works.close();
            events.join().expect("the event thread does not panic")?;
            ended
        });
        shared.set_works(None);
        drop(vm);
        Ok((result?, works.with(|board| board.vmmci().stopping())))
    }

    fn processor(&self, ram: &GuestMemoryMmap, tsc_ahead: u64) -> Result<(VmFd, Vcpu), Error> {
        let vm = vcpu::create_vm(&self.kvm, ram)?;
        msr::set_filter(&vm, self.cpu.extensions)?;
        let vcpu = Vcpu::new(&vm, ram)?;
        let cpuid = self.cpu.guest_cpuid(self.config.generation)?;
        vcpu.fd().set_cpuid2(&cpuid).map_err(Error::kvm("what CPUID says (KVM_SET_CPUID2)"))?;
        if !vcpu.set_tsc_offset(tsc_ahead)? {
            tracing::warn!(
                "this KVM cannot give the guest the host's TSC without an offset (Linux 5.16 can)"
            );
        }
        Ok((vm, vcpu))
    }
}

/// What follows an end of the guest.
#[derive(Debug, PartialEq, Eq)]
enum After {
    Restart,
    End(Ended),
}

/// vmd's rules: a reset starts the guest again unless it was told to stop, and a guest that was told to stop may
/// also halt (vmm.c, `vmm_sighdlr`).
fn after(ended: Ended, stopping: bool, restarts: bool) -> After {
    match ended {
        Ended::Reset | Ended::HaltedWithInterruptsOff(_) | Ended::PoweredOff if stopping => {
            After::End(Ended::Stopped)
        }
        Ended::Reset if restarts => After::Restart,
        ended => After::End(ended),
    }
}

/// One life of the guest, as the virtual CPU's thread sees it.
struct Runner<'a> {
    vcpu: Vcpu,
    msrs: Msrs,
    shared: &'a Shared,
    works: &'a Works,
    pvclock: PvClock<'a>,
    interrupts: &'a Interrupts,
    symbols: &'a Symbols,
    trace: Option<&'a mut trace::Writer>,
    halted: bool,
    /// How far the guest's TSC is ahead of this host's.
    tsc_ahead: u64,
    in_firmware: bool,
    started: u64,
}

impl Runner<'_> {
    fn run(mut self) -> Result<Ended, Error> {
        self.vcpu.be_kicked_by(&self.shared.gate);
        self.started = rdtsc();
        self.counters(|counters| counters.start(self.started, self.in_firmware));
        if let Some(trace) = &mut self.trace {
            trace.add(trace::Record::Start);
        }
        self.enter_until_the_end()
    }

    fn enter_until_the_end(&mut self) -> Result<Ended, Error> {
        loop {
            if let Pass::End(ended) = self.shared.gate.pass() {
                return Ok(ended);
            }
            if self.halted {
                // As vmd, which lets a halted guest go on when a line goes up and something is pending
                // (`vcpu_assert_irq`).
                if !self.interrupts.pending() {
                    self.shared.gate.sleep();
                    continue;
                }
                self.halted = false;
            }
            self.offer_interrupt()?;
            self.follow_the_tsc()?;
            self.pvclock.before_entry();
            let exit = self.enter()?;
            let (rip, tsc) = (self.vcpu.linear_rip(), rdtsc());
            let phase = self.counters(|counters| counters.exit(&exit, rip, tsc));
            if self.in_firmware && phase != Phase::Firmware {
                self.in_firmware = false;
                self.works.with(Board::firmware_is_done);
            }
            if let Some(ended) = self.handle(exit, rip, tsc) {
                return Ok(ended);
            }
        }
    }

    /// A sleep of the host may have moved its TSC.
    fn follow_the_tsc(&mut self) -> Result<(), Error> {
        let ahead = self.shared.clock.tsc_ahead();
        if ahead != self.tsc_ahead {
            self.tsc_ahead = ahead;
            self.vcpu.set_tsc_offset(ahead)?;
        }
        Ok(())
    }

    /// Runs the guest until it has something. CR8 is the LAPIC's task priority, and KVM keeps it while the guest runs.
    fn enter(&mut self) -> Result<Exit, Error> {
        if let Some(apic) = self.interrupts.apic() {
            self.vcpu.set_cr8(apic.cr8(VCPU));
        }
        let exit = self.shared.gate.guest(|| self.vcpu.run())?;
        if let Some(apic) = self.interrupts.apic() {
            apic.set_cr8(VCPU, self.vcpu.cr8());
        }
        Ok(exit)
    }

    /// Injects the most urgent interrupt if the guest takes one now, and asks to be told when it takes the next.
    fn offer_interrupt(&mut self) -> Result<(), Error> {
        if self.interrupts.pending()
            && self.vcpu.ready_for_interrupt()
            && let Some(vector) = self.interrupts.acknowledge()
        {
            self.vcpu.inject(vector)?;
            self.counters(|counters| counters.interrupt(vector));
        }
        self.vcpu.want_interrupt_window(self.interrupts.pending());
        Ok(())
    }

    fn handle(&mut self, exit: Exit, rip: u64, tsc: u64) -> Option<Ended> {
        match exit {
            Exit::Io { port, width, direction, count: 1 } => {
                let mut access = PortAccess { port, width, direction, eax: self.vcpu.eax() };
                if self.interrupts.apic().is_some() && reset::asks_for_reset(&access) {
                    return Some(Ended::Reset);
                }
                let fault = self.access(&mut access, rip, tsc);
                if direction == Direction::In {
                    self.vcpu.finish_in(width, access.eax);
                }
                return fault;
            }
            Exit::Io { port, width, direction, count } => {
                if !self.works.with(|board| board.allows_string_io(port, direction, rip)) {
                    let at = self.vcpu.at(self.symbols);
                    return Some(Ended::StringIo(StringIo::new(port, width, direction, count, at)));
                }
                let mut bytes = Vec::new();
                for _ in 0..count {
                    let mut access = PortAccess::input(port, width, u32::MAX);
                    if let Some(fault) = self.access(&mut access, rip, tsc) {
                        return Some(fault);
                    }
                    bytes.extend_from_slice(&access.eax.to_le_bytes()[..width.bytes()]);
                }
                self.vcpu.finish_string_in(&bytes);
            }
            Exit::Hlt if self.vcpu.interrupts_enabled() => self.halted = true,
            Exit::Hlt => return Some(Ended::HaltedWithInterruptsOff(self.vcpu.at(self.symbols))),
            Exit::Window | Exit::Interrupted => {}
            Exit::TripleFault => return Some(Ended::Reset),
            Exit::Mmio { address, width, value }
                if self.interrupts.apic().is_some()
                    && (mmio::WINDOW_BASE..=mmio::WINDOW_END).contains(&address) =>
            {
                self.mmio(address, width, value);
            }
            Exit::Mmio { address, width, value } => {
                let (write, at) = (value.is_some(), self.vcpu.at(self.symbols));
                return Some(Ended::OutsideRam(OutsideRam { address, write, width, value, at }));
            }
            Exit::ReadMsr { index } => self.read_msr(index),
            Exit::WriteMsr { index, value } => self.write_msr(index, value),
            Exit::Broken(reason) => {
                return Some(Ended::Stuck(Stuck { reason, at: self.vcpu.at(self.symbols) }));
            }
        }
        None
    }

    /// Lets the board handle an access, counts and records it. A request that is deadly under vmd ends the guest.
    fn access(&mut self, access: &mut PortAccess, rip: u64, tsc: u64) -> Option<Ended> {
        let (device, fault) = self.works.with(|board| {
            let device = board.access(access, rip);
            (device, board.fault().cloned())
        });
        self.counters(|counters| counters.port(access.port, access.direction, device));
        if let Some(trace) = &mut self.trace {
            trace.add(trace::Record::Access { ticks: tsc.wrapping_sub(self.started), access: *access });
        }
        fault.map(|fault| Ended::DeviceFault(DeviceFault::new(&fault, self.vcpu.at(self.symbols))))
    }

    /// An access in the memory window of 8.0.
    ///
    /// vmd decodes the instruction and knows only the common ones: others, and all that a device refuses but MOV, end
    /// the VM there. KVM decodes them here and does not tell which it was, so that they work.
    fn mmio(&mut self, address: u64, width: usize, value: Option<u64>) {
        let size = width as u8;
        let mut access =
            value.map_or_else(|| MmioAccess::read(address, size), |v| MmioAccess::write(address, size, v));
        let (device, result) = self.works.with(|board| board.mmio(&mut access));
        if let Err(refused) = result {
            tracing::debug!(%refused, "at {}", self.vcpu.at(self.symbols));
        }
        if access.direction == Direction::In {
            self.vcpu.finish_mmio_read(access.value());
        }
        self.counters(|counters| counters.device(access.direction, device));
    }

    fn read_msr(&mut self, index: u32) {
        if let Some(apic) = self.interrupts.apic_with_msr(index) {
            let value = apic.read_msr(VCPU, index).ok();
            self.vcpu.finish_read_msr(value);
            return;
        }
        let value = match self.msrs.read(index) {
            msr::Read::Value(value) => Some(value),
            msr::Read::Efer => self.vcpu.sregs().ok().map(|sregs| sregs.efer | msr::EFER_SVME),
            msr::Read::GeneralProtection => None,
        };
        self.vcpu.finish_read_msr(value);
    }

    fn write_msr(&mut self, index: u32, value: u64) {
        if let Some(apic) = self.interrupts.apic_with_msr(index) {
            // With the board, whose timer may have to be set anew. There is no other processor to start.
            let accepted = self.works.with(|_| apic.write_msr(VCPU, index, value)).is_ok();
            self.vcpu.finish_write_msr(accepted);
            return;
        }
        let accepted = match self.msrs.write(index, value) {
            msr::Write::Done => true,
            msr::Write::Efer(efer) => self.vcpu.set_efer(efer),
            msr::Write::SystemTime(value) => self.pvclock.set_system_time(value),
            msr::Write::WallClock(value) => self.pvclock.set_wall_clock(value),
            msr::Write::GeneralProtection => false,
        };
        self.vcpu.finish_write_msr(accepted);
    }

    fn counters<T>(&self, f: impl FnOnce(&mut Counters) -> T) -> T {
        f(&mut self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::end::At;

    #[test]
    fn a_reset_restarts_unless_the_guest_was_told_to_stop_or_the_user_not_to() {
        assert_eq!(after(Ended::Reset, false, true), After::Restart);
        assert_eq!(after(Ended::Reset, false, false), After::End(Ended::Reset));
        assert_eq!(after(Ended::Reset, true, true), After::End(Ended::Stopped));
    }

    #[test]
    fn a_halt_is_what_poweroff_comes_to() {
        let halted = Ended::HaltedWithInterruptsOff(At::default());
        assert_eq!(after(halted.clone(), true, true), After::End(Ended::Stopped));
        assert_eq!(after(halted.clone(), false, true), After::End(halted));
    }

    #[test]
    fn a_death_is_a_death_whatever_was_asked_for() {
        assert_eq!(after(Ended::NotFinished, true, true), After::End(Ended::NotFinished));
        assert_eq!(after(Ended::Killed, true, true), After::End(Ended::Killed));
    }
}
