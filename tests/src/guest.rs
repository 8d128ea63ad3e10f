//! The init of the guests in these tests. The kernel hands it words that the tests put on the kernel's command line, and
//! it carries them out one after the other:
//!
//! - `echo`: reads a line from the console and writes it back in capitals;
//! - `disk`: writes a text to the first disk, reads it back through the disk and says so;
//! - `pci`: says which PCI devices there are;
//! - `vmmci`: obeys the host through the control device, and goes on to the next word when told to go down;
//! - `driver`: looks for the kernel's own driver of the control device;
//! - `rebind`: takes that from the device and gives it back, ten times;
//! - `foreign`: gives the kernel's driver a device that is another: vmd's entropy device;
//! - `clocks`: watches the clocks until the kernel's driver has set one that was behind;
//! - `naps`: says twice that the host has slept, and what the clocks and the scheduler do then;
//! - `phc`: compares the host's clock, as the kernel offers it, with the guest's;
//! - `stay`: when it is told to go down from now on, that is counted and nothing else;
//! - `counts`: reads a line, and says what was counted, and what the kernel's memory is;
//! - `churn`: the same, and until then takes the kernel's driver from the device and gives it back, all the time;
//! - `reload`: the same with the driver's module, which is unloaded and loaded, ten times;
//! - `leaks`: has the kernel look for memory that nobody knows of;
//! - `leaky`: loads a module that loses memory;
//! - `nap`: sleeps until something wakes it (suspend to idle);
//! - `kexec`: goes on to another kernel, whose words come after `/`;
//! - `deaf`: switches the control device on and then never looks at it;
//! - `sleeps`: sleeps for times of 0.1 ms to 1 s and says how long that took, the quicker ones and at most;
//! - `idle`: does nothing for ten seconds, between two marks, and says how many interrupts came;
//! - `compute`: computes for three seconds between two marks, and says how many interrupts came;
//! - `reads`: reads 4 KiB from a hundred places of the first disk, between two marks;
//! - `crowd`: from now on, four threads compute;
//! - `busy`: computes for three seconds beside a thread that wants to sleep 1 ms at a time, and says how often it could;
//! - `cpus`: computes on all processors at once, lets them wake each other, and says what each of them did;
//! - `hotplug`: takes the second processor away and brings it back;
//! - `ticks`: holds jiffies and the date against the clock, over some seconds of sleeps;
//! - `wait`: does nothing for ten minutes;
//! - `clock`: says which clocksource there is, and at which rate it takes the TSC to run;
//! - `steps`: looks for steps backwards of the clocks for a second;
//! - `doctor`: has it examined, by root and by nobody;
//! - `reset`, `poweroff`, `halt`: ends the guest.
//!
//! As `/sbin/reboot` or `/sbin/poweroff`, which the kernel runs when the host wants the guest to go down, it does so.

#![expect(clippy::print_stdout, reason = "the console is always there")]

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, Read, Seek, SeekFrom, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::AsFd,
        unix::{fs::FileExt, process::CommandExt},
    },
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use guest_tests::{
    driver::{DRIVER, driven, shown},
    init::mount_usual,
};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
    system::{RebootCommand, delete_module, finit_module, reboot},
    termios::tcdrain,
    thread::{CpuSet, sched_getcpu, sched_setaffinity},
    time::{
        ClockId, DynamicClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
        clock_gettime, clock_gettime_dynamic, timerfd_create, timerfd_settime,
    },
};
use vmmci_protocol::{Action, Driver};
use vmmci_sysfs::{Bar, FUNCTIONS, Function};

/// What is written to the disk.
const TEXT: &[u8] = b"written by the guest";

/// How many times the disk is read, at places a mebibyte apart.
const READS: u64 = 100;

/// The name under which this program does nothing but sleep for a while.
const SLEEPER: &str = "sleeper";
/// How long that is: longer than it takes until the clock is set after a host's sleep.
const ASLEEP: Duration = Duration::from_secs(8);

fn main() {
    let name = std::env::args().next().unwrap_or_default();
    if name == SLEEPER {
        return thread::sleep(ASLEEP);
    }
    if let Some(name) = name.strip_prefix("/sbin/") {
        return told_by_the_kernel(name);
    }
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
    mount_usual()?;
    let mut modules: Vec<_> =
        fs::read_dir("/modules")?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    modules.sort();
    for module in modules {
        finit_module(File::open(module)?, c"", 0)?;
    }
    fs::create_dir_all("/sbin")?;
    for name in ["/sbin/reboot", "/sbin/poweroff"] {
        std::os::unix::fs::symlink("/init", name)?;
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
            "sleeps" => sleeps(),
            "idle" => idle()?,
            "compute" => compute()?,
            "reads" => reads(Path::new("/dev/vda"))?,
            "crowd" => crowd(),
            "busy" => busy(),
            "cpus" => cpus()?,
            "hotplug" => hotplug()?,
            "ticks" => ticks()?,
            // The interval of the random number generator's reseeds grows until two minutes after boot.
            "settle" => thread::sleep(Duration::from_secs(150)),
            "wait" => thread::sleep(Duration::from_mins(10)),
            "driver" => {
                let function = driven()?;
                let resource = fs::read_to_string(function.join("resource"))?;
                let registers = resource.split_whitespace().next().unwrap_or_default();
                println!("guest: {} has a driver, registers at {registers}", function.display());
            }
            "rebind" => rebind()?,
            "foreign" => foreign()?,
            "clocks" => clocks()?,
            "naps" => naps()?,
            "phc" => phc()?,
            "stay" => fs::write(STAY, "")?,
            "counts" => counts(|| Ok(Counts::new()))?,
            "churn" => churn()?,
            "reload" => reload()?,
            "leaks" => leaks()?,
            "leaky" => finit_module(File::open("/leaky.ko")?, c"", 0)?,
            "nap" => nap()?,
            "kexec" => kexec()?,
            "/" => break,
            "doctor" => doctor()?,
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

/// Shows what `vmmlinux-doctor` has to say, which is on its way from us to the console in the order in which we say it.
fn doctor() -> io::Result<()> {
    for (user, id, options) in [("root", 0, ["--seconds", "3"].as_slice()), ("nobody", 65534, &["--quick"])] {
        let output = Command::new("/vmmlinux-doctor").arg("--json").args(options).uid(id).gid(id).output()?;
        println!("guest: {user} begins");
        print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("guest: {user} ends with {}", output.status.code().unwrap_or(-1));
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
    let rate = Command::new("/tscrate").arg("2").output()?;
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
            if start.elapsed() > Duration::from_secs(1) {
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

/// How long a sleep of `time` takes.
fn sleep(time: Duration) -> Duration {
    let start = Instant::now();
    thread::sleep(time);
    start.elapsed()
}

/// Says the lower quartile, which a busy host does not move by much, and the longest.
fn sleeps() {
    for (micros, times) in
        [(100, 41), (1_000, 41), (5_000, 41), (10_000, 41), (50_000, 15), (100_000, 9), (1_000_000, 3)]
    {
        let mut took: Vec<_> = (0..times).map(|_| sleep(Duration::from_micros(micros)).as_micros()).collect();
        took.sort_unstable();
        println!("guest: {micros} us took {} us, at most {} us", took[times / 4], took[times - 1]);
    }
}

/// The interrupts since boot.
fn interrupts() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("intr "));
    let total = line.and_then(|line| line.split(' ').next()?.parse().ok());
    total.ok_or_else(|| io::Error::other(format!("no interrupts in {stat}")))
}

/// Writes what `vmmlinux run --marks` counts from and to.
fn mark() -> io::Result<()> {
    print!("\x1e");
    io::stdout().flush()?;
    Ok(tcdrain(io::stdout())?)
}

fn idle() -> io::Result<()> {
    // What was started at boot comes to rest.
    println!("guest: idle from now on");
    thread::sleep(Duration::from_secs(10));
    mark()?;
    thread::sleep(Duration::from_millis(500));
    let before = interrupts()?;
    thread::sleep(Duration::from_secs(10));
    let came = interrupts()? - before;
    mark()?;
    println!("guest: idle for 10 s, {came} interrupts");
    Ok(())
}

fn compute() -> io::Result<()> {
    mark()?;
    let before = interrupts()?;
    compute_until(Instant::now() + Duration::from_secs(3));
    let came = interrupts()? - before;
    mark()?;
    println!("guest: computed for 3 s, {came} interrupts");
    Ok(())
}

fn compute_until(end: Instant) {
    let mut rounds = 0_u64;
    while Instant::now() < end {
        rounds = std::hint::black_box(rounds + 1);
    }
}

/// One after the other, and each so far from the others that nothing is read ahead for it.
fn reads(path: &Path) -> io::Result<()> {
    let disk = File::open(path)?;
    mark()?;
    for place in 0..READS {
        disk.read_exact_at(&mut [0; 4096], (place * 7 % READS) << 20)?;
    }
    mark()?;
    println!("guest: {READS} reads");
    Ok(())
}

/// Threads that never let go of a processor, more of them than there are processors.
fn crowd() {
    for _ in 0..4 {
        thread::spawn(|| {
            loop {
                std::hint::black_box(0);
            }
        });
    }
}

fn busy() {
    let end = Instant::now() + Duration::from_secs(3);
    let sleeper = thread::spawn(move || {
        let mut times = 0;
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
            times += 1;
        }
        times
    });
    compute_until(end);
    println!("guest: busy, {} sleeps", sleeper.join().unwrap_or(0));
}

/// What the processors have done since boot, each for itself.
struct Processors {
    /// Ticks in which something ran, processes or the kernel for them.
    busy: Vec<u64>,
    /// Interrupts of its own timer.
    timer: Vec<u64>,
    /// Interrupts that other processors have sent it.
    sent: Vec<u64>,
}

impl Processors {
    fn read() -> io::Result<Self> {
        let numbers =
            |text: &str| text.split_whitespace().map_while(|word| word.parse().ok()).collect::<Vec<u64>>();
        let stat = fs::read_to_string("/proc/stat")?;
        let lines = stat.lines().filter_map(|line| line.strip_prefix("cpu")?.split_once(' '));
        let busy = lines.filter(|(n, _)| !n.is_empty()).map(|(_, line)| numbers(line)[..3].iter().sum());
        let table = fs::read_to_string("/proc/interrupts")?;
        let row = |name: &str| {
            let line = table.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
            line.map(numbers).unwrap_or_default()
        };
        let timer = row("LOC");
        let kinds = ["RES", "CAL"].map(row);
        let sent = (0..timer.len()).map(|n| kinds.iter().filter_map(|kind| kind.get(n)).sum());
        Ok(Self { busy: busy.collect(), sent: sent.collect(), timer })
    }
}

/// Keeps the calling thread on one processor.
fn stay_on(processor: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set)?;
    if sched_getcpu() != processor {
        return Err(io::Error::other(format!("it runs on processor {}", sched_getcpu())));
    }
    Ok(())
}

/// On each processor a thread that waits until the one before it wakes it, a few hundred times, and then computes beside
/// all others.
fn cpus() -> io::Result<()> {
    const ROUNDS: u32 = 300;
    let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
    println!("guest: processors {} are online", online.trim());
    let before = Processors::read()?;
    let count = before.timer.len();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel::<u32>()).unzip();
    senders[0].send(0).map_err(io::Error::other)?;
    let threads = receivers.into_iter().enumerate().map(|(processor, receiver)| {
        let next = senders[(processor + 1) % count].clone();
        thread::spawn(move || -> io::Result<()> {
            stay_on(processor)?;
            for _ in 0..ROUNDS {
                let turn = receiver.recv().map_err(io::Error::other)?;
                // The last one's turn is nobody's.
                let _ = next.send(turn + 1);
            }
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(500) {}
            Ok(())
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().map_err(|_| io::Error::other("a thread died"))??;
    }
    let after = Processors::read()?;
    for n in 0..count {
        println!(
            "guest: processor {n}: busy {} timer {} sent {}",
            after.busy[n] - before.busy[n],
            after.timer[n] - before.timer[n],
            after.sent[n] - before.sent[n],
        );
    }
    Ok(())
}

fn hotplug() -> io::Result<()> {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";
    for state in ["0", "1"] {
        fs::write(ONLINE, state)?;
        if fs::read_to_string(ONLINE)?.trim() != state {
            return Err(io::Error::other("the processor does not go, or does not come back"));
        }
    }
    println!("guest: processor 1 went and came back");
    Ok(())
}

/// The kernel's jiffies.
fn jiffies() -> io::Result<u64> {
    let list = fs::read_to_string("/proc/timer_list")?;
    let jiffies = list.lines().find_map(|line| line.strip_prefix("jiffies: ")?.parse().ok());
    jiffies.ok_or_else(|| io::Error::other("no jiffies in /proc/timer_list"))
}

fn ticks() -> io::Result<()> {
    let (start, wall, before) = (Instant::now(), SystemTime::now(), jiffies()?);
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_secs(2));
    let (clock, counted) = (start.elapsed().as_millis(), jiffies()? - before);
    let wall = wall.elapsed().map_err(io::Error::other)?.as_millis();
    println!("guest: {clock} ms passed, {wall} ms by the date, {counted} jiffies");
    Ok(())
}

/// Finds the control device among the PCI functions and switches it on.
fn control_device() -> io::Result<Driver<Bar>> {
    let opened = Function::find(Path::new(FUNCTIONS)).and_then(|function| function.open());
    Driver::probe(Bar::new(opened.map_err(io::Error::other)?.bar)).map_err(io::Error::other)
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

/// While it exists, nobody goes down.
const STAY: &str = "/stay";
/// A line for each time that the kernel wanted to.
const TOLD: &str = "/told";

/// What `/sbin/reboot` and `/sbin/poweroff` do.
fn told_by_the_kernel(name: &str) {
    let write = |path: &str, text: String| {
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        file.write_all(text.as_bytes())?;
        io::Result::Ok(file)
    };
    if Path::new(STAY).exists() {
        let _ = write(TOLD, format!("{name}\n"));
        return;
    }
    let console = write("/dev/console", format!("guest: the kernel says {name}\n"));
    let _ = console.map(tcdrain);
    rustix::fs::sync();
    let _ = reboot(if name == "reboot" { RebootCommand::Restart } else { RebootCommand::PowerOff });
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

fn rebind() -> io::Result<()> {
    let function = driven()?;
    for _ in 0..10 {
        unbind(&function)?;
        bind(&function)?;
        shown(&function, "offset_ns")?;
    }
    println!("guest: rebound");
    Ok(())
}

fn foreign() -> io::Result<()> {
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
    println!("guest: a foreign device is refused: {}", refused == Some(Errno::NODEV.raw_os_error()));
    Ok(())
}

/// The driver as a module.
const MODULE: &str = "/modules/vmmci.ko";

fn reload() -> io::Result<()> {
    let function = driven()?;
    for _ in 0..10 {
        delete_module(c"vmmci", 0)?;
        if function.exists() || Path::new(DRIVER).exists() {
            return Err(io::Error::other("the driver is still there"));
        }
        finit_module(File::open(MODULE)?, c"", 0)?;
        shown(&function, "offset_ns")?;
    }
    println!("guest: reloaded");
    Ok(())
}

fn monotonic() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Says how long the clock was behind by more than an hour, what became of it, and of those who care for clocks.
fn clocks() -> io::Result<()> {
    let function = driven()?;
    let watch = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK)?;
    let never = Timespec { tv_sec: 4_000_000_000, tv_nsec: 0 };
    let timer = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
    timerfd_settime(&watch, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &timer)?;
    // Up, and a loopback device.
    fs::write("/sys/class/net/lo/flags", "0x9")?;
    let listener = TcpListener::bind("127.0.0.1:7")?;
    let mut here = TcpStream::connect("127.0.0.1:7")?;
    let (mut there, _) = listener.accept()?;
    let before = monotonic();
    let mut asleep = Command::new("/init").arg0(SLEEPER).spawn()?;
    let steps = shown(&function, "steps")?;
    println!("guest: watching the clocks");
    let (mut last, mut behind_since) = (monotonic(), None);
    loop {
        let now = monotonic();
        if now < last {
            return Err(io::Error::other("CLOCK_MONOTONIC went back"));
        }
        last = now;
        if shown(&function, "steps")? > steps {
            let offset = shown(&function, "offset_ns")?;
            let told = rustix::io::read(&watch, &mut [0; 8]) == Err(Errno::CANCELED);
            let behind = behind_since.map_or(0, |since| now - since) / 1_000_000;
            let (sure, step) = (shown(&function, "offset_error_ns")?, shown(&function, "last_step_ns")?);
            here.write_all(b"x")?;
            there.read_exact(&mut [0; 1])?;
            let woke = asleep.wait()?.success();
            println!(
                "guest: clocks: behind for {behind} ms, then {offset} ns off, sure to {sure} ns, step {} s, timerfd {told}, \
                 the connection lives, sleeper {woke} after {} ms",
                step / 1_000_000_000,
                (monotonic() - before) / 1_000_000,
            );
            return Ok(());
        }
        if behind_since.is_none() && shown(&function, "offset_ns")? < -3_600_000_000_000 {
            behind_since = Some(now);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the date has jumped by an hour or more, twice, and looks each time whether the clock is the host's, whether
/// the scheduler counts the time that a process takes, and whether timers expire.
fn naps() -> io::Result<()> {
    let function = driven()?;
    let nanos = |clock| {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
        tv_sec * 1_000_000_000 + tv_nsec
    };
    // A nap may come while the line is written that asks for it.
    let (mut date, mut last) = (nanos(ClockId::Realtime), monotonic());
    println!("guest: waiting for a nap");
    for _ in 0..2 {
        let mut back = 0;
        loop {
            thread::sleep(Duration::from_millis(20));
            let now = monotonic();
            back = back.max(last - now);
            last = now;
            let before = std::mem::replace(&mut date, nanos(ClockId::Realtime));
            if date - before > 3_600_000_000_000 {
                break;
            }
        }
        let (start, used) = (monotonic(), nanos(ClockId::ProcessCPUTime));
        while monotonic() - start < 200_000_000 {}
        let used = nanos(ClockId::ProcessCPUTime) - used;
        let start = monotonic();
        thread::sleep(Duration::from_secs(1));
        println!(
            "guest: after a nap: used {} of 200 ms, slept {} ms, off by {} us, back by {} ms",
            used / 1_000_000,
            (monotonic() - start) / 1_000_000,
            shown(&function, "offset_ns")? / 1000,
            back / 1_000_000,
        );
    }
    Ok(())
}

/// The difference between the PTP clock and what the driver's offset makes of the system clock.
fn phc() -> io::Result<()> {
    let function = driven()?;
    let name = fs::read_to_string("/sys/class/ptp/ptp0/clock_name")?;
    let clock = OpenOptions::new().read(true).write(true).open("/dev/ptp0")?;
    let nanos = |time: Timespec| time.tv_sec * 1_000_000_000 + time.tv_nsec;
    let mut smallest = i64::MAX;
    for _ in 0..100 {
        let offset = shown(&function, "offset_ns")?;
        let before = nanos(clock_gettime(ClockId::Realtime));
        let host = nanos(clock_gettime_dynamic(DynamicClockId::Dynamic(clock.as_fd()))?);
        let after = nanos(clock_gettime(ClockId::Realtime));
        let difference = before.midpoint(after) - offset - host;
        smallest = smallest.min(difference.abs());
    }
    println!("guest: phc: {}, {smallest} ns from what the offset says", name.trim());
    Ok(())
}

/// Numbers, and what they count.
type Counts = BTreeMap<&'static str, i64>;

/// Adds what the driver has counted since it was bound, and keeps its largest step of the clock in mind.
fn add_counters(sums: &mut Counts, function: &Path) -> io::Result<()> {
    for name in ["interrupts", "shutdown_commands", "reboot_commands", "syncrtc_commands", "steps"] {
        *sums.entry(name).or_default() += shown(function, name)?;
    }
    let step = sums.entry("step_ms").or_default();
    *step = (*step).max(shown(function, "last_step_ns")?.abs() / 1_000_000);
    Ok(())
}

/// Says what there was to count until a line came, with what `earlier` has counted.
fn counts(earlier: impl FnOnce() -> io::Result<Counts>) -> io::Result<()> {
    let slab = || -> io::Result<String> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let line = text.lines().find(|line| line.starts_with("SUnreclaim:")).unwrap_or_default();
        Ok(line.split_whitespace().nth(1).unwrap_or_default().to_owned())
    };
    let (before, told_before) = (slab()?, fs::read_to_string(TOLD).unwrap_or_default().len());
    println!("guest: counting");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let mut sums = earlier()?;
    // What the kernel starts takes its time.
    thread::sleep(Duration::from_secs(1));
    add_counters(&mut sums, &driven()?)?;
    let told = fs::read_to_string(TOLD).unwrap_or_default();
    let times = |name: &str| told[told_before..].lines().filter(|line| *line == name).count();
    let text: Vec<_> = sums.iter().map(|(name, count)| format!("{name}={count}")).collect();
    println!(
        "guest: counts: {} poweroff={} reboot={} slab_before={before} slab_after={}",
        text.join(" "),
        times("poweroff"),
        times("reboot"),
        slab()?
    );
    Ok(())
}

/// What was counted just before the driver lost the device is lost.
fn churn() -> io::Result<()> {
    let function = driven()?;
    let (end, ended) = mpsc::channel::<()>();
    let churning = thread::spawn(move || -> io::Result<_> {
        let mut sums = Counts::new();
        while ended.try_recv() == Err(mpsc::TryRecvError::Empty) {
            add_counters(&mut sums, &function)?;
            unbind(&function)?;
            // A device that reads as all ones is none, until it shows something else.
            while let Err(error) = bind(&function) {
                *sums.entry("refused").or_default() += 1;
                if error.raw_os_error() != Some(Errno::NODEV.raw_os_error()) {
                    return Err(error);
                }
                thread::sleep(Duration::from_millis(20));
            }
            *sums.entry("rebound").or_default() += 1;
            println!("guest: again");
        }
        Ok(sums)
    });
    counts(|| {
        drop(end);
        churning.join().map_err(|_| io::Error::other("the thread died"))?
    })
}

fn leaks() -> io::Result<()> {
    const FILE: &str = "/sys/kernel/debug/kmemleak";
    if !Path::new(FILE).exists() {
        mount("debugfs", "/sys/kernel/debug", "debugfs", MountFlags::empty(), None)?;
    }
    // What is younger than five seconds does not count, and what moves is found the second time.
    for _ in 0..2 {
        thread::sleep(Duration::from_secs(6));
        fs::write(FILE, "scan")?;
    }
    let found = fs::read_to_string(FILE)?;
    print!("{found}");
    println!("guest: leaks: {}", found.matches("unreferenced object").count());
    Ok(())
}

/// The kernel says how that went.
fn nap() -> io::Result<()> {
    fs::write("/sys/power/state", "freeze")
}

/// Loads `/boot/bzImage` with `/boot/initrd` and this kernel's command line, on which the words are those after `/`.
fn kexec() -> io::Result<()> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let (parameters, words) = line.trim().split_once(" -- ").unwrap_or((line.trim(), ""));
    let words = words.split_once(" / ").map_or("", |(_, after)| after);
    let status = Command::new("/kexec")
        .args(["/boot/bzImage", "/boot/initrd"])
        .arg(format!("{parameters} -- {words}"))
        .status()?;
    if !status.success() {
        return Err(io::Error::other("the other kernel cannot be loaded"));
    }
    println!("guest: goes on to the other kernel");
    end(RebootCommand::Kexec);
    Ok(())
}
