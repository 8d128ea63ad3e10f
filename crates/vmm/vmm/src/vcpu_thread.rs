//! vCPU threads: enter the guest and handle its exits. Each vCPU has a thread of its own.

use devices::{
    bus::{
        Direction, PortAccess, Width,
        mmio::{self, MmioAccess},
    },
    irqchip::lapic::{StartupIpi, StartupIpis},
    pvclock::HostClocks,
};
use kvm_ioctls::VcpuFd;
use parking_lot::Mutex;
use run_control::{SipiState, SipiStates};
use vm_memory::GuestMemoryMmap;

use crate::{
    board::{Board, PortOutcome, stock_firmware},
    boot,
    config::Config,
    diagnosis::{
        DeviceFault, FirmwareHalt, GuestLocation, OutsideRam, StringIo, VcpuError, symbols::Symbols,
    },
    error::Error,
    event_loop::EventLoop,
    exit_reason::ExitReason,
    handle::SharedVm,
    irqchip::IrqChip,
    kvm::{
        cpuid::HostCpu,
        hypercall,
        msr::{self, Msrs},
        pvclock::PvClock,
        tsc::rdtsc,
        vcpu::{Exit, Vcpu},
    },
    run_control::VcpuRunControl,
    stats::{Counters, Phase, trace},
};

/// Number of the vCPU that runs from power-on.
const BOOT_VCPU: u8 = 0;

/// One run of the guest, from a start to an exit, as its vCPU threads share it.
pub(crate) struct VmInstance<'a> {
    pub(crate) config: &'a Config,
    pub(crate) cpu: &'a HostCpu,
    pub(crate) shared: &'a SharedVm,
    pub(crate) event_loop: &'a EventLoop,
    pub(crate) irqchip: &'a IrqChip,
    pub(crate) sipi: SipiStates,
    pub(crate) ram: &'a GuestMemoryMmap,
    pub(crate) now: &'a (dyn Fn() -> HostClocks + Sync),
    pub(crate) symbols: &'a Symbols,
    pub(crate) trace: Option<&'a Mutex<trace::Writer>>,
    /// TSC at the start.
    pub(crate) started: u64,
}

impl VmInstance<'_> {
    /// Runs vCPU 0, which starts in the state of `guest`, until the guest exits.
    pub(crate) fn run_boot_processor(&self, fd: VcpuFd, guest: &boot::LoadedGuest) -> Result<(), Error> {
        let _stop_all = StopAllOnDrop(self.run_control());
        let mut thread = VcpuThread::new(BOOT_VCPU, fd, self)?;
        thread.vcpu.set_registers(&guest.regs, &guest.sregs)?;
        if guest.firmware.is_some() {
            thread.in_firmware = true;
            thread.phase = Phase::Firmware;
        }
        thread.run()
    }

    /// Runs vCPU `number`, which waits for a SIPI first, until the guest exits.
    pub(crate) fn run_application_processor(&self, number: u8, fd: VcpuFd) -> Result<(), Error> {
        let _stop_all = StopAllOnDrop(self.run_control());
        VcpuThread::new(number, fd, self)?.run()
    }

    fn run_control(&self) -> &VcpuRunControl {
        &self.shared.run_control
    }

    /// Delivers INITs and SIPIs that a vCPU has sent.
    fn deliver(&self, ipis: StartupIpis) {
        for (number, ipi) in ipis {
            match ipi {
                StartupIpi::Init => self.sipi.init(number),
                StartupIpi::Sipi(vector) => self.sipi.sipi(number, vector),
            }
            self.run_control().kick(number);
        }
    }

    fn count(&self, f: impl FnOnce(&mut Counters)) {
        f(&mut self.shared.counters.lock());
    }
}

/// When a vCPU thread exits, even by error or panic, all others are stopped.
struct StopAllOnDrop<'a>(&'a VcpuRunControl);

impl Drop for StopAllOnDrop<'_> {
    fn drop(&mut self) {
        // Ignored if an exit reason is already set.
        self.0.finish(ExitReason::Killed);
    }
}

/// State of a vCPU that is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VcpuState {
    Running,
    /// HLT with interrupts enabled: waits for an interrupt.
    Halted,
    /// HLT with interrupts disabled, on another vCPU than the first: waits for an INIT (`vcpu_halt`
    /// in vm.c of 8.0).
    Stopped,
}

/// A vCPU with what its thread keeps for it.
struct VcpuThread<'a> {
    number: u8,
    vcpu: Vcpu,
    msrs: Msrs,
    pvclock: PvClock<'a>,
    instance: &'a VmInstance<'a>,
    state: VcpuState,
    /// The vCPU's TSC offset: guest TSC − host TSC, modulo 2^64.
    tsc_offset: u64,
    /// Only the firmware has run so far.
    in_firmware: bool,
    /// Phase of the last exit, for statistics only.
    phase: Phase,
}

impl<'a> VcpuThread<'a> {
    fn new(number: u8, fd: VcpuFd, instance: &'a VmInstance<'a>) -> Result<Self, Error> {
        let VmInstance { config, cpu, shared, ram, .. } = instance;
        let vcpu = Vcpu::new(fd, ram);
        let cpuid = cpu.guest_cpuid(config.capabilities(), number, config.cpus)?;
        vcpu.fd().set_cpuid2(&cpuid).map_err(Error::kvm("set the guest's CPUID (KVM_SET_CPUID2)"))?;
        let tsc_offset = shared.clock.tsc_offset();
        if !vcpu.set_tsc_offset(tsc_offset)? && number == BOOT_VCPU {
            tracing::warn!("this KVM cannot set the TSC offset that vmm's guests see (Linux 5.16 can)");
        }
        Ok(Self {
            number,
            vcpu,
            msrs: Msrs::new(&config.capabilities(), cpu.extensions, msr::HostMsrs::open()),
            pvclock: PvClock::new(config.capabilities(), cpu.tsc_hz, instance.now, (*ram).clone()),
            instance,
            state: VcpuState::Running,
            tsc_offset,
            in_firmware: false,
            phase: Phase::Loader,
        })
    }

    /// The vCPU run loop.
    fn run(mut self) -> Result<(), Error> {
        self.vcpu.register(&self.instance.shared.run_control, self.number);
        while self.instance.run_control().wait_until_runnable(self.number) {
            match self.instance.sipi.take(self.number) {
                SipiState::Run if !self.instance.shared.output.is_full() && self.is_runnable() => {
                    self.run_guest()?;
                }
                SipiState::Run | SipiState::Wait => self.instance.run_control().wait_for_kick(self.number),
                SipiState::Start(vector) => self.start(vector)?,
            }
        }
        Ok(())
    }

    /// Whether the vCPU runs, after waking it for a pending interrupt. As vmd, which wakes a halted
    /// vCPU when a line is raised and an interrupt is pending (`vcpu_assert_irq`).
    fn is_runnable(&mut self) -> bool {
        if self.state == VcpuState::Halted && self.interrupt_pending() {
            self.state = VcpuState::Running;
        }
        self.state == VcpuState::Running
    }

    /// Starts the vCPU in real mode at `vector << 12`, after INIT and SIPI.
    fn start(&mut self, vector: u8) -> Result<(), Error> {
        self.instance.run_control().kick(self.number);
        let (regs, sregs) = boot::sipi_state(vector);
        self.vcpu.reset(&regs, &sregs)?;
        if let Some(apic) = self.instance.irqchip.apic() {
            // INIT has reset the LAPIC, but the vCPU may have left the guest with its old CR8
            // since.
            apic.set_cr8(self.number, 0);
        }
        self.state = VcpuState::Running;
        self.phase = Phase::Loader;
        Ok(())
    }

    /// Enters the guest once and handles its exit.
    fn run_guest(&mut self) -> Result<(), Error> {
        self.offer_interrupt()?;
        self.update_tsc_offset()?;
        self.pvclock.before_entry();
        let exit = self.enter()?;
        if self.instance.sipi.overrides_exit(self.number) {
            // INIT takes effect before the exit is handled (`vcpu_run_loop` in vm.c of 8.0).
            return Ok(());
        }
        let (rip, tsc) = (self.vcpu.linear_rip(), rdtsc());
        self.phase = self.phase.next(&exit, rip);
        self.instance.count(|counters| counters.exit(&exit, self.phase, tsc));
        if self.in_firmware && stock_firmware::has_left_firmware(rip) {
            self.in_firmware = false;
            self.instance.event_loop.with(Board::end_firmware_concessions);
        }
        if let Some(reason) = self.handle(exit, rip, tsc) {
            self.instance.run_control().finish(reason);
        }
        Ok(())
    }

    fn interrupt_pending(&self) -> bool {
        self.instance.irqchip.pending(self.number)
    }

    /// Updates the vCPU's TSC offset if a suspend of the host has changed it.
    fn update_tsc_offset(&mut self) -> Result<(), Error> {
        let offset = self.instance.shared.clock.tsc_offset();
        if offset != self.tsc_offset {
            self.tsc_offset = offset;
            self.vcpu.set_tsc_offset(offset)?;
        }
        Ok(())
    }

    /// Runs the guest until it exits. CR8 is the LAPIC's task priority, which KVM keeps while the
    /// guest runs.
    fn enter(&mut self) -> Result<Exit, Error> {
        let apic = self.instance.irqchip.apic();
        if let Some(apic) = apic {
            self.vcpu.set_cr8(apic.cr8(self.number));
        }
        let exit = self.instance.run_control().run_guest(self.number, || self.vcpu.run())?;
        if let Some(apic) = apic {
            apic.set_cr8(self.number, self.vcpu.cr8());
        }
        Ok(exit)
    }

    /// Injects the most urgent interrupt if the guest can take one now, and requests an exit when
    /// it can take the next.
    fn offer_interrupt(&mut self) -> Result<(), Error> {
        if self.interrupt_pending()
            && self.vcpu.ready_for_interrupt()
            && let Some(vector) = self.instance.irqchip.acknowledge(self.number)
        {
            self.vcpu.inject(vector)?;
            self.instance.count(|counters| counters.interrupt(vector));
        }
        self.vcpu.want_interrupt_window(self.interrupt_pending());
        Ok(())
    }

    /// The instruction of the last exit.
    fn location(&mut self) -> GuestLocation {
        let rip = self.vcpu.linear_rip();
        GuestLocation { rip, symbol: self.instance.symbols.name(rip) }
    }

    /// Handles an exit at linear address `rip` and TSC `tsc`. Returns the exit reason if it ends
    /// the guest.
    fn handle(&mut self, exit: Exit, rip: u64, tsc: u64) -> Option<ExitReason> {
        match exit {
            Exit::Io { port, width, direction, count: 1 } => {
                let mut access = PortAccess { port, width, direction, eax: self.vcpu.eax() };
                let reason = self.port_access(&mut access, rip, tsc);
                if direction == Direction::In {
                    self.vcpu.finish_in(width, access.eax);
                }
                reason
            }
            Exit::Io { port, width, direction, count } => {
                if self.instance.event_loop.with(|board| board.allows_string_io(port, direction, rip)) {
                    return self.string_in(port, width, count, rip, tsc);
                }
                Some(ExitReason::StringIo(StringIo::new(port, width, direction, count, self.location())))
            }
            Exit::Hlt => self.halt(),
            Exit::Window | Exit::Interrupted => None,
            Exit::TripleFault => Some(ExitReason::Reset),
            Exit::Hypercall { number, cpl } => self.hypercall(number, cpl),
            Exit::Mmio { address, width, value }
                if self.instance.irqchip.apic().is_some()
                    && (mmio::WINDOW_BASE..=mmio::WINDOW_END).contains(&address) =>
            {
                self.mmio(address, width, value);
                None
            }
            Exit::Mmio { address, width, value } => {
                let (write, at) = (value.is_some(), self.location());
                Some(ExitReason::OutsideRam(OutsideRam { address, write, width, value, at }))
            }
            Exit::ReadMsr { index } => {
                self.read_msr(index);
                None
            }
            Exit::WriteMsr { index, value } => {
                self.write_msr(index, value);
                None
            }
            Exit::Broken(reason) => Some(ExitReason::VcpuError(VcpuError { reason, at: self.location() })),
        }
    }

    /// Handles HLT: with interrupts disabled it ends the guest on vCPU 0 and stops any other vCPU.
    /// While only the firmware has run, that is its panic.
    fn halt(&mut self) -> Option<ExitReason> {
        if self.vcpu.interrupts_enabled() {
            self.state = VcpuState::Halted;
        } else if self.number == BOOT_VCPU {
            let at = self.location();
            return Some(if self.in_firmware {
                ExitReason::FirmwareHalted(FirmwareHalt::new(self.instance.config.pci_devices(), at))
            } else {
                ExitReason::HaltedWithInterruptsOff(at)
            });
        } else {
            self.state = VcpuState::Stopped;
        }
        None
    }

    /// Handles a hypercall of `number` at privilege level `cpl`. Returns the exit reason if it ends
    /// the guest; all others fail.
    fn hypercall(&mut self, number: u64, cpl: u32) -> Option<ExitReason> {
        if hypercall::ends_vm(&self.instance.config.capabilities(), number, cpl) {
            return Some(ExitReason::Hypercall(self.location()));
        }
        self.vcpu.finish_hypercall(hypercall::ENOSYS);
        None
    }

    /// Has the board handle `access`, counts and records it. Returns the exit reason if it ends the
    /// guest.
    fn port_access(&mut self, access: &mut PortAccess, rip: u64, tsc: u64) -> Option<ExitReason> {
        let (outcome, failed_outputs) = self.instance.event_loop.with(|board| {
            let outcome = board.port_access(access, rip);
            (outcome, board.failed_outputs())
        });
        let (device, fault) = match outcome {
            PortOutcome::Answered(device) => (device, None),
            PortOutcome::Fault(device, fault) => (device, Some(fault)),
            PortOutcome::Reset => return Some(ExitReason::Reset),
        };
        self.instance.count(|counters| {
            counters.port(access.port, access.direction, device);
            counters.failed_outputs(failed_outputs);
        });
        if let Some(trace) = &self.instance.trace {
            let ticks = tsc.wrapping_sub(self.instance.started);
            let record = trace::Record::Access { ticks, vcpu: self.number, access: *access };
            trace.lock().add(record);
        }
        fault.map(|fault| ExitReason::DeviceFault(DeviceFault::new(&fault, self.location())))
    }

    /// Emulates a string IN of `count` items. Returns the exit reason if it ends the guest.
    fn string_in(&mut self, port: u16, width: Width, count: u32, rip: u64, tsc: u64) -> Option<ExitReason> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            let mut access = PortAccess::input(port, width, u32::MAX);
            if let Some(reason) = self.port_access(&mut access, rip, tsc) {
                return Some(reason);
            }
            bytes.extend_from_slice(&access.eax.to_le_bytes()[..width.bytes()]);
        }
        self.vcpu.finish_string_in(&bytes);
        None
    }

    /// Handles an access in the memory window of 8.0.
    ///
    /// vmd decodes the instruction. It knows only the common ones, and ends the VM at all others
    /// and at all but MOV where the device refuses the access. KVM decodes the instruction here and
    /// does not tell which it was: all of them work.
    fn mmio(&mut self, address: u64, width: usize, value: Option<u64>) {
        let size = width as u8;
        let mut access =
            value.map_or_else(|| MmioAccess::read(address, size), |v| MmioAccess::write(address, size, v));
        let (device, result) = self.instance.event_loop.with(|board| board.mmio(self.number, &mut access));
        match result {
            Ok(ipis) => self.instance.deliver(ipis),
            Err(refused) => tracing::debug!(%refused, "at {}", self.location()),
        }
        if access.direction == Direction::In {
            self.vcpu.finish_mmio_read(access.value());
        }
        self.instance.count(|counters| counters.device(access.direction, device));
    }

    fn read_msr(&mut self, index: u32) {
        if let Some(apic) = self.instance.irqchip.apic_with_msr(index) {
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
        if let Some(apic) = self.instance.irqchip.apic_with_msr(index) {
            // Holds the board lock and re-arms its timer if needed.
            let result = self.instance.event_loop.with(|_| apic.write_msr(self.number, index, value));
            self.vcpu.finish_write_msr(result.is_ok());
            self.instance.deliver(result.unwrap_or_default());
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
