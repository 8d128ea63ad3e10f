//! The guest's side: the init of the guests that are measured. The kernel hands it words from its command line, and it
//! carries them out one after the other:
//!
//! - `root`: loads `/modules/*` and goes on as `/init` of the first disk, as an initramfs does;
//! - `boot`: marks that init runs, and tells about kernel and memory;
//! - `idle=SECONDS`: does nothing, between marks, and tells the interrupts;
//! - `sleeps=TIMES`: sleeps for various times, each so often, and tells how long that took on the host's clock;
//! - `drift=SECONDS`: compares its clocks with the host's for so long;
//! - `pause`, `suspend`: waits until that is done to it, and tells what became of its clocks;
//! - `disk=DEVICE`, `net`: does I/O, between marks;
//! - `end`: tells the marks and powers off.
//!
//! A mark is a byte on the console ([`vmm::MARK`]), at which the machine notes what it has counted.

mod clock;
mod console;
mod host;
mod memory;
mod netlink;
mod work;

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use rustix::{
    mount::{MountFlags, mount, mount_move},
    process::chroot,
    system::{RebootCommand, finit_module, reboot, uname},
    termios::tcdrain,
};

use crate::event::Event;

use console::{Marks, tell};

/// Carries out the kernel's words, and powers off.
pub fn main() {
    let mut marks = Marks::default();
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = carry_out(&mut marks, &words) {
        tell(&Event::Failed(error.to_string()));
    }
    let result = tcdrain(io::stdout()).and_then(|()| reboot(RebootCommand::PowerOff));
    tell(&Event::Failed(format!("cannot power off: {result:?}")));
}

fn carry_out(marks: &mut Marks, words: &[String]) -> io::Result<()> {
    for (index, word) in words.iter().enumerate() {
        let (word, argument) = word.split_once('=').unwrap_or((word, ""));
        let number = || argument.parse::<u32>().map_err(io::Error::other);
        match word {
            "root" => return Err(enter_root(&words[index + 1..])?),
            "boot" => boot(marks)?,
            "settle" => thread::sleep(Duration::from_secs(number()?.into())),
            "idle" => idle(marks, number()?)?,
            "sleeps" => clock::sleeps(number()?)?,
            "drift" => clock::drift(number()?)?,
            "pause" => clock::survive(crate::event::Disturbance::Pause)?,
            "suspend" => clock::survive(crate::event::Disturbance::Suspend)?,
            "disk" => work::disk(marks, Path::new(argument))?,
            "net" => work::net(marks)?,
            "end" => tell(&Event::Marks(marks.take())),
            _ => return Err(io::Error::other(format!("what is `{word}`?"))),
        }
    }
    Ok(())
}

fn boot(marks: &mut Marks) -> io::Result<()> {
    marks.mark_now("init")?;
    mount_system()?;
    let read = |path: &str| fs::read_to_string(path).map_or_else(|_| "?".into(), |s| s.trim().to_owned());
    marks.mark("ready")?;
    tell(&Event::Memory(memory::read()?));
    tell(&Event::Kernel {
        release: uname().release().to_string_lossy().into_owned(),
        clocksource: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        clockevent: read("/sys/devices/system/clockevents/clockevent0/current_device"),
    });
    Ok(())
}

/// Three marks: between the first two is what a mark costs, after them what doing nothing costs.
fn idle(marks: &mut Marks, seconds: u32) -> io::Result<()> {
    let host = host::Host::open().ok();
    marks.mark("idle-mark")?;
    marks.mark("idle-begin")?;
    // Two exits each, among those of some tens of seconds.
    let before = (host.as_ref().map(host::Host::micros), memory::interrupts()?);
    thread::sleep(Duration::from_secs(seconds.into()));
    let after = (host.as_ref().map(host::Host::micros), memory::interrupts()?);
    marks.mark("idle-end")?;
    let micros = match (before.0, after.0) {
        (Some(before), Some(after)) => after.abs_diff(before),
        _ => u64::from(seconds) * 1_000_000,
    };
    let counts = after.1.into_iter().filter_map(|(line, count)| {
        let more = count.saturating_sub(before.1.get(&line).copied().unwrap_or(0));
        (more > 0).then_some((line, more))
    });
    tell(&Event::Interrupts { micros, counts: counts.collect() });
    Ok(())
}

/// Mounts what is not there yet. A kernel may have mounted `/dev` already.
fn mount_system() -> io::Result<()> {
    for (kind, target, there) in
        [("devtmpfs", "/dev", "/dev/null"), ("proc", "/proc", "/proc/stat"), ("sysfs", "/sys", "/sys/class")]
    {
        if !Path::new(there).exists() {
            mount(kind, target, kind, MountFlags::empty(), None)?;
        }
    }
    Ok(())
}

/// Goes on as the init of the first disk. Comes back only with the reason why not.
fn enter_root(words: &[String]) -> io::Result<io::Error> {
    mount_system()?;
    load_modules(Path::new("/modules"))?;
    let disk = Path::new("/dev/vda");
    // virtio_blk has the disk soon after the module is there, but not at once.
    for _ in 0..100 {
        if disk.exists() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    mount(disk, "/root", "ext4", MountFlags::RDONLY, None)?;
    for place in ["dev", "proc", "sys"] {
        mount_move(format!("/{place}"), format!("/root/{place}"))?;
    }
    std::env::set_current_dir("/root")?;
    mount_move(".", "/")?;
    chroot(".")?;
    std::env::set_current_dir("/")?;
    Ok(Command::new("/init").args(words).exec())
}

fn load_modules(dir: &Path) -> io::Result<()> {
    let mut modules: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    modules.sort();
    for module in modules {
        finit_module(File::open(module)?, c"", 0)?;
    }
    Ok(())
}
