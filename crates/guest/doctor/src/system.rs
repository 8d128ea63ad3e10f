//! Access to a guest's files and CPUID; tests replace both.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::fs::OFlags;

/// EAX, EBX, ECX, EDX.
pub type Registers = [u32; 4];

/// No file that is looked at is longer, but logs, of which the end is looked at.
const LIMIT: u64 = 1 << 20;

/// A running system, or a tree of files that looks like one.
pub struct System {
    root: PathBuf,
    cpuid: Box<dyn Fn(u32) -> Registers>,
    journal: fn() -> Option<String>,
    root_user: bool,
}

impl System {
    /// Returns the running system.
    pub fn here() -> Self {
        let cpuid = |leaf| {
            let result = raw_cpuid::native_cpuid::cpuid_count(leaf, 0);
            [result.eax, result.ebx, result.ecx, result.edx]
        };
        let root_user = rustix::process::geteuid().is_root();
        Self { root: "/".into(), cpuid: Box::new(cpuid), journal, root_user }
    }

    /// Returns a system with files below `root` and the given CPUID, as seen without root's privileges.
    pub fn at(root: &Path, cpuid: impl Fn(u32) -> Registers + 'static) -> Self {
        Self { root: root.to_owned(), cpuid: Box::new(cpuid), journal: || None, root_user: false }
    }

    /// Whether this process has root's privileges.
    pub fn is_root(&self) -> bool {
        self.root_user
    }

    /// Returns a CPUID leaf.
    pub fn cpuid(&self, leaf: u32) -> Registers {
        (self.cpuid)(leaf)
    }

    /// Where a file is. `path` begins without a slash.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The text of a file, without white space around it; `None` if it cannot be read.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let mut bytes = Vec::new();
        File::open(self.path(path)).ok()?.take(LIMIT).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The end of a file, 1 MiB at most.
    pub fn end_of(&self, path: impl AsRef<Path>) -> Option<String> {
        use std::io::{Seek, SeekFrom};
        let mut file = File::open(self.path(path)).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LIMIT))).ok()?;
        let mut bytes = Vec::new();
        file.take(LIMIT).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether the first processor lets MSR `index` be read; `None` without the module msr or its
    /// permission.
    pub fn msr(&self, index: u64) -> Option<bool> {
        let file = File::open(self.path("dev/cpu/0/msr")).ok()?;
        Some(file.read_exact_at(&mut [0; 8], index).is_ok())
    }

    /// The kernel's messages as /dev/kmsg has them.
    pub fn kernel_messages(&self) -> io::Result<String> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut file = File::options().read(true).custom_flags(flags).open(self.path("dev/kmsg"))?;
        let (mut all, mut record) = (Vec::new(), vec![0; 16 * 1024]);
        loop {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => all.extend_from_slice(&record[..length]),
                // That one has been overwritten; the next read gives the oldest that is left.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(String::from_utf8_lossy(&all).into_owned())
    }

    /// What systemd's journal has of this boot from the kernel and vmmcid, as `short-monotonic`.
    pub fn journal(&self) -> Option<String> {
        (self.journal)()
    }

    /// What is in a directory, in order: names without the directory.
    pub fn names(&self, directory: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(directory)).into_iter().flatten().filter_map(Result::ok);
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The last part of what a symbolic link points to.
    pub fn link(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// Whether there is something of this name, even if it cannot be read.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }
}

fn journal() -> Option<String> {
    let output = Command::new("journalctl")
        .args([
            "-q",
            "--no-pager",
            "-b",
            "-o",
            "short-monotonic",
            "-n",
            "20000",
            "-t",
            "kernel",
            "-t",
            "vmmcid",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && !text.trim().is_empty()).then_some(text)
}
