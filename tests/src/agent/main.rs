//! The agent: the init of the guests in these tests. The kernel hands it words that a test put on the kernel's command line.
//! It carries them out in order and sends [`Event`]s: `Ready` at the beginning, `Done` after each word.
//!
//! | word | what the agent does |
//! |---|---|
//! | `echo` | reads a line from the console and writes it back in capitals |
//! | `disk` | reads the beginning of the first disk, and writes a text to its second sector |
//! | `pci` | lists the PCI functions |
//! | `vmmci` | drives the control device from user space until the host asks it to go down |
//! | `deaf` | switches the control device on and never looks at it again |
//! | `driver` | looks for the kernel's driver of the control device |
//! | `rebind` | takes the device from that driver and gives it back, ten times |
//! | `reload` | the same by unloading and loading the driver's module |
//! | `foreign` | gives that driver another device: vmd's entropy device |
//! | `clocks` | watches the clocks until that driver has set one that was behind |
//! | `naps` | waits twice until the host has slept, and examines clocks and scheduler then |
//! | `phc` | compares the PTP clock with that driver's offset |
//! | `stay` | from now on, requests to go down are counted and not carried out |
//! | `counts` | waits for a line, and counts what happened until then |
//! | `churn` | the same, and takes the device from the driver and gives it back all the time |
//! | `leaks` | has kmemleak scan |
//! | `leaky` | loads a module that loses memory |
//! | `nap` | suspends to idle until something wakes the guest |
//! | `kexec` | starts another kernel, whose words come after `/` |
//! | `sleeps` | sleeps for 0.1 ms to 1 s |
//! | `idle` | does nothing for ten seconds between two marks |
//! | `compute` | computes for three seconds between two marks |
//! | `reads` | reads 4 KiB from a hundred places of the first disk between two marks |
//! | `crowd` | starts four threads that compute for ever |
//! | `busy` | computes for three seconds beside a thread that sleeps 1 ms at a time |
//! | `cpus` | computes on all CPUs at once, which wake each other |
//! | `hotplug` | takes the second CPU offline and online |
//! | `early` | reads the times of the kernel's messages until the agent's first |
//! | `ticks` | holds jiffies and CLOCK_REALTIME against CLOCK_MONOTONIC |
//! | `settle` | does nothing for 150 seconds |
//! | `wait` | does nothing for ten minutes |
//! | `clock` | waits for the kernel's choice of a clocksource, and measures it |
//! | `steps` | looks for steps backwards of the clocks for a second |
//! | `doctor` | runs `vmmlinux-doctor` as root and as the user nobody |
//! | `reset`, `poweroff`, `halt` | ends the guest |
//!
//! As `/sbin/reboot` or `/sbin/poweroff`, which the kernel runs when the host wants the guest to go down, the agent ends the
//! guest. A mark is a byte on the console, at which `vmmlinux run --marks` notes what it has counted.

mod device;
mod load;
mod time;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use bench::wire::Sender;
use guest_tests::{event::Event, init::mount_usual, input};
use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
    termios::tcdrain,
};

/// The text that is written to the disk.
const TEXT: &[u8] = b"written by the guest";

static SENDER: Sender = Sender::new();

fn main() {
    let name = std::env::args().next().unwrap_or_default();
    if name == time::SLEEPER {
        return thread::sleep(time::ASLEEP);
    }
    if let Some(name) = name.strip_prefix("/sbin/") {
        return run_by_the_kernel(name);
    }
    if let Err(error) = run() {
        send(&Event::Failed(error.to_string()));
    }
    end(RebootCommand::PowerOff);
}

/// Sends an event to the test.
fn send(event: &Event) {
    // The console is the only place where an error could be shown.
    let _ = SENDER.send(event);
}

/// Ends the guest once the console has sent what was written to it.
fn end(how: RebootCommand) {
    let result = tcdrain(io::stdout()).and_then(|()| reboot(how));
    send(&Event::Failed(format!("the guest goes on after reboot(2): {result:?}")));
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
    send(&Event::Ready);
    for word in std::env::args().skip(1).take_while(|word| word != "/") {
        carry_out(&word).map_err(|error| io::Error::other(format!("{word}: {error}")))?;
        send(&Event::Done(word));
    }
    Ok(())
}

fn carry_out(word: &str) -> io::Result<()> {
    match word {
        "echo" => echo()?,
        "disk" => disk(Path::new("/dev/vda"))?,
        "pci" => pci()?,
        "vmmci" => device::obey()?,
        "deaf" => device::deaf()?,
        "driver" => device::driver()?,
        "rebind" => device::rebind()?,
        "reload" => device::reload()?,
        "foreign" => device::foreign()?,
        "phc" => device::phc()?,
        "stay" => fs::write(device::STAY, "")?,
        "counts" => device::counts()?,
        "churn" => device::churn()?,
        "clocks" => time::clocks()?,
        "naps" => time::naps()?,
        "sleeps" => time::sleeps(),
        "ticks" => time::ticks()?,
        "early" => time::early()?,
        "clock" => time::clock()?,
        "steps" => time::steps(),
        // The interval of the random number generator's reseeds grows until two minutes after boot.
        "settle" => thread::sleep(Duration::from_secs(150)),
        "wait" => thread::sleep(Duration::from_mins(10)),
        "idle" => load::idle()?,
        "compute" => load::compute()?,
        "reads" => load::reads(Path::new("/dev/vda"))?,
        "crowd" => load::crowd(),
        "busy" => load::busy()?,
        "cpus" => load::cpus()?,
        "hotplug" => load::hotplug()?,
        "leaks" => leaks()?,
        "leaky" => finit_module(File::open("/leaky.ko")?, c"", 0)?,
        // The kernel writes how that went.
        "nap" => fs::write("/sys/power/state", "freeze")?,
        "kexec" => kexec()?,
        "doctor" => doctor()?,
        "reset" => end(RebootCommand::Restart),
        "poweroff" => end(RebootCommand::PowerOff),
        "halt" => end(RebootCommand::Halt),
        _ => return Err(io::Error::other("the agent does not know this word")),
    }
    Ok(())
}

/// Writes a mark, and waits until it is sent.
fn mark() -> io::Result<()> {
    let mut console = io::stdout();
    console.write_all(b"\x1e")?;
    console.flush()?;
    Ok(tcdrain(console)?)
}

fn echo() -> io::Result<()> {
    writeln!(io::stdout(), "{}", input::read_line()?.trim_end().to_uppercase())
}

/// Runs the doctor as root, which measures, and as the user nobody, which does not.
fn doctor() -> io::Result<()> {
    for (user, id, options) in [("root", 0, ["--seconds", "3"].as_slice()), ("nobody", 65534, &["--quick"])] {
        let output = Command::new("/vmmlinux-doctor").arg("--json").args(options).uid(id).gid(id).output()?;
        let report = serde_json::from_slice(&output.stdout).map_err(|error| {
            io::Error::other(format!("{user}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
        })?;
        let status = output.status.code().unwrap_or(-1);
        send(&Event::Examined { user: user.to_owned(), report, status });
    }
    Ok(())
}

fn pci() -> io::Result<()> {
    let mut functions: Vec<_> =
        fs::read_dir("/sys/bus/pci/devices")?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    functions.sort();
    let mut ids = Vec::new();
    for function in functions {
        let read = |name| Ok::<_, io::Error>(fs::read_to_string(function.join(name))?.trim().to_owned());
        ids.push([read("vendor")?, read("device")?]);
    }
    send(&Event::Pci(ids));
    Ok(())
}

fn disk(path: &Path) -> io::Result<()> {
    let mut disk = OpenOptions::new().read(true).write(true).open(path)?;
    let mut before = vec![0; TEXT.len()];
    disk.read_exact(&mut before)?;
    disk.seek(SeekFrom::Start(512))?;
    disk.write_all(TEXT)?;
    disk.sync_all()?;
    send(&Event::Disk(String::from_utf8_lossy(&before).into_owned()));
    Ok(())
}

/// What `/sbin/reboot` and `/sbin/poweroff` do.
fn run_by_the_kernel(name: &str) {
    if Path::new(device::STAY).exists() {
        let told = OpenOptions::new().append(true).create(true).open(device::TOLD);
        let _ = told.and_then(|mut file| writeln!(file, "{name}"));
        return;
    }
    send(&Event::KernelRan(name.to_owned()));
    let console = OpenOptions::new().write(true).open("/dev/console");
    let _ = console.map(tcdrain);
    rustix::fs::sync();
    let _ = reboot(if name == "reboot" { RebootCommand::Restart } else { RebootCommand::PowerOff });
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
    // For people who look for the leak.
    write!(io::stdout(), "{found}")?;
    send(&Event::Leaks(found.matches("unreferenced object").count()));
    Ok(())
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
        return Err(io::Error::other(format!("the other kernel cannot be loaded: {status}")));
    }
    send(&Event::Done("kexec".to_owned()));
    end(RebootCommand::Kexec);
    Ok(())
}
