//! A virtual CPU at work: entering the guest, and what its exits come to. Each runs on a thread of its own.

use std::sync::{Mutex, PoisonError};

use devices::{
    bus::{
        Direction, PortAccess,
        mmio::{self, MmioAccess},
        reset,
    },
    irqchip::lapic::StartupIpis,
    pvclock::HostTime,
};
use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;

use crate::{
    board::Board,
    boot,
    config::Config,
    diagnosis::{DeviceFault, OutsideRam, StringIo, VcpuError, symbols::Symbols},
    error::Error,
    event_loop::EventLoop,
    exit_reason::ExitReason,
    handle::Shared,
    irqchip::Interrupts,
    kvm::{
        cpuid::Cpu,
        msr::{self, Msrs},
        pvclock::PvClock,
        tsc::rdtsc,
        vcpu::{Exit, Vcpu},
    },
    run_control::VcpuRunControl,
    sipi::{SipiState, Startups},
    stats::{Counters, Phase, trace},
};

/// The number of the processor that runs from the beginning.
const BOOT: u8 = 0;

/// What the processors have in common in one life of the guest.
pub(crate) struct VmInstance<'a> {
    pub(crate) config: &'a Config,
    pub(crate) cpu: &'a Cpu,
    pub(crate) shared: &'a Shared,
    pub(crate) event_loop: &'a EventLoop,
    pub(crate) interrupts: &'a Interrupts,
    pub(crate) startups: Startups,
    pub(crate) ram: &'a GuestMemoryMmap,
    pub(crate) now: &'a (dyn Fn() -> HostTime + Sync),
    pub(crate) symbols: &'a Symbols,
    pub(crate) trace: Option<&'a Mutex<trace::Writer>>,
    /// The TSC when it began.
    pub(crate) started: u64,
}

/// Where the processor that runs from the beginning begins.
pub(crate) struct Entry<'a> {
    pub(crate) regs: &'a kvm_regs,
    pub(crate) sregs: &'a kvm_sregs,
    pub(crate) firmware: bool,
}

impl VmInstance<'_> {
    /// Runs the first processor, from `entry` on, until the guest ends.
    pub(crate) fn run_boot_processor(&self, fd: VcpuFd, entry: &Entry<'_>) -> Result<(), Error> {
        let _leaving = StopAllOnDrop(self.run_control());
        let mut processor = Processor::new(BOOT, fd, self)?;
        processor.vcpu.set_registers(entry.regs, entry.sregs)?;
        if entry.firmware {
            processor.phase = Phase::Firmware;
            processor.in_firmware = true;
        }
        processor.run()
    }

    /// Runs another one, which waits until it is started, until the guest ends.
    pub(crate) fn run_application_processor(&self, number: u8, fd: VcpuFd) -> Result<(), Error> {
        let _leaving = StopAllOnDrop(self.run_control());
        Processor::new(number, fd, self)?.run()
    }

    fn run_control(&self) -> &VcpuRunControl {
        &self.shared.run_control
    }

    /// Tells processors what one of them has sent.
    fn tell(&self, orders: StartupIpis) {
        for (number, what) in orders {
            self.startups.tell(number, what);
            self.run_control().kick(number);
        }
    }

    fn counters<T>(&self, f: impl FnOnce(&mut Counters) -> T) -> T {
        f(&mut self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A processor's thread that leaves for whatever reason, which may be an error or a panic, takes all others along.
struct StopAllOnDrop<'a>(&'a VcpuRunControl);

impl Drop for StopAllOnDrop<'_> {
    fn drop(&mut self) {
        // It counts only if nobody has said how the guest ends.
        self.0.finish(ExitReason::Killed);
    }
}

/// What a processor does that nobody has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VcpuState {
    Running,
    /// It waits for an interrupt.
    Halted,
    /// It has halted with interrupts off, and waits for an INIT (`vcpu_halt` in vm.c of 8.0).
    Stopped,
}

/// See the module's text.
struct Processor<'a> {
    number: u8,
    vcpu: Vcpu,
    msrs: Msrs,
    pvclock: PvClock<'a>,
    life: &'a VmInstance<'a>,
    doing: VcpuState,
    /// How far its TSC is ahead of this host's.
    tsc_ahead: u64,
    phase: Phase,
    in_firmware: bool,
}

impl<'a> Processor<'a> {
    fn new(number: u8, fd: VcpuFd, life: &'a VmInstance<'a>) -> Result<Self, Error> {
        let VmInstance { config, cpu, shared, ram, .. } = life;
        let vcpu = Vcpu::new(fd, ram);
        let cpuid = cpu.guest_cpuid(config.generation, number, config.cpus)?;
        vcpu.fd().set_cpuid2(&cpuid).map_err(Error::kvm("what CPUID says (KVM_SET_CPUID2)"))?;
        let tsc_ahead = shared.clock.tsc_ahead();
        if !vcpu.set_tsc_offset(tsc_ahead)? && number == BOOT {
            tracing::warn!(
                "this KVM cannot give the guest the host's TSC without an offset (Linux 5.16 can)"
            );
        }
        Ok(Self {
            number,
            vcpu,
            msrs: Msrs::new(cpu.extensions, msr::HostMsrs::open()),
            pvclock: PvClock::new(config.generation, cpu.tsc_hz, life.now, (*ram).clone()),
            life,
            doing: VcpuState::Running,
            tsc_ahead,
            phase: Phase::Loader,
            in_firmware: false,
        })
    }

    fn run(mut self) -> Result<(), Error> {
        self.vcpu.be_kicked_by(&self.life.shared.run_control, self.number);
        while self.life.run_control().wait_until_runnable(self.number) {
            match self.life.startups.take(self.number) {
                SipiState::GoOn if self.has_to_run() => self.run_guest()?,
                SipiState::GoOn | SipiState::Wait => self.life.run_control().sleep(self.number),
                SipiState::Begin(vector) => self.begin(vector)?,
            }
        }
        Ok(())
    }

    /// Whether it does not wait for something that has not come.
    fn has_to_run(&mut self) -> bool {
        // As vmd, which lets a halted guest go on when a line goes up and something is pending (`vcpu_assert_irq`).
        if self.doing == VcpuState::Halted && self.interrupt_pending() {
            self.doing = VcpuState::Running;
        }
        self.doing == VcpuState::Running
    }

    /// Another processor has started this one.
    fn begin(&mut self, vector: u8) -> Result<(), Error> {
        self.life.run_control().kick(self.number);
        let (regs, sregs) = boot::startup_state(vector);
        self.vcpu.start_anew(&regs, &sregs)?;
        if let Some(apic) = self.life.interrupts.apic() {
            // INIT has reset the LAPIC, but this processor may have come back from the guest with its old CR8 since.
            apic.set_cr8(self.number, 0);
        }
        self.doing = VcpuState::Running;
        self.phase = Phase::Loader;
        Ok(())
    }

    /// Runs the guest until it has something, and does that.
    fn run_guest(&mut self) -> Result<(), Error> {
        self.offer_interrupt()?;
        self.follow_the_tsc()?;
        self.pvclock.before_entry();
        let exit = self.enter()?;
        if self.life.startups.interrupts(self.number) {
            // INIT comes before whatever it was about to do (`vcpu_run_loop` in vm.c of 8.0).
            return Ok(());
        }
        let (rip, tsc) = (self.vcpu.linear_rip(), rdtsc());
        self.phase = self.phase.next(&exit, rip);
        self.life.counters(|counters| counters.exit(&exit, self.phase, tsc));
        if self.in_firmware && self.phase != Phase::Firmware {
            self.in_firmware = false;
            self.life.event_loop.with(Board::firmware_is_done);
        }
        if let Some(ended) = self.handle(exit, rip, tsc) {
            self.life.run_control().finish(ended);
        }
        Ok(())
    }

    fn interrupt_pending(&self) -> bool {
        self.life.interrupts.pending(self.number)
    }

    /// A sleep of the host may have moved its TSC.
    fn follow_the_tsc(&mut self) -> Result<(), Error> {
        let ahead = self.life.shared.clock.tsc_ahead();
        if ahead != self.tsc_ahead {
            self.tsc_ahead = ahead;
            self.vcpu.set_tsc_offset(ahead)?;
        }
        Ok(())
    }

    /// Runs the guest until it has something. CR8 is the LAPIC's task priority, and KVM keeps it while the guest runs.
    fn enter(&mut self) -> Result<Exit, Error> {
        let apic = self.life.interrupts.apic();
        if let Some(apic) = apic {
            self.vcpu.set_cr8(apic.cr8(self.number));
        }
        let exit = self.life.run_control().guest(self.number, || self.vcpu.run())?;
        if let Some(apic) = apic {
            apic.set_cr8(self.number, self.vcpu.cr8());
        }
        Ok(exit)
    }

    /// Injects the most urgent interrupt if the guest takes one now, and asks to be told when it takes the next.
    fn offer_interrupt(&mut self) -> Result<(), Error> {
        if self.interrupt_pending()
            && self.vcpu.ready_for_interrupt()
            && let Some(vector) = self.life.interrupts.acknowledge(self.number)
        {
            self.vcpu.inject(vector)?;
            self.life.counters(|counters| counters.interrupt(vector));
        }
        self.vcpu.want_interrupt_window(self.interrupt_pending());
        Ok(())
    }

    fn handle(&mut self, exit: Exit, rip: u64, tsc: u64) -> Option<ExitReason> {
        match exit {
            Exit::Io { port, width, direction, count: 1 } => {
                let mut access = PortAccess { port, width, direction, eax: self.vcpu.eax() };
                if self.life.interrupts.apic().is_some() && reset::asks_for_reset(&access) {
                    return Some(ExitReason::Reset);
                }
                let fault = self.access(&mut access, rip, tsc);
                if direction == Direction::In {
                    self.vcpu.finish_in(width, access.eax);
                }
                return fault;
            }
            Exit::Io { port, width, direction, count } => {
                if !self.life.event_loop.with(|board| board.allows_string_io(port, direction, rip)) {
                    let at = self.vcpu.at(self.life.symbols);
                    return Some(ExitReason::StringIo(StringIo::new(port, width, direction, count, at)));
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
            Exit::Hlt if self.vcpu.interrupts_enabled() => self.doing = VcpuState::Halted,
            Exit::Hlt if self.number == BOOT => {
                return Some(ExitReason::HaltedWithInterruptsOff(self.vcpu.at(self.life.symbols)));
            }
            Exit::Hlt => self.doing = VcpuState::Stopped,
            Exit::Window | Exit::Interrupted => {}
            Exit::TripleFault => return Some(ExitReason::Reset),
            Exit::Mmio { address, width, value }
                if self.life.interrupts.apic().is_some()
                    && (mmio::WINDOW_BASE..=mmio::WINDOW_END).contains(&address) =>
            {
                self.mmio(address, width, value);
            }
            Exit::Mmio { address, width, value } => {
                let (write, at) = (value.is_some(), self.vcpu.at(self.life.symbols));
                return Some(ExitReason::OutsideRam(OutsideRam { address, write, width, value, at }));
            }
            Exit::ReadMsr { index } => self.read_msr(index),
            Exit::WriteMsr { index, value } => self.write_msr(index, value),
            Exit::Broken(reason) => {
                return Some(ExitReason::VcpuError(VcpuError {
                    reason,
                    at: self.vcpu.at(self.life.symbols),
                }));
            }
        }
        None
    }

    /// Lets the board handle an access, counts and records it. A request that is deadly under vmd ends the guest.
    fn access(&mut self, access: &mut PortAccess, rip: u64, tsc: u64) -> Option<ExitReason> {
        let (device, fault) = self.life.event_loop.with(|board| {
            let device = board.access(access, rip);
            (device, board.fault().cloned())
        });
        self.life.counters(|counters| counters.port(access.port, access.direction, device));
        if let Some(trace) = &self.life.trace {
            let ticks = tsc.wrapping_sub(self.life.started);
            let record = trace::Record::Access { ticks, vcpu: self.number, access: *access };
            trace.lock().unwrap_or_else(PoisonError::into_inner).add(record);
        }
        fault.map(|fault| ExitReason::DeviceFault(DeviceFault::new(&fault, self.vcpu.at(self.life.symbols))))
    }

    /// An access in the memory window of 8.0.
    ///
    /// vmd decodes the instruction and knows only the common ones: others, and all that a device refuses but MOV, end
    /// the VM there. KVM decodes them here and does not tell which it was, so that they work.
    fn mmio(&mut self, address: u64, width: usize, value: Option<u64>) {
        let size = width as u8;
        let mut access =
            value.map_or_else(|| MmioAccess::read(address, size), |v| MmioAccess::write(address, size, v));
        let (device, result) = self.life.event_loop.with(|board| board.mmio(self.number, &mut access));
        match result {
            Ok(orders) => self.life.tell(orders),
            Err(refused) => tracing::debug!(%refused, "at {}", self.vcpu.at(self.life.symbols)),
        }
        if access.direction == Direction::In {
            self.vcpu.finish_mmio_read(access.value());
        }
        self.life.counters(|counters| counters.device(access.direction, device));
    }

    fn read_msr(&mut self, index: u32) {
        if let Some(apic) = self.life.interrupts.apic_with_msr(index) {
            let value = apic.read_msr(self.number, index).ok();
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
        if let Some(apic) = self.life.interrupts.apic_with_msr(index) {
            // With the board, whose timer may have to be set anew.
            let result = self.life.event_loop.with(|_| apic.write_msr(self.number, index, value));
            self.vcpu.finish_write_msr(result.is_ok());
            self.life.tell(result.unwrap_or_default());
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
}
