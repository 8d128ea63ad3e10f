//! The init of the guests in these tests. The kernel hands it words that the tests put on the kernel's command line, and
//! it carries them out one after the other:
//!
//! - `echo`: reads a line from the console and writes it back in capitals;
//! - `disk`: writes a text to the first disk, reads it back through the disk and says so;
//! - `pci`: says which PCI devices there are;
//! - `wait`: does nothing for ten minutes;
//! - `reset`, `poweroff`: ends the guest.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, Read, Seek, SeekFrom, Write},
    path::Path,
    thread,
    time::Duration,
};

use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
    termios::tcdrain,
};

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
            "wait" => thread::sleep(Duration::from_secs(600)),
            "reset" => end(RebootCommand::Restart),
            "poweroff" => end(RebootCommand::PowerOff),
            _ => println!("guest: failed: what is `{word}`?"),
        }
    }
    Ok(())
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
