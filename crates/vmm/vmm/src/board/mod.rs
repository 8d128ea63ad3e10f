//! The board: vmd's device models and the ports and addresses at which they answer.

pub(crate) mod nic;
mod smbios;
pub(crate) mod stock_firmware;
mod tap;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use devices::{
    acpi::pm::{self, Pm},
    bus::{
        Direction, PortAccess, PortDevice,
        mmio::{MmioAccess, MmioRefused},
        reset,
    },
    clock::{Clock, HostTicks, Timed},
    irqchip::{
        apic::SharedApic,
        lapic::{self, StartupIpis},
        line::IrqLine,
    },
    legacy::{
        fw_cfg::FwCfg,
        i8253::Pit,
        mc146818::Rtc,
        ns8250::{self, Input, Uart},
    },
    memory_map::MemoryMap,
    pci::{PciBus, PciSlot},
    virtio::{
        Fault, FaultSlot, GuestRam, VirtioDevice, VirtioPci, VirtioResources, blk::Blk, disk, net::Net,
        rng::Rng, scsi::Scsi,
    },
    vmmci::{OnEnd, Vmmci},
};
use vmd_release::{Capabilities, DiskFormat};

use self::{nic::NicBackend, stock_firmware::StockFirmware};
use crate::{
    config::{Boot, Config},
    device_id::DeviceId,
    error::Error,
    irqchip::IrqChip,
};

/// Parts of a board.
pub(crate) struct BoardConfig<'a> {
    pub(crate) config: &'a Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) irqchip: IrqChip,
    pub(crate) ram: GuestRam,
    pub(crate) map: MemoryMap,
    /// Output of the serial console.
    pub(crate) console: Box<dyn io::Write + Send>,
    pub(crate) nics: &'a [NicBackend],
    /// Called when vmd ends the VM.
    pub(crate) on_end: OnEnd,
    /// Called when the guest powers itself off through ACPI.
    pub(crate) on_power_off: Box<dyn FnMut() + Send>,
    /// Whether the firmware is stock SeaBIOS, which needs concessions.
    pub(crate) stock_firmware: bool,
}

/// All devices of a VM. [`crate::event_loop::EventLoop`] holds it behind one lock.
pub(crate) struct Board {
    irqchip: IrqChip,
    /// Whether writes to the reset ports reset the VM (8.0).
    has_reset_ports: bool,
    pit: Pit,
    rtc: Rtc,
    uart: Uart,
    pci: PciBus,
    fw_cfg: FwCfg,
    pm: Option<Pm>,
    nics: Vec<PciSlot<VirtioPci<Net>>>,
    cdrom: Option<PciSlot<VirtioPci<Scsi>>>,
    vmmci: PciSlot<Vmmci>,
    /// Set by the RTC when the host's clock has jumped.
    clock_jumped: Arc<AtomicBool>,
    faults: FaultSlot,
    stock_firmware: Option<StockFirmware>,
}

/// Result of a port access.
pub(crate) enum PortOutcome {
    /// The device answered.
    Answered(DeviceId),
    /// The device answered, and a malformed virtio request ends the VM as it would end vmd's
    /// process.
    Fault(DeviceId, Fault),
    /// The access resets the VM before any device sees it.
    Reset,
}

impl Board {
    /// A board at power-on.
    pub(crate) fn new(parts: BoardConfig<'_>) -> Result<Self, Error> {
        let BoardConfig { config, clock, irqchip, ram, map, console, .. } = parts;
        let capabilities = config.capabilities();
        let ticks = HostTicks::new(config.host_hz);
        let line = |irq| IrqLine::new(irqchip.controller(), irq);
        let mut slots = PciSlots {
            pci: PciBus::new(capabilities, irqchip.controller()),
            capabilities,
            ram: ram.clone(),
            faults: FaultSlot::default(),
        };
        let (nics, cdrom) = slots.add_virtio(config, parts.nics, parts.stock_firmware)?;
        let PciSlots { mut pci, faults, .. } = slots;
        let vmmci =
            pci.add(|line| Vmmci::new(capabilities, Arc::clone(&clock), ticks, line, parts.on_end))?;
        let boot_device = match config.boot {
            Boot::Firmware { device, .. } => device,
            Boot::Direct { .. } => None,
        };
        let clock_jumped = Arc::new(AtomicBool::new(false));
        let on_clock_jump = Box::new({
            let clock_jumped = Arc::clone(&clock_jumped);
            move || clock_jumped.store(true, Ordering::Relaxed)
        });
        let rtc = Rtc::new(capabilities, Arc::clone(&clock), ticks, line(8), map.cmos(), on_clock_jump);
        // After all PCI functions, which it describes.
        let mut fw_cfg = FwCfg::new(ram, &map, &pci, boot_device);
        let has_acpi = capabilities.acpi;
        if has_acpi {
            fw_cfg = fw_cfg.with_rsdp();
        }
        let stock_firmware = parts
            .stock_firmware
            .then(|| StockFirmware::new(&mut fw_cfg, config.memory, config.cpus, has_acpi));
        Ok(Self {
            has_reset_ports: irqchip.apic().is_some(),
            pit: Pit::new(capabilities, Arc::clone(&clock), ticks, line(0)),
            rtc,
            uart: Uart::new(capabilities, Arc::clone(&clock), ticks, line(ns8250::IRQ), console),
            fw_cfg,
            pm: has_acpi.then(|| Pm::new(clock, parts.on_power_off)),
            pci,
            nics,
            cdrom,
            vmmci,
            clock_jumped,
            faults,
            irqchip,
            stock_firmware,
        })
    }

    /// Handles a port access by the instruction at linear address `rip`.
    pub(crate) fn port_access(&mut self, access: &mut PortAccess, rip: u64) -> PortOutcome {
        if self.has_reset_ports && reset::asks_for_reset(access) {
            return PortOutcome::Reset;
        }
        let device = self.answer(access, rip);
        match self.faults.get() {
            None => PortOutcome::Answered(device),
            Some(fault) => PortOutcome::Fault(device, fault.clone()),
        }
    }

    fn answer(&mut self, access: &mut PortAccess, rip: u64) -> DeviceId {
        if let Some(firmware) = &mut self.stock_firmware
            && firmware.access(access, rip)
        {
            return DeviceId::StockFirmware;
        }
        if let Some(pm) = &mut self.pm
            && pm::PORTS.iter().any(|ports| ports.contains(&access.port))
        {
            pm.access(access);
            return DeviceId::Pm;
        }
        // vmd's port map (`init_emulated_hw` in x86_vm.c).
        match access.port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => {
                self.irqchip.access(access);
                DeviceId::Pic
            }
            0x40..=0x43 | 0x61 => {
                self.pit.access(access);
                DeviceId::Pit
            }
            0x70 | 0x71 => {
                self.rtc.access(access);
                DeviceId::Rtc
            }
            0x3f8..=0x3ff => {
                self.uart.access(access);
                DeviceId::Uart
            }
            0x510 | 0x511 | 0x514 | 0x518 => {
                self.fw_cfg.access(access);
                DeviceId::FwCfg
            }
            0xcf8 | 0xcfc..=0xcff => {
                self.pci.access(access);
                DeviceId::Pci
            }
            0x1000..=0xffff => {
                self.pci.access(access);
                DeviceId::Virtio
            }
            _ => {
                if access.direction == Direction::In {
                    access.answer(u32::MAX);
                }
                DeviceId::Unclaimed
            }
        }
    }

    /// Whether a string instruction at linear address `rip` is emulated, which vmd never does.
    pub(crate) fn allows_string_io(&self, port: u16, direction: Direction, rip: u64) -> bool {
        self.stock_firmware.is_some() && StockFirmware::allows_string_io(port, direction, rip)
    }

    /// Ends the concessions to the firmware: other code runs now and must see what vmd shows.
    pub(crate) fn end_firmware_concessions(&mut self) {
        self.fw_cfg.forget_additions();
        if let Some(firmware) = &mut self.stock_firmware {
            firmware.end();
        }
        if let Some(drive) = self.cdrom {
            self.pci.function_mut(drive).model_mut().keep_within_descriptors(false);
        }
    }

    /// Handles an access of `vcpu` in the memory window of 8.0. Returns the device, and the IPIs
    /// that the access sends or the device's refusal.
    pub(crate) fn mmio(
        &mut self,
        vcpu: u8,
        access: &mut MmioAccess,
    ) -> (DeviceId, Result<StartupIpis, MmioRefused>) {
        match self.irqchip.apic().and_then(|apic| apic.mmio(vcpu, access)) {
            Some(result) if access.address < lapic::BASE => (DeviceId::IoApic, result),
            Some(result) => (DeviceId::Lapic, result),
            None => (DeviceId::PciMemory, self.pci.mmio(access).map(|()| StartupIpis::new())),
        }
    }

    /// Time of the next [`Board::expire`] on the board's clock, in nanoseconds: 0 while a device has
    /// deferred work, `None` while no timer runs.
    pub(crate) fn deadline(&self) -> Option<u64> {
        if self.pci.has_deferred() {
            return Some(0);
        }
        let vmmci = self.pci.function(self.vmmci).deadline();
        let apic = self.irqchip.apic().and_then(SharedApic::deadline);
        let deadlines = [self.pit.deadline(), self.rtc.deadline(), self.uart.deadline(), vmmci, apic];
        let nics = self.nics.iter().map(|&nic| self.pci.function(nic).deadline());
        deadlines.into_iter().chain(nics).flatten().min()
    }

    /// Fires all timers that are due, and has the devices do a part of their deferred work.
    pub(crate) fn expire(&mut self) {
        self.pci.run_deferred();
        self.pit.expire();
        self.rtc.expire();
        if self.clock_jumped.swap(false, Ordering::Relaxed) {
            self.vmmci().sync_rtc();
        }
        self.uart.expire();
        self.vmmci().expire();
        for &nic in &self.nics {
            self.pci.function_mut(nic).expire();
        }
        if let Some(apic) = self.irqchip.apic() {
            apic.expire();
        }
    }

    /// Passes console input to the UART. Takes up to [`Board::console_room`] bytes.
    pub(crate) fn console_input(&mut self, bytes: &[u8]) {
        self.uart.push_input(bytes.iter().map(|&byte| Input::Char(byte)));
    }

    /// Bytes of console input that the UART has room for.
    pub(crate) fn console_room(&self) -> usize {
        self.uart.input_room()
    }

    /// Duplicates of the file descriptors that are readable when frames have come, with the indices
    /// of their NICs.
    pub(crate) fn nic_fds(&self) -> io::Result<Vec<(usize, OwnedFd)>> {
        let mut fds = Vec::new();
        for (index, &nic) in self.nics.iter().enumerate() {
            if let Some(fd) = self.pci.function(nic).backend_fd() {
                fds.push((index, fd.try_clone_to_owned()?));
            }
        }
        Ok(fds)
    }

    /// Passes waiting frames to NIC `index`. Returns whether the guest had room; if not, the frames
    /// keep waiting and the caller tries again later.
    pub(crate) fn nic_input(&mut self, index: usize) -> bool {
        let nic = self.pci.function_mut(self.nics[index]);
        let ready = nic.can_receive();
        if ready {
            nic.receive();
        }
        ready
    }

    /// Whether the network of NIC `index` is closed for good.
    pub(crate) fn nic_is_closed(&self, index: usize) -> bool {
        self.pci.function(self.nics[index]).is_closed()
    }

    /// Number of frames for the guest that were lost in front of its receive queues.
    pub(crate) fn failed_outputs(&self) -> u64 {
        self.nics.iter().map(|&nic| self.pci.function(nic).failed_outputs()).sum()
    }

    /// vmd's control device.
    pub(crate) fn vmmci(&mut self) -> &mut Vmmci {
        self.pci.function_mut(self.vmmci)
    }

    /// Stops the timers of PIT, RTC and UART (`pause_vm_md` in x86_vm.c).
    pub(crate) fn pause(&mut self) {
        self.pit.pause();
        self.rtc.pause();
        self.uart.pause();
    }

    /// Restarts them (`unpause_vm_md`).
    pub(crate) fn unpause(&mut self) {
        self.pit.unpause();
        self.rtc.unpause();
        self.uart.unpause();
    }
}

/// The PCI slots while they are filled.
struct PciSlots {
    pci: PciBus,
    capabilities: Capabilities,
    ram: GuestRam,
    faults: FaultSlot,
}

type Nics = Vec<PciSlot<VirtioPci<Net>>>;
type Cdrom = Option<PciSlot<VirtioPci<Scsi>>>;

impl PciSlots {
    /// Adds the virtio devices in vmd's order (`virtio_init` in virtio.c).
    fn add_virtio(
        &mut self,
        config: &Config,
        nic_backends: &[NicBackend],
        stock_firmware: bool,
    ) -> Result<(Nics, Cdrom), Error> {
        self.add(Rng::new())?;
        let mut nics = Vec::new();
        for backend in nic_backends {
            nics.push(self.add(backend.device(&self.capabilities))?);
        }
        for image in &config.disks {
            let disk = disk::open(&image.path, image.format, true)?;
            self.add(Blk::new(disk))?;
        }
        let Some(path) = &config.cdrom else { return Ok((nics, None)) };
        let mut drive = Scsi::new(disk::open(path, Some(DiskFormat::Raw), false)?);
        drive.keep_within_descriptors(stock_firmware);
        Ok((nics, Some(self.add(drive)?)))
    }

    fn add<D: VirtioDevice>(&mut self, device: D) -> Result<PciSlot<VirtioPci<D>>, Error> {
        let Self { pci, capabilities, ram, faults } = self;
        Ok(pci.add(|irq| {
            let resources = VirtioResources {
                capabilities: *capabilities,
                ram: ram.clone(),
                irq,
                faults: faults.clone(),
            };
            VirtioPci::new(device, resources)
        })?)
    }
}
