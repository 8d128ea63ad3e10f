//! The board: vmd's device models, and which of them answers which port.

pub(crate) mod nic;
mod smbios;
pub(crate) mod stock_firmware;
mod tap;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use devices::{
    acpi::pm::{self, Pm},
    bus::{
        Direction, PortAccess, PortDevice,
        mmio::{MmioAccess, MmioRefused},
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
    pci::PciBus,
    virtio::{
        Fault, FaultSlot, GuestRam, VirtioDevice, VirtioPci, VirtioResources, blk::Blk, disk, net::Net,
        rng::Rng, scsi::Scsi,
    },
    vmmci::{OnEnd, Vmmci},
};
use vmd_release::Generation;

use self::{nic::Wire, stock_firmware::StockFirmware};
use crate::{
    config::{Boot, Config},
    error::Error,
    irqchip::Interrupts,
};

/// What a board is made from.
pub(crate) struct BoardConfig<'a> {
    pub(crate) config: &'a Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) interrupts: Interrupts,
    pub(crate) ram: GuestRam,
    pub(crate) map: MemoryMap,
    pub(crate) console: Box<dyn io::Write + Send>,
    pub(crate) wires: &'a [Wire],
    /// Called when vmd ends the VM.
    pub(crate) on_end: OnEnd,
    /// Called when the guest powers itself off through ACPI.
    pub(crate) on_power_off: Box<dyn FnMut() + Send>,
    /// Concessions to firmware that does not know vmd.
    pub(crate) stock_firmware: Option<StockFirmware>,
}

/// All devices of a machine.
pub(crate) struct Board {
    interrupts: Interrupts,
    pit: Pit,
    rtc: Rtc,
    uart: Uart,
    pci: PciBus,
    fw_cfg: FwCfg,
    pm: Option<Pm>,
    nics: Vec<Arc<Mutex<VirtioPci<Net>>>>,
    cdrom: Option<Arc<Mutex<VirtioPci<Scsi>>>>,
    vmmci: Arc<Mutex<Vmmci>>,
    faults: FaultSlot,
    stock_firmware: Option<StockFirmware>,
}

/// Name of the ports that no device answers.
const NOBODY: &str = "nobody";

/// A device is left whole by every access, so a panic while it was locked does no harm.
fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// A board that was just switched on.
    pub(crate) fn new(parts: BoardConfig<'_>) -> Result<Self, Error> {
        let BoardConfig {
            config,
            clock,
            interrupts,
            ram,
            map,
            console,
            wires,
            on_end,
            on_power_off,
            stock_firmware,
        } = parts;
        let generation = config.generation;
        let ticks = HostTicks::new(config.host_hz);
        let line = |irq| IrqLine::new(interrupts.controller(), irq);
        let faults = FaultSlot::default();
        let mut slots = Slots {
            pci: PciBus::new(generation, interrupts.controller()),
            generation,
            ram: ram.clone(),
            faults: faults.clone(),
        };
        // vmd's order (`virtio_init` in virtio.c).
        slots.add(Rng::new())?;
        let mut nics = Vec::new();
        for wire in wires {
            nics.push(slots.add(wire.device(generation))?);
        }
        for image in &config.disks {
            let disk = disk::open(&image.path, image.format.map(Into::into), true)?;
            slots.add(Blk::new(disk, generation))?;
        }
        let cdrom = match &config.cdrom {
            Some(path) => {
                let mut drive = Scsi::new(disk::open(path, Some(disk::DiskFormat::Raw), false)?);
                drive.keep_within_descriptors(stock_firmware.is_some());
                Some(slots.add(drive)?)
            }
            None => None,
        };
        let mut pci = slots.pci;
        let vmmci = pci.add(|line| Vmmci::new(generation, Arc::clone(&clock), ticks, line, on_end))?;
        let boot = match config.boot {
            Boot::Firmware { device, .. } => device.map(Into::into),
            Boot::Direct { .. } => None,
        };
        let on_clock_jump = Box::new({
            let vmmci = Arc::clone(&vmmci);
            move || {
                lock(&vmmci).sync_rtc();
            }
        });
        let rtc = Rtc::new(generation, Arc::clone(&clock), ticks, line(8), map.cmos(), on_clock_jump);
        // Last, for it describes the PCI functions.
        let mut fw_cfg = FwCfg::new(ram, &map, &pci, boot);
        let has_acpi = generation.capabilities().acpi;
        if has_acpi {
            fw_cfg = fw_cfg.with_rsdp();
        }
        if stock_firmware.is_some() {
            StockFirmware::inform(&mut fw_cfg, config.memory, config.cpus, has_acpi);
        }
        Ok(Self {
            pit: Pit::new(generation, Arc::clone(&clock), ticks, line(0)),
            rtc,
            uart: Uart::new(generation, Arc::clone(&clock), ticks, line(ns8250::IRQ), console),
            fw_cfg,
            pm: has_acpi.then(|| Pm::new(clock, on_power_off)),
            pci,
            nics,
            cdrom,
            vmmci,
            faults,
            interrupts,
            stock_firmware,
        })
    }

    /// Handles an access by an instruction at linear address `rip`. Returns the name of the device that did.
    pub(crate) fn access(&mut self, access: &mut PortAccess, rip: u64) -> &'static str {
        if let Some(firmware) = &mut self.stock_firmware
            && firmware.access(access, rip)
        {
            return "concession to stock firmware";
        }
        if let Some(pm) = &mut self.pm
            && pm::PORTS.iter().any(|ports| ports.contains(&access.port))
        {
            pm.access(access);
            return "pm";
        }
        // What vmd puts into its port map (`init_emulated_hw` in x86_vm.c).
        match access.port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => {
                self.interrupts.access(access);
                "pic"
            }
            0x40..=0x43 | 0x61 => {
                self.pit.access(access);
                "pit"
            }
            0x70 | 0x71 => {
                self.rtc.access(access);
                "rtc"
            }
            0x3f8..=0x3ff => {
                self.uart.access(access);
                "uart"
            }
            0x510 | 0x511 | 0x514 | 0x518 => {
                self.fw_cfg.access(access);
                "fw_cfg"
            }
            0xcf8 | 0xcfc..=0xcff => {
                self.pci.access(access);
                "pci"
            }
            0x1000..=0xffff => {
                self.pci.access(access);
                "virtio"
            }
            _ => {
                if access.direction == Direction::In {
                    access.answer(u32::MAX);
                }
                NOBODY
            }
        }
    }

    /// Whether a string instruction at linear address `rip` is emulated, which vmd never does.
    pub(crate) fn allows_string_io(&self, port: u16, direction: Direction, rip: u64) -> bool {
        self.stock_firmware.is_some() && StockFirmware::allows_string_io(port, direction, rip)
    }

    /// Something else than the firmware runs now: it is not to see what the firmware was told.
    pub(crate) fn firmware_is_done(&mut self) {
        self.fw_cfg.forget_additions();
        if let Some(firmware) = &mut self.stock_firmware {
            firmware.is_done();
        }
        if let Some(drive) = &self.cdrom {
            lock(drive).model_mut().keep_within_descriptors(false);
        }
    }

    /// Handles an access of `vcpu`'s in the memory window of 8.0. Returns the name of the device that did, and whether it
    /// took it: if so, what virtual CPUs are to be told.
    pub(crate) fn mmio(
        &mut self,
        vcpu: u8,
        access: &mut MmioAccess,
    ) -> (&'static str, Result<StartupIpis, MmioRefused>) {
        match self.interrupts.apic().and_then(|apic| apic.mmio(vcpu, access)) {
            Some(result) if access.address < lapic::BASE => ("ioapic", result),
            Some(result) => ("lapic", result),
            None => ("pci memory", self.pci.mmio(access).map(|()| StartupIpis::new())),
        }
    }

    /// When [`Board::expire`] wants to be called, on the board's clock.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let vmmci = lock(&self.vmmci).deadline();
        let apic = self.interrupts.apic().and_then(SharedApic::deadline);
        let deadlines = [self.pit.deadline(), self.rtc.deadline(), self.uart.deadline(), vmmci, apic];
        deadlines.into_iter().flatten().min()
    }

    /// Does what is due.
    pub(crate) fn expire(&mut self) {
        self.pit.expire();
        self.rtc.expire();
        self.uart.expire();
        lock(&self.vmmci).expire();
        if let Some(apic) = self.interrupts.apic() {
            apic.expire();
        }
    }

    /// The malformed request at which a process of vmd would have died, and the VM with it.
    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.faults.get()
    }

    /// Takes console input; gives how many bytes, which may be fewer than offered.
    pub(crate) fn console_input(&mut self, bytes: &[u8]) -> usize {
        self.uart.push_input(bytes.iter().map(|&byte| Input::Char(byte)))
    }

    /// How many bytes of console input there is room for.
    pub(crate) fn console_room(&self) -> usize {
        self.uart.input_room()
    }

    /// Duplicates of what is to be watched for frames, with the number of the interface.
    pub(crate) fn nic_fds(&self) -> io::Result<Vec<(usize, OwnedFd)>> {
        let mut fds = Vec::new();
        for (index, nic) in self.nics.iter().enumerate() {
            if let Some(fd) = lock(nic).backend_fd() {
                fds.push((index, fd.try_clone_to_owned()?));
            }
        }
        Ok(fds)
    }

    /// Gives the guest what has come for interface `index`. Returns false if it has no room: the caller should stop
    /// to watch for frames and try again a little later.
    pub(crate) fn nic_input(&mut self, index: usize) -> bool {
        let mut nic = lock(&self.nics[index]);
        let ready = nic.can_receive();
        if ready {
            nic.receive();
        }
        ready
    }

    /// vmd's control device.
    pub(crate) fn vmmci(&self) -> MutexGuard<'_, Vmmci> {
        lock(&self.vmmci)
    }

    /// Stops the timers (`pause_vm_md` in x86_vm.c).
    pub(crate) fn pause(&mut self) {
        self.pit.pause();
        self.rtc.pause();
        self.uart.pause();
    }

    /// Lets the timers go on (`unpause_vm_md`).
    pub(crate) fn unpause(&mut self) {
        self.pit.unpause();
        self.rtc.unpause();
        self.uart.unpause();
    }
}

/// The PCI slots while they are filled.
struct Slots {
    pci: PciBus,
    generation: Generation,
    ram: GuestRam,
    faults: FaultSlot,
}

impl Slots {
    fn add<M: VirtioDevice + 'static>(&mut self, model: M) -> Result<Arc<Mutex<VirtioPci<M>>>, Error> {
        let Self { pci, generation, ram, faults } = self;
        Ok(pci.add(|irq| {
            let attachment =
                VirtioResources { generation: *generation, ram: ram.clone(), irq, faults: faults.clone() };
            VirtioPci::new(model, attachment)
        })?)
    }
}
