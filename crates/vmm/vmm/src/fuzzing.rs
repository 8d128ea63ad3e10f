//! Scripts of a guest's and the host's actions on the whole board, for tests and the fuzz target
//! `board`: ports, memory-mapped registers, descriptors in rings that overlap, time, frames, resets.

use std::{
    fs::File,
    io::{self, Write as _},
    num::NonZeroU32,
    os::fd::AsRawFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use devices::{
    bus::{
        PortAccess, Width,
        mmio::{self, MmioAccess},
    },
    clock::{Clock, HostTicks, ManualClock},
};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};
use vmd_release::{Disk, DiskFormat, Generation};

use crate::{
    board::{Board, BoardConfig, PortOutcome, nic::NicBackend},
    config::{Boot, Config, Nic, NicBackendConfig},
    error::Error,
    irqchip::IrqChip,
    kvm::memory,
};

/// Memory of the guest in bytes.
const MEMORY: u64 = 8 << 20;
/// Where the rings and buffers of the scripts' drivers are.
const ARENA: u64 = 0x10_0000;
/// The places of rings: so few and so close together that rings overlap.
const PLACES: u8 = 16;
/// Bytes from one place to the next.
const PLACE: u64 = 0x200;
/// Functions on the PCI bus: rng, NIC, disk, CD-ROM, vmmci.
const FUNCTIONS: u16 = 5;
/// vCPUs of 8.0.
const VCPUS: u8 = 2;
/// Calls of [`Board::expire`] after which no deadline may be due, deferred work excepted.
const EXPIRIES: usize = 2;
/// The ports that are not a PCI function's.
const PORTS: [u16; 44] = [
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71, 0x3f8, 0x3f9, 0x3fa,
    0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x510, 0x511, 0x514, 0x518, 0xcf8, 0xcfc, 0xcfd, 0xcfe, 0xcff, 0x60,
    0x64, 0x80, 0x92, 0xcf9, 0x600, 0x604, 0x608, 0xb000, 0xb004, 0xb008, 0x1000, 0xffff, 0x402,
];

/// A board with a guest's memory and without a guest.
pub(crate) struct Machine {
    config: Config,
    clock: Arc<ManualClock>,
    nics: Vec<NicBackend>,
    pub(crate) board: Board,
    irqchip: IrqChip,
    ram: GuestMemoryMmap,
    ends: Arc<AtomicU64>,
    /// The queues that were set up since power-on.
    queues: Vec<Rings>,
    /// Number of passes of the event loop that found deferred work.
    deferred: u64,
    /// The disk's and the CD's files.
    _files: [File; 2],
}

/// A queue as a script's driver has set it up.
#[derive(Clone, Copy)]
struct Rings {
    bar: u16,
    queue: u32,
    table: u64,
    avail: u64,
}

/// A file in memory of `size` bytes, and its path.
fn file(size: u64) -> io::Result<(File, PathBuf)> {
    let file = File::from(memfd_create("vmmlinux-fuzz", MemfdFlags::CLOEXEC)?);
    file.set_len(size)?;
    (&file).write_all(b"a disk")?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok((file, path))
}

impl Machine {
    /// A board of `generation` at power-on, with one of each device. Its NIC has `backend`.
    pub(crate) fn new(generation: Generation, backend: NicBackendConfig) -> Result<Self, Error> {
        let failed = Error::host("create a disk");
        let (disk, disk_path) = file(64 << 10).map_err(&failed)?;
        let (cd, cd_path) = file(64 << 10).map_err(&failed)?;
        let mut config =
            Config::new("fuzz", Boot::Firmware { image: PathBuf::from("/nonexistent"), device: None });
        config.generation = generation;
        config.memory = MEMORY;
        config.cpus = VCPUS.min(config.capabilities().max_vcpus);
        config.host_hz = NonZeroU32::MIN.saturating_add(99);
        config.disks = vec![Disk { path: disk_path, format: Some(DiskFormat::Raw) }];
        config.cdrom = Some(cd_path);
        config.nics = vec![Nic { backend, mac: None, locked: false, local: true }];
        let clock = Arc::new(ManualClock::new(1_000_000_000, 1_795_348_415_505_915_777));
        let nics = (0..)
            .zip(&config.nics)
            .map(|(index, nic)| NicBackend::connect(nic, index, &(Arc::clone(&clock) as _)))
            .collect::<Result<Vec<_>, _>>()?;
        let ends = Arc::new(AtomicU64::new(0));
        let (board, irqchip, ram) = power_on(&config, &clock, &nics, &ends)?;
        Ok(Self {
            config,
            clock,
            nics,
            board,
            irqchip,
            ram,
            ends,
            queues: Vec::new(),
            deferred: 0,
            _files: [disk, cd],
        })
    }

    /// Returns the board to power-on as a restart of the guest does.
    fn restart(&mut self) -> Result<(), Error> {
        self.queues.clear();
        (self.board, self.irqchip, self.ram) = power_on(&self.config, &self.clock, &self.nics, &self.ends)?;
        Ok(())
    }

    /// Executes a script. Bytes beyond its end are zeroes.
    fn play(&mut self, script: &[u8]) -> Result<(), Error> {
        let mut script = Script(script);
        while !script.0.is_empty() {
            let alive = self.step(&mut script) && self.ends.swap(0, Ordering::Relaxed) == 0;
            if !alive {
                self.restart()?;
            }
            self.pass_event_loop();
        }
        Ok(())
    }

    /// Does what the event loop does: fires timers, does deferred work. No timer may stay due.
    fn pass_event_loop(&mut self) {
        self.deferred += u64::from(self.board.deadline() == Some(0));
        for _ in 0..EXPIRIES {
            if self.board.deadline().is_some_and(|at| at <= self.clock.monotonic()) {
                self.board.expire();
            }
        }
        let due = self.board.deadline().filter(|at| (1..=self.clock.monotonic()).contains(at));
        assert_eq!(due, None, "the event loop would spin");
    }

    /// Executes one action. Returns whether the VM goes on.
    fn step(&mut self, script: &mut Script<'_>) -> bool {
        match script.u8() % 16 {
            0..=2 => {
                let port = PORTS[usize::from(script.u8()) % PORTS.len()];
                return self.port(port, script);
            }
            3 | 4 => {
                let port = bar(script) + (script.u16() & 0xfff);
                return self.port(port, script);
            }
            5 => return self.start_driver(script),
            6 => self.write_descriptors(script),
            7 => {
                // The available index and an entry.
                let avail = self.pick(script).map_or_else(|| place(script), |rings| rings.avail);
                self.poke(avail + 2, &script.u16().to_le_bytes());
                self.poke(avail + 4 + 2 * u64::from(script.u8() % 32), &[script.u8() % 16, 0]);
            }
            8 => return self.notify(script),
            9 => self.clock.advance(u64::from(script.u32()) << (script.u8() % 12)),
            10 => {
                for vcpu in 0..self.config.cpus {
                    let pending = self.irqchip.pending(vcpu);
                    let vector = self.irqchip.acknowledge(vcpu);
                    assert!(pending || vector.is_none(), "an interrupt that was not announced");
                }
            }
            11 => self.command(script),
            12 => {
                let room = self.board.console_room();
                self.board.console_input(&script.u32().to_le_bytes()[..room.min(4)]);
            }
            13 => drop(self.board.nic_input(0)),
            14 => self.mmio(script),
            _ => {
                let address = ARENA + u64::from(script.u16());
                let bytes = script.u32().to_le_bytes();
                self.poke(address, &bytes);
            }
        }
        true
    }

    fn port(&mut self, port: u16, script: &mut Script<'_>) -> bool {
        let width = [Width::Byte, Width::Word, Width::Dword][usize::from(script.u8() % 3)];
        let value = if script.u8().is_multiple_of(2) { script.u8().into() } else { script.u32() };
        let access = match script.u8() % 2 {
            0 => PortAccess::output(port, width, value),
            _ => PortAccess::input(port, width, value),
        };
        self.access(access)
    }

    fn access(&mut self, mut access: PortAccess) -> bool {
        matches!(self.board.port_access(&mut access, 0xffff_ffff_8100_0000), PortOutcome::Answered(_))
    }

    fn output(&mut self, port: u16, width: Width, value: u32) -> bool {
        self.access(PortAccess::output(port, width, value))
    }

    fn modern(&self) -> bool {
        self.config.capabilities().virtio_1
    }

    /// One of the queues that were set up.
    fn pick(&self, script: &mut Script<'_>) -> Option<Rings> {
        self.queues.get(usize::from(script.u8()) % self.queues.len().max(1)).copied()
    }

    /// Sets up a queue as a driver does, with its rings at any places.
    fn start_driver(&mut self, script: &mut Script<'_>) -> bool {
        let (bar, queue) = (bar(script), u32::from(script.u8() % 4));
        let [table, avail, used] = std::array::from_fn(|_| place(script));
        if !self.modern() {
            let table = table & !0xfff;
            self.queues.push(Rings { bar, queue, table, avail: table + 16 * 128 });
            return self.output(bar + 0x0e, Width::Word, queue)
                && self.output(bar + 0x08, Width::Dword, (table >> 12) as u32)
                && self.output(bar + 0x12, Width::Byte, 0x0f);
        }
        self.queues.push(Rings { bar, queue, table, avail });
        let mut alive = self.output(bar + 0x08, Width::Dword, 1)
            && self.output(bar + 0x0c, Width::Dword, 1)
            && self.output(bar + 0x16, Width::Word, queue)
            && self.output(bar + 0x18, Width::Word, 1 << (script.u8() % 11));
        for (register, address) in [(0x20, table), (0x28, avail), (0x30, used)] {
            alive = alive && self.output(bar + register, Width::Dword, address as u32);
        }
        alive && self.output(bar + 0x1c, Width::Word, 1) && self.output(bar + 0x14, Width::Byte, 0x0f)
    }

    /// Writes a descriptor, or fills a table with chains of one kind: a request and its answer, a
    /// buffer to send, a buffer to receive.
    fn write_descriptors(&self, script: &mut Script<'_>) {
        const NEXT: u8 = 1;
        const WRITE: u8 = 2;
        let table = self.pick(script).map_or_else(|| place(script), |rings| rings.table);
        let address = ARENA + u64::from(script.u16()) % (u64::from(PLACES) * PLACE);
        // Rarely long: large transfers are slow.
        let length = if script.u8() == 0 { script.u32() } else { u32::from(script.u16() & 0x3ff) };
        let write = |index: u8, flags: u8, next: u8| {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend([flags, 0, next, 0]);
            self.poke(table + 16 * u64::from(index), &bytes);
        };
        match script.u8() % 4 {
            0 => write(script.u8() % 16, script.u8() & 7, script.u8() % 16),
            kind => (0..64).for_each(|index: u8| match kind {
                1 if index.is_multiple_of(2) => write(index, NEXT, index + 1),
                2 => write(index, 0, 0),
                _ => write(index, WRITE, 0),
            }),
        }
    }

    /// Notifies a queue that was set up; seldom any other one, which ends most VMs.
    fn notify(&mut self, script: &mut Script<'_>) -> bool {
        let register = if self.modern() { 0x100 } else { 0x10 };
        let (bar, queue) = match self.pick(script) {
            Some(Rings { bar, queue, .. }) => (bar, queue),
            None if script.u8() < 0xf0 => return true,
            None => (bar(script), u32::from(script.u8() % 4)),
        };
        self.output(bar + register, Width::Word, queue)
    }

    /// A command of the host.
    fn command(&mut self, script: &mut Script<'_>) {
        match script.u8() % 7 {
            0 => drop(self.board.vmmci().stop()),
            1 => drop(self.board.vmmci().reboot()),
            2 => drop(self.board.vmmci().sync_rtc()),
            3 => self.board.vmmci().show(script.u32(), script.u8() % 4),
            4 => self.board.pause(),
            5 => self.board.unpause(),
            _ => self.clock.set_realtime(u64::from(script.u32()) * 1_000_000_000),
        }
    }

    fn mmio(&mut self, script: &mut Script<'_>) {
        let windows = [mmio::WINDOW_BASE, 0xfec0_0000, 0xfee0_0000, mmio::WINDOW_END & !0xfff];
        let address = windows[usize::from(script.u8() % 4)] + u64::from(script.u16() & 0xfff);
        let size = 1 << (script.u8() % 4);
        let mut access = match script.u8() % 2 {
            0 => MmioAccess::write(address, size, script.u32().into()),
            _ => MmioAccess::read(address, size),
        };
        let vcpu = script.u8() % self.config.cpus;
        if self.irqchip.apic().is_some() {
            // A refusal is an answer.
            let _ = self.board.mmio(vcpu, &mut access);
        }
    }

    fn poke(&self, address: u64, bytes: &[u8]) {
        // Beyond the end of RAM nothing is written.
        let _ = self.ram.write_slice(bytes, GuestAddress(address));
    }
}

/// A board at power-on with its interrupt controllers and memory.
fn power_on(
    config: &Config,
    clock: &Arc<ManualClock>,
    nics: &[NicBackend],
    ends: &Arc<AtomicU64>,
) -> Result<(Board, IrqChip, GuestMemoryMmap), Error> {
    let map = memory::map(&config.capabilities(), config.memory)?;
    let ram = memory::allocate(&map)?;
    let ticks = HostTicks::new(config.host_hz);
    let irqchip = IrqChip::new(&config.capabilities(), config.cpus, Arc::clone(clock) as _, ticks, |_| {});
    let count = |ends: &Arc<AtomicU64>| {
        let ends = Arc::clone(ends);
        move || {
            ends.fetch_add(1, Ordering::Relaxed);
        }
    };
    let (end, power_off) = (count(ends), count(ends));
    let board = Board::new(BoardConfig {
        config,
        clock: Arc::clone(clock) as _,
        irqchip: irqchip.clone(),
        ram: ram.clone(),
        map,
        console: Box::new(io::sink()),
        nics,
        on_end: Box::new(move |_| end()),
        on_power_off: Box::new(power_off),
        stock_firmware: false,
    })?;
    Ok((board, irqchip, ram))
}

/// The I/O BAR of a function, where vmd puts it.
fn bar(script: &mut Script<'_>) -> u16 {
    0x1000 * (1 + u16::from(script.u8()) % FUNCTIONS)
}

/// A place for a ring.
fn place(script: &mut Script<'_>) -> u64 {
    ARENA + PLACE * u64::from(script.u8() % PLACES)
}

/// The rest of a script.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn u8(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }
}

/// Executes the script `bytes`, whose first byte chooses the generation, on a board with one of each
/// device. Returns how often a device has left work to the event loop.
pub fn play(bytes: &[u8]) -> Result<u64, Error> {
    let mut script = Script(bytes);
    let generation = Generation::ALL[usize::from(script.u8()) % Generation::ALL.len()];
    let mut machine = Machine::new(generation, NicBackendConfig::Gateway)?;
    machine.play(script.0)?;
    Ok(machine.deferred)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of Marsaglia's xorshift64*.
    fn random(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    #[test]
    fn no_script_breaks_a_board() {
        let mut deferred = 0;
        for (number, seed) in (0..8).zip(1..) {
            let mut script = random(seed, 40_000);
            script[0] = number;
            deferred += play(&script).unwrap();
        }
        assert!(deferred > 0, "no ring has fed itself: the scripts reach too little");
    }
}
