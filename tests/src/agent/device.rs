//! The words about the control device: driven from user space, and by the kernel's driver.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsFd,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use guest_tests::{
    driver::{DRIVER, driven, shown},
    event::{Counts, Event},
    input,
};
use rustix::{
    io::Errno,
    system::{delete_module, finit_module},
    time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic},
};
use vmmci_protocol::{Action, Driver};
use vmmci_sysfs::{Bar, FUNCTIONS, Function};

use crate::send;

/// While this file exists, the guest does not go down.
pub(crate) const STAY: &str = "/stay";
/// A line for each time that the kernel wanted it to.
pub(crate) const TOLD: &str = "/told";

/// The driver as a module.
const MODULE: &str = "/modules/vmmci.ko";

/// Finds the control device among the PCI functions and switches it on.
fn control_device() -> io::Result<Driver<Bar>> {
    let opened = Function::find(Path::new(FUNCTIONS)).and_then(|function| function.open());
    Driver::probe(Bar::new(opened.map_err(io::Error::other)?.bar)).map_err(io::Error::other)
}

pub(crate) fn deaf() -> io::Result<()> {
    control_device().map(drop)
}

pub(crate) fn obey() -> io::Result<()> {
    let mut device = control_device()?;
    send(&Event::Waiting("vmmci".to_owned()));
    loop {
        match device.poll(true) {
            Some(Action::PowerOff | Action::Reboot) => {
                send(&Event::ToldToGoDown);
                return Ok(());
            }
            Some(Action::SetClock) => {
                let host = device.host_time().ok_or_else(|| io::Error::other("no time of the host"))?;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
                send(&Event::Behind(i64::from(host.seconds) - now.as_secs().cast_signed()));
                device.clock_is_set();
            }
            None => thread::sleep(Duration::from_millis(200)),
        }
    }
}

pub(crate) fn driver() -> io::Result<()> {
    let resource = fs::read_to_string(driven()?.join("resource"))?;
    let first = resource.split_whitespace().next().and_then(|word| word.strip_prefix("0x"));
    let port = first.and_then(|digits| u64::from_str_radix(digits, 16).ok()?.try_into().ok());
    let port = port.ok_or_else(|| io::Error::other(format!("no I/O port in `{resource}`")))?;
    send(&Event::Driver(port));
    Ok(())
}

/// The name of a function on its bus.
fn bus_name(function: &Path) -> String {
    function.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn unbind(function: &Path) -> io::Result<()> {
    fs::write(Path::new(DRIVER).join("unbind"), bus_name(function))?;
    if function.exists() {
        return Err(io::Error::other("it is still bound"));
    }
    Ok(())
}

fn bind(function: &Path) -> io::Result<()> {
    fs::write(Path::new(DRIVER).join("bind"), bus_name(function))
}

pub(crate) fn rebind() -> io::Result<()> {
    let function = driven()?;
    for _ in 0..10 {
        unbind(&function)?;
        bind(&function)?;
        shown(&function, "offset_ns")?;
    }
    Ok(())
}

pub(crate) fn reload() -> io::Result<()> {
    let function = driven()?;
    for _ in 0..10 {
        delete_module(c"vmmci", 0)?;
        if function.exists() || Path::new(DRIVER).exists() {
            return Err(io::Error::other("the driver is still there"));
        }
        finit_module(File::open(MODULE)?, c"", 0)?;
        shown(&function, "offset_ns")?;
    }
    Ok(())
}

pub(crate) fn foreign() -> io::Result<()> {
    const IDS: [&str; 2] = ["0x1005", "0x1044"];
    let function = fs::read_dir(FUNCTIONS)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| fs::read_to_string(path.join("device")).is_ok_and(|id| IDS.contains(&id.trim())))
        .ok_or_else(|| io::Error::other("no entropy device"))?;
    let driver = fs::canonicalize(function.join("driver"))?;
    fs::write(driver.join("unbind"), bus_name(&function))?;
    fs::write(function.join("driver_override"), "vmmci")?;
    let refused = bind(&function).err().and_then(|error| error.raw_os_error());
    fs::write(function.join("driver_override"), "\n")?;
    fs::write(driver.join("bind"), bus_name(&function))?;
    send(&Event::ForeignRefused(refused));
    Ok(())
}

/// Compares the PTP clock with the host's time that the system clock and the driver's offset come to.
pub(crate) fn phc() -> io::Result<()> {
    let function = driven()?;
    let name = fs::read_to_string("/sys/class/ptp/ptp0/clock_name")?;
    let clock = OpenOptions::new().read(true).write(true).open("/dev/ptp0")?;
    let nanos = |time: Timespec| time.tv_sec * 1_000_000_000 + time.tv_nsec;
    let mut distance = i64::MAX;
    for _ in 0..100 {
        let offset = shown(&function, "offset_ns")?;
        let before = nanos(clock_gettime(ClockId::Realtime));
        let host = nanos(clock_gettime_dynamic(DynamicClockId::Dynamic(clock.as_fd()))?);
        let after = nanos(clock_gettime(ClockId::Realtime));
        distance = distance.min((before.midpoint(after) - offset - host).abs());
    }
    send(&Event::Phc { name: name.trim().to_owned(), distance });
    Ok(())
}

/// Adds what the driver has counted since it was bound. The step is the largest of all.
fn add_counters(counts: &mut Counts, function: &Path) -> io::Result<()> {
    for name in ["interrupts", "shutdown_commands", "reboot_commands", "syncrtc_commands", "steps"] {
        *counts.driver.entry(name.to_owned()).or_default() += shown(function, name)?;
    }
    counts.step_ms = counts.step_ms.max(shown(function, "last_step_ns")?.abs() / 1_000_000);
    Ok(())
}

/// Memory in slabs that cannot be reclaimed, in KiB.
fn slab() -> io::Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    let size = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    size.ok_or_else(|| io::Error::other("no SUnreclaim in /proc/meminfo"))
}

/// How often the kernel ran each program that would end the guest.
fn requests() -> BTreeMap<String, i64> {
    let mut requests = BTreeMap::new();
    for name in fs::read_to_string(TOLD).unwrap_or_default().lines() {
        *requests.entry(name.to_owned()).or_default() += 1;
    }
    requests
}

/// Sends what happened until a line comes on the console, with what `earlier` has counted.
fn count_until_a_line(word: &str, earlier: impl FnOnce() -> io::Result<Counts>) -> io::Result<()> {
    let (slab_before, before) = (slab()?, requests());
    send(&Event::Waiting(word.to_owned()));
    input::read_line()?;
    let mut counts = earlier()?;
    // Programs that the kernel has just started need some time.
    thread::sleep(Duration::from_secs(1));
    add_counters(&mut counts, &driven()?)?;
    let after = requests();
    let times = |name: &str| {
        after.get(name).copied().unwrap_or_default() - before.get(name).copied().unwrap_or_default()
    };
    counts.poweroff = times("poweroff");
    counts.reboot = times("reboot");
    counts.slab_growth = slab()? - slab_before;
    send(&Event::Counts(counts));
    Ok(())
}

pub(crate) fn counts() -> io::Result<()> {
    count_until_a_line("counts", || Ok(Counts::default()))
}

/// What a driver counted just before it lost the device is lost.
pub(crate) fn churn() -> io::Result<()> {
    let function = driven()?;
    let (end, ended) = mpsc::channel::<()>();
    let churning = thread::spawn(move || -> io::Result<_> {
        let mut counts = Counts::default();
        let mut rebound = 0;
        while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
            add_counters(&mut counts, &function)?;
            unbind(&function)?;
            // The driver refuses a device that reads as all ones until it shows another value.
            while let Err(error) = bind(&function) {
                if error.raw_os_error() != Some(Errno::NODEV.raw_os_error()) {
                    return Err(error);
                }
                thread::sleep(Duration::from_millis(20));
            }
            rebound += 1;
            send(&Event::Again);
        }
        counts.rebound = Some(rebound);
        Ok(counts)
    });
    count_until_a_line("churn", || {
        drop(end);
        churning.join().map_err(|_| io::Error::other("the thread panicked"))?
    })
}
