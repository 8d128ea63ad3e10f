//! vmmci, the control device of OpenBSD's vmd(8), as programs in a guest reach it: [`Function`] finds it among the PCI
//! functions, [`Bar`] is its registers, through sysfs, and [`Offset`] how far the guest's clock is from the host's.
//!
//! What the registers mean is crate `vmmci`'s.
#![forbid(unsafe_code)]

mod bar;
mod offset;

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

pub use bar::Bar;
use miette::Diagnostic;
pub use offset::{Offset, compare, offset_in_words, realtime, show};
use rustix::fs::{Mode, OFlags};
use thiserror::Error;
use vmmci_protocol::{DEVICE_ID, VENDOR_ID};

/// Where Linux shows the PCI functions.
pub const FUNCTIONS: &str = "/sys/bus/pci/devices";

/// The bit of a BAR's flags in `resource` that says that it is an I/O BAR (`IORESOURCE_IO`).
const IO_BAR: u64 = 0x100;

/// Why the device cannot be used.
#[derive(Debug, Error, Diagnostic)]
pub enum Error {
    /// There is none.
    #[error("there is no vmmci device (PCI {VENDOR_ID:04x}:{DEVICE_ID:04x}) in {}", .0.display())]
    #[diagnostic(help("only guests of OpenBSD's vmd(8) have one"))]
    None(PathBuf),
    /// The kernel drives it.
    #[error(
        "the device {function} is driven by the kernel (driver {driver}): vmmcid would only be in its way"
    )]
    #[diagnostic(help(
        "nothing is missing: disable the service vmmcid. To use vmmcid all the same: \
         echo {function} > /sys/bus/pci/drivers/{driver}/unbind"
    ))]
    Driven {
        /// The function's address, as `0000:00:03.0`.
        function: String,
        /// The driver's name.
        driver: String,
    },
    /// A file of it cannot be used.
    #[error("cannot {what} {}", path.display())]
    #[diagnostic(help("{}", help(source)))]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its registers are not where they should be.
    #[error("the first BAR of {0} is no I/O BAR")]
    #[diagnostic(help(
        "this is not the device that vmd(8) has had so far: please report the host's version"
    ))]
    NoIoBar(String),
}

fn help(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied if rustix::process::geteuid().is_root() => {
            "root may do this unless the kernel is locked down (cat /sys/kernel/security/lockdown), which Secure Boot \
             and lockdown= do; then only a driver in the kernel can reach the device"
        }
        io::ErrorKind::PermissionDenied => "this takes root",
        _ => "see dmesg for what became of the device",
    }
}

/// The PCI function that is the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    address: String,
    path: PathBuf,
}

/// An opened device.
#[derive(Debug)]
pub struct Opened {
    /// Its I/O BAR.
    pub bar: File,
    /// Its directory in sysfs, to look whether a driver has come.
    pub directory: File,
}

impl Function {
    /// Looks for it among the functions in a directory, [`FUNCTIONS`].
    pub fn find(functions: &Path) -> Result<Self, Error> {
        let none = || Error::None(functions.to_owned());
        for entry in fs::read_dir(functions).map_err(|_| none())?.filter_map(Result::ok) {
            let path = entry.path();
            let id = |name| fs::read_to_string(path.join(name)).ok().and_then(|id| hexadecimal(&id));
            if id("vendor") == Some(VENDOR_ID.into()) && id("device") == Some(DEVICE_ID.into()) {
                return Ok(Self { address: entry.file_name().to_string_lossy().into_owned(), path });
            }
        }
        Err(none())
    }

    /// Its address, as `0000:00:03.0`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its directory in sysfs.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel driver that has it.
    pub fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.path.join("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Switches it on and opens it, unless a driver has it.
    pub fn open(&self) -> Result<Opened, Error> {
        if let Some(driver) = self.driver() {
            return Err(Error::Driven { function: self.address.clone(), driver });
        }
        let enable = self.path.join("enable");
        let on = fs::read_to_string(&enable).map_err(|source| io_error("read", &enable, source))?;
        if on.trim() == "0" {
            fs::write(&enable, "1").map_err(|source| io_error("write 1 to", &enable, source))?;
        }
        self.open_bar(true)
    }

    /// Opens the device read-only, also beside a driver; changes nothing.
    pub fn peek(&self) -> Result<Opened, Error> {
        self.open_bar(false)
    }

    fn open_bar(&self, write: bool) -> Result<Opened, Error> {
        let resource = self.path.join("resource");
        let bars = fs::read_to_string(&resource).map_err(|source| io_error("read", &resource, source))?;
        let flags = bars.lines().next().and_then(|bar| hexadecimal(bar.split_whitespace().nth(2)?));
        if flags.is_none_or(|flags| flags & IO_BAR == 0) {
            return Err(Error::NoIoBar(self.address.clone()));
        }
        let path = self.path.join("resource0");
        let bar = OpenOptions::new()
            .read(true)
            .write(write)
            .open(&path)
            .map_err(|source| io_error("open", &path, source))?;
        let directory = rustix::fs::open(&self.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| io_error("open", &self.path, error.into()))?;
        Ok(Opened { bar, directory: directory.into() })
    }
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { what, path: path.to_owned(), source }
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// The driver that has the function whose sysfs directory is given. Costs no access to the device.
pub fn driver_of(directory: &File) -> Option<String> {
    let link = rustix::fs::readlinkat(directory, "driver", Vec::new()).ok()?;
    Some(Path::new(link.to_str().ok()?).file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::io::Errno;
    use vmmci_protocol::Registers;

    use super::*;

    /// A sysfs with the device and another function.
    fn sysfs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (function, vendor, device) in
            [("0000:00:02.0", "0x0b5d\n", "0x1001\n"), ("0000:00:03.0", "0x0b5d\n", "0x0777\n")]
        {
            let path = dir.path().join(function);
            fs::create_dir(&path).unwrap();
            for (name, text) in [
                ("vendor", vendor),
                ("device", device),
                ("enable", "0\n"),
                ("resource", "0x000000000000e000 0x000000000000efff 0x0000000000040101\n"),
            ] {
                fs::write(path.join(name), text).unwrap();
            }
            fs::write(path.join("resource0"), [0; 64]).unwrap();
        }
        dir
    }

    #[test]
    fn it_is_found_switched_on_and_used() {
        let dir = sysfs();
        let function = Function::find(dir.path()).unwrap();
        assert_eq!(function.address(), "0000:00:03.0");
        let opened = function.open().unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("0000:00:03.0/enable")).unwrap(), "1");
        assert_eq!(driver_of(&opened.directory), None);
        let bar = Bar::new(opened.bar);
        bar.write(0x14, 0x0102_0304);
        assert_eq!((bar.read(0x14), bar.read(0x18), bar.failure()), (0x0102_0304, 0, None));
        assert_eq!(fs::read(dir.path().join("0000:00:03.0/resource0")).unwrap()[0x14..0x18], [4, 3, 2, 1]);
    }

    #[test]
    fn an_access_that_fails_reads_as_ones_and_is_remembered() {
        let dir = sysfs();
        let bar = Bar::new(Function::find(dir.path()).unwrap().peek().unwrap().bar);
        assert_eq!(bar.read(0x1000), u32::MAX);
        assert_eq!(bar.failure(), Some(Errno::IO));
        assert_eq!(bar.read(0), 0);
        assert_eq!(bar.failure(), None);
        bar.write(0, 1);
        assert_eq!(bar.failure(), Some(Errno::BADF), "it was opened for reading");
    }

    #[test]
    fn a_function_with_a_driver_is_left_alone() {
        let dir = sysfs();
        let function = Function::find(dir.path()).unwrap();
        let opened = function.open().unwrap();
        fs::write(dir.path().join("0000:00:03.0/enable"), "0\n").unwrap();
        symlink("../../../bus/pci/drivers/vmmci", dir.path().join("0000:00:03.0/driver")).unwrap();
        let error = function.open().unwrap_err();
        assert!(matches!(&error, Error::Driven { driver, .. } if driver == "vmmci"), "{error}");
        assert!(error.help().unwrap().to_string().contains("drivers/vmmci/unbind"));
        assert_eq!(fs::read_to_string(dir.path().join("0000:00:03.0/enable")).unwrap(), "0\n");
        assert_eq!(driver_of(&opened.directory).as_deref(), Some("vmmci"));
    }

    #[test]
    fn without_the_device_and_with_a_strange_one_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Function::find(dir.path()), Err(Error::None(_))));
        assert!(matches!(Function::find(&dir.path().join("no")), Err(Error::None(_))));
        let dir = sysfs();
        let memory = "0x00000000e0000000 0x00000000e0000fff 0x0000000000040200\n";
        fs::write(dir.path().join("0000:00:03.0/resource"), memory).unwrap();
        assert!(matches!(Function::find(dir.path()).unwrap().open(), Err(Error::NoIoBar(_))));
    }
}
