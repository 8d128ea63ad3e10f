//! The init of the guests in these tests. The kernel hands it words that the tests put on the kernel's command line, and
//! it carries them out one after the other:
//!
//! - `echo`: reads a line from the console and writes it back in capitals;
//! - `disk`: writes a text to the first disk, reads it back through the disk and says so;
//! - `pci`: says which PCI devices there are;
//! - `vmmci`: obeys the host through the control device, and goes on to the next word when told to go down;
//! - `deaf`: switches the control device on and then never looks at it;
//! - `wait`: does nothing for ten minutes;
//! - `clock`: says which clocksource there is, and at which rate it takes the TSC to run;
//! - `steps`: looks for steps backwards of the clocks for a few seconds;
//! - `reset`, `poweroff`, `halt`: ends the guest.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
    termios::tcdrain,
    time::{ClockId, Timespec, clock_gettime},
};
use vmmci::{Action, Driver, Registers};

/// What is written to the disk.
const TEXT: &[u8] = b"written by the guest";

fn main() {
    if let Err(error) = run() {
        println!("guest: failed: {error}");
    }
    end(RebootCommand::PowerOff);
}

/// Ends the guest when the console has sent what was written to it.
fn end(how: RebootCommand) {
    let result = tcdrain(io::stdout()).and_then(|()| reboot(how));
    println!("guest: failed: {result:?}");
}

fn run() -> io::Result<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, target, kind, MountFlags::empty(), None)?;
    }
    let mut modules: Vec<_> =
        fs::read_dir("/modules")?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    modules.sort();
    for module in modules {
        finit_module(File::open(module)?, c"", 0)?;
    }
    println!("guest: ready");
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "echo" => {
                let mut line = String::new();
                io::stdin().lock().read_line(&mut line)?;
                println!("guest: {}", line.trim_end().to_uppercase());
            }
            "disk" => disk(Path::new("/dev/vda"))?,
            "pci" => pci()?,
            "vmmci" => obey(&mut control_device()?)?,
            "deaf" => {
                let _device = control_device()?;
                println!("guest: the control device is on");
            }
            "wait" => thread::sleep(Duration::from_secs(600)),
            "reset" => end(RebootCommand::Restart),
            "poweroff" => end(RebootCommand::PowerOff),
            "halt" => end(RebootCommand::Halt),
            "clock" => clock()?,
            "steps" => steps(),
            _ => println!("guest: failed: what is `{word}`?"),
        }
    }
    Ok(())
}

/// Waits until the kernel has chosen its clocksource, and measures that.
fn clock() -> io::Result<()> {
    let source = || fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let mut seconds = 0;
    while source()?.trim() == "tsc-early" && seconds < 30 {
        thread::sleep(Duration::from_secs(1));
        seconds += 1;
    }
    println!("guest: clocksource {}", source()?.trim());
    let rate = Command::new("/tscrate").arg("4").output()?;
    print!("guest: {}", String::from_utf8_lossy(&rate.stdout));
    Ok(())
}

/// Reads the clocks in turns, in a loop and after short sleeps.
fn steps() {
    let clocks = [ClockId::Monotonic, ClockId::MonotonicRaw, ClockId::Boottime];
    let now = |clock| {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
        (tv_sec, tv_nsec)
    };
    let (mut last, mut back, start) = (clocks.map(now), 0, Instant::now());
    for round in 0_u64.. {
        let read = clocks.map(now);
        back += read.iter().zip(last).filter(|(read, last)| *read < last).count();
        last = read;
        if round % 100 == 0 {
            if start.elapsed() > Duration::from_secs(3) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
    println!("guest: {back} steps backwards");
}

fn pci() -> io::Result<()> {
    let mut devices: Vec<_> =
        fs::read_dir("/sys/bus/pci/devices")?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    devices.sort();
    for device in devices {
        let read = |name| fs::read_to_string(device.join(name));
        println!("guest: pci {}:{}", read("vendor")?.trim(), read("device")?.trim());
    }
    Ok(())
}

fn disk(path: &Path) -> io::Result<()> {
    let mut disk = OpenOptions::new().read(true).write(true).open(path)?;
    let mut before = vec![0; TEXT.len()];
    disk.read_exact(&mut before)?;
    disk.seek(SeekFrom::Start(512))?;
    disk.write_all(TEXT)?;
    disk.sync_all()?;
    println!("guest: disk begins with `{}`", String::from_utf8_lossy(&before));
    Ok(())
}

/// The registers of the control device through its I/O BAR in sysfs, which any kernel has.
struct Bar(File);

impl Registers for Bar {
    fn read(&self, offset: u16) -> u32 {
        let mut value = [0xff; 4];
        // A device that is gone reads as all ones.
        let _ = self.0.read_exact_at(&mut value, offset.into());
        u32::from_le_bytes(value)
    }

    fn write(&self, offset: u16, value: u32) {
        let _ = self.0.write_all_at(&value.to_le_bytes(), offset.into());
    }
}

/// Finds the control device among the PCI functions and switches it on.
fn control_device() -> io::Result<Driver<Bar>> {
    for entry in fs::read_dir("/sys/bus/pci/devices")? {
        let function = entry?.path();
        let id = |name| fs::read_to_string(function.join(name)).map(|id| id.trim().to_owned());
        if (id("vendor")?.as_str(), id("device")?.as_str()) == ("0x0b5d", "0x0777") {
            fs::write(function.join("enable"), "1")?;
            let bar = OpenOptions::new().read(true).write(true).open(function.join("resource0"))?;
            return Driver::probe(Bar(bar)).map_err(io::Error::other);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no function 0b5d:0777"))
}

/// Does what the host says until that is to go down.
fn obey(device: &mut Driver<Bar>) -> io::Result<()> {
    println!("guest: the control device is on");
    loop {
        match device.poll(true) {
            Some(Action::PowerOff | Action::Reboot) => {
                println!("guest: told to go down");
                return Ok(());
            }
            Some(Action::SetClock) => {
                let host = device.host_time().ok_or_else(|| io::Error::other("no time of the host"))?;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
                println!("guest: behind by {} s", i64::from(host.seconds) - now.as_secs().cast_signed());
                device.clock_is_set();
            }
            None => thread::sleep(Duration::from_millis(200)),
        }
    }
}
