//! Guests for tests: that of `tests/golden`, recorded in a real vmd 7.8, with Debian's kernel.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path, rc::Rc};

use tempfile::TempDir;

use crate::{Guest, System, system::Registers};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests/golden");

pub(crate) struct Fixture {
    dir: Rc<TempDir>,
    pub(crate) cpuid: BTreeMap<u32, Registers>,
}

/// An empty system.
pub(crate) fn empty() -> Fixture {
    Fixture { dir: Rc::new(tempfile::tempdir().unwrap()), cpuid: BTreeMap::new() }
}

/// The guest as it was recorded.
pub(crate) fn recorded() -> Fixture {
    let golden = |path: &str| fs::read_to_string(Path::new(GOLDEN).join(path)).unwrap();
    let mut fixture = empty();
    fixture.cpuid = golden("cpuid/k73.cpuid.txt").lines().filter_map(leaf).collect();
    let dump = golden("dump/k73.dump.txt");
    let section = |name: &str| {
        let (_, rest) = dump.split_once(&format!("\n=== {name}\n")).unwrap();
        rest.split("\n=== ").next().unwrap().to_owned()
    };
    let uname = section("uname");
    let mut lines = uname.lines();
    let release = lines.next().unwrap().split(' ').nth(2).unwrap().to_owned();
    fixture.write("proc/sys/kernel/osrelease", &release);
    fixture.write("proc/cmdline", lines.next().unwrap());
    fixture.write("proc/cpuinfo", &section("cpuinfo"));
    fixture.write("proc/interrupts", &section("interrupts"));
    fixture.write("proc/consoles", "ttyS0                -W- (EC  p a)    4:64\n");
    let source = "sys/devices/system/clocksource/clocksource0";
    for line in section("clocksource").lines().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap();
        fixture.write(&format!("{source}/{name}"), value);
    }
    fixture.write("sys/devices/system/clockevents/clockevent0/current_device", "pit\n");
    for line in section("dmi").lines().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        fixture.write(&format!("sys/class/dmi/id/{name}"), value);
    }
    for line in section("pci").lines().filter(|line| line.starts_with("--- ")) {
        fixture.function(line);
    }
    for (name, device, driver) in [("virtio0", "0x0004", "virtio_rng"), ("virtio1", "0x0002", "virtio_blk")] {
        let path = format!("sys/bus/virtio/devices/{name}");
        fixture.write(&format!("{path}/device"), device);
        fixture.link(&format!("{path}/driver"), &format!("../../drivers/{driver}"));
    }
    fixture.write("sys/bus/pci/devices/0000:00:01.0/virtio0/device", "0x0004");
    fixture.write("sys/bus/pci/devices/0000:00:02.0/virtio1/device", "0x0002");
    fixture.write("sys/class/misc/hw_random/rng_current", "virtio_rng.0");
    let log: String = golden("dmesg/k73.dmesg.txt").lines().filter_map(record).collect();
    fixture.write("dev/kmsg", &log);
    fixture
}

/// `40000000.00: eax=00000000 ebx=…`
fn leaf(line: &str) -> Option<(u32, Registers)> {
    let (leaf, rest) = line.split_once(".00: ")?;
    let mut registers =
        rest.split_whitespace().filter_map(|word| u32::from_str_radix(word.split_once('=')?.1, 16).ok());
    let mut next = || registers.next();
    Some((u32::from_str_radix(leaf, 16).ok()?, [next()?, next()?, next()?, next()?]))
}

/// A line of dmesg as /dev/kmsg has it.
fn record(line: &str) -> Option<String> {
    let (time, text) = line.strip_prefix('[')?.split_once("] ")?;
    let micros = time.trim().replace('.', "");
    Some(format!("6,1,{},-;{text}\n", micros.trim_start_matches('0').parse::<u64>().unwrap_or(0)))
}

impl Fixture {
    /// `--- 0000:00:01.0 vendor 0x1af4 device 0x1044 subsys 0x0b5d:0x0004 … driver ../../../bus/pci/drivers/virtio-pci`
    fn function(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        let after = |name| words.iter().skip_while(|word| **word != name).nth(1).copied();
        let path = format!("sys/bus/pci/devices/{}", words[1]);
        for (file, value) in [
            ("vendor", after("vendor").unwrap()),
            ("device", after("device").unwrap()),
            ("subsystem_device", after("subsys").unwrap().split(':').nth(1).unwrap()),
            ("revision", after("rev").unwrap()),
            ("resource", "0x000000000000e000 0x000000000000efff 0x0000000000040101\n"),
        ] {
            self.write(&format!("{path}/{file}"), value);
        }
        if let Some(driver) = after("driver") {
            self.link(&format!("{path}/driver"), driver);
        }
    }

    pub(crate) fn write(&mut self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A file of `length` zeroes that take no room.
    pub(crate) fn sparse(&self, path: &str, length: u64) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).unwrap().set_len(length).unwrap();
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    pub(crate) fn remove(&mut self, path: &str) {
        fs::remove_file(self.dir.path().join(path)).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn system(&self) -> System {
        let (cpuid, dir) = (self.cpuid.clone(), Rc::clone(&self.dir));
        System::at(self.dir.path(), move |leaf| {
            // The files are there for as long as the system is.
            debug_assert!(dir.path().is_dir());
            cpuid.get(&leaf).copied().unwrap_or_default()
        })
    }

    pub(crate) fn guest(&self) -> Guest {
        Guest::look(self.system(), None)
    }
}
