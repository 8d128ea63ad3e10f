//! Starting the helper VM with a job, and holding on to it.

use std::{
    env,
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    io::{FdFlags, fcntl_setfd, retry_on_intr},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    Error, Format, GREETING, Net, Result, Start,
    archive::Archive,
    elf,
    kernel::Kernel,
    qemu::{Drive, End, Machine, Port, Qemu},
};

/// MiB that the helper VM needs for itself: its kernel and what that keeps for each page of RAM.
const OWN_MEMORY: u64 = 224;

/// What its init mounts, and where it finds its job.
const DIRECTORIES: [&str; 5] = ["proc", "sys", "run", "job", "modules"];

/// How much of the log is shown where it must explain something.
const LOG_LINES: usize = 30;

/// How long the helper VM may take to greet us. It needs 3 s on an idle machine; this is for a crowded one.
const PATIENCE: Duration = Duration::from_secs(180);

/// A job for the helper VM: the running program becomes its init, and finds there what was added here.
///
/// Every method that adds something returns the path that it has inside.
#[derive(Debug)]
pub struct Launch {
    memory: u64,
    cpus: u32,
    files: Vec<(String, PathBuf)>,
    drives: Vec<Drive>,
    nets: Vec<Net>,
    streams: Vec<(String, UnixStream)>,
    sinks: Vec<(String, PathBuf)>,
}

impl Launch {
    /// A job that uses `memory` MiB for itself.
    pub fn new(memory: u64) -> Self {
        Self {
            memory,
            cpus: 1,
            files: Vec::new(),
            drives: Vec::new(),
            nets: Vec::new(),
            streams: Vec::new(),
            sinks: Vec::new(),
        }
    }

    /// The number of processors (default 1).
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Copies a file of up to 2 GiB; `name` is its name inside.
    pub fn file(&mut self, name: &str, path: &Path) -> PathBuf {
        let inside = format!("job/{name}");
        let path = (inside.clone(), path.to_owned());
        self.files.push(path);
        Path::new("/").join(inside)
    }

    /// Adds a disk image. Writes inside reach the file outside, at the latest when the job flushes or ends.
    pub fn drive(&mut self, path: &Path, format: Format, read_only: bool) -> PathBuf {
        let device = drive_name(self.drives.len());
        self.drives.push(Drive { path: path.to_owned(), format, read_only });
        device.into()
    }

    /// Adds a network. Inside, it is a Unix stream socket to connect to, with the wire format of passt(1) and QEMU's
    /// `-netdev stream`.
    pub fn net(&mut self, net: Net) -> PathBuf {
        let socket = format!("/run/net{}", self.nets.len());
        self.nets.push(net);
        socket.into()
    }

    /// Passes a connected stream socket in. Inside, it is a Unix stream socket to connect to, once.
    pub fn stream(&mut self, stream: UnixStream) -> PathBuf {
        let name = format!("stream{}", self.streams.len());
        let socket = format!("/run/{name}");
        self.streams.push((name, stream));
        socket.into()
    }

    /// Adds a file that the job writes from its beginning; inside it can only be written in sequence.
    pub fn sink(&mut self, path: &Path) -> PathBuf {
        let name = format!("sink{}", self.sinks.len());
        let inside = Path::new(crate::PORTS).join(&name);
        self.sinks.push((name, path.to_owned()));
        inside
    }

    /// Starts the helper VM and hands it the job's description. `say` hears of steps that take long.
    pub fn start(self, job: &serde_json::Value, say: &(dyn Fn(&str) + Send + Sync)) -> Result<L1> {
        let begin = Instant::now();
        let qemu = Qemu::find()?;
        let program = elf::static_program(Path::new("/proc/self/exe"))?;
        let kernel = Kernel::get(say)?;
        let (initrd, initrd_size) = self.initramfs(&program, &kernel)?;

        let mut inherited = vec![initrd];
        let inherit = |stream: UnixStream, inherited: &mut Vec<OwnedFd>| -> Result<i32> {
            fcntl_setfd(&stream, FdFlags::empty()).map_err(|e| Error::io("pass on", "a socket", e))?;
            let number = stream.as_raw_fd();
            inherited.push(stream.into());
            Ok(number)
        };
        let mut ports = Vec::new();
        let mut wire = |name: &str, inherited: &mut Vec<OwnedFd>| -> Result<UnixStream> {
            let (ours, qemus) = pair()?;
            ports.push(Port { name: name.to_owned(), end: End::Socket(inherit(qemus, inherited)?) });
            Ok(ours)
        };
        let console = wire("console", &mut inherited)?;
        let mut control = wire("control", &mut inherited)?;
        for (index, net) in self.nets.into_iter().enumerate() {
            let (here, there) = pair()?;
            let ends = [inherit(here, &mut inherited)?, inherit(there, &mut inherited)?];
            ports.push(Port { name: format!("net{index}"), end: End::Net(net, ends) });
        }
        for (name, stream) in self.streams {
            ports.push(Port { name, end: End::Socket(inherit(stream, &mut inherited)?) });
        }
        ports.extend(self.sinks.into_iter().map(|(name, path)| Port { name, end: End::File(path) }));

        let machine = Machine {
            kernel: kernel.vmlinuz,
            initrd: format!("/proc/self/fd/{}", inherited[0].as_raw_fd()).into(),
            // The archive is in memory twice while it is unpacked.
            memory: self.memory + OWN_MEMORY + 2 * initrd_size.div_ceil(1 << 20),
            cpus: self.cpus,
            drives: self.drives,
            ports,
        };
        let log = memory_file("vmmlinux-log", MemfdFlags::CLOEXEC)?;
        let shared = || log.try_clone().map(Stdio::from).map_err(|e| Error::io("share", "the log", e));
        let mut command = qemu.command(&machine);
        // A group of its own, for ^C on the terminal is not meant for QEMU.
        command.stdin(Stdio::null()).stdout(shared()?).stderr(shared()?).process_group(0);
        tracing::debug!(?command, "start the helper VM");
        let child = command.spawn().map_err(|source| qemu.missing(source))?;
        // Only QEMU holds its ends now: when it ends, ours read their end.
        drop(inherited);
        let mut l1 = L1 { child, log: log.into(), console, control: pair()?.0, start: Duration::ZERO };

        let io = |e| Error::io("talk to", "the helper VM", e);
        control.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        let mut greeting = [0; GREETING.len()];
        if control.read_exact(&mut greeting).is_err() || greeting != *GREETING {
            return Err(l1.died());
        }
        control.set_read_timeout(None).map_err(io)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = Start { now, job: job.clone() };
        let start = serde_json::to_vec(&start).map_err(|e| io(e.into()))?;
        let length = (start.len() as u32).to_be_bytes();
        control.write_all(&length).and_then(|()| control.write_all(&start)).map_err(io)?;
        l1.control = control;
        l1.start = begin.elapsed();
        tracing::info!(elapsed = ?l1.start, initramfs = initrd_size, memory = machine.memory, "the helper VM is up");
        Ok(l1)
    }

    /// Packs the initramfs into a file in memory that child processes inherit. Its size is in bytes.
    fn initramfs(&self, program: &[u8], kernel: &Kernel) -> Result<(OwnedFd, u64)> {
        let name = Path::new("the initramfs");
        let file = memory_file("vmmlinux-initramfs", MemfdFlags::empty())?;
        let mut archive =
            Archive::new(BufWriter::with_capacity(1 << 20, File::from(file)), name, &DIRECTORIES)?;
        archive.file("init", 0o755, program)?;
        for module in &kernel.modules {
            let file = module.file_name().unwrap_or_default().to_string_lossy();
            archive.copy(&format!("modules/{file}"), 0o400, module)?;
        }
        for (name, path) in &self.files {
            archive.copy(name, 0o400, path)?;
        }
        let writer = archive.finish()?;
        let mut file = writer.into_inner().map_err(|e| Error::io("write", name, e.into_error()))?;
        let size = file.stream_position().map_err(|e| Error::io("write", name, e))?;
        Ok((file.into(), size))
    }
}

fn drive_name(index: usize) -> String {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    if index < 26 {
        format!("/dev/vd{}", letter(index))
    } else {
        format!("/dev/vd{}{}", letter(index / 26 - 1), letter(index))
    }
}

fn pair() -> Result<(UnixStream, UnixStream)> {
    UnixStream::pair().map_err(|e| Error::io("create", "a socket pair", e))
}

fn memory_file(name: &str, flags: MemfdFlags) -> Result<OwnedFd> {
    memfd_create(name, flags).map_err(|e| Error::io("create", "a file in memory", e))
}

/// A running helper VM. It is killed when this is dropped.
#[derive(Debug)]
pub struct L1 {
    child: Child,
    log: File,
    console: UnixStream,
    control: UnixStream,
    start: Duration,
}

impl L1 {
    /// The job's console: bytes, as they are.
    pub fn console(&self) -> &UnixStream {
        &self.console
    }

    /// The wire to the job's control end.
    pub fn control(&self) -> &UnixStream {
        &self.control
    }

    /// How long it took from the call to the job's start.
    pub fn start_time(&self) -> Duration {
        self.start
    }

    /// The process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Hangs up the control wire, and waits until the helper VM has powered off. One that takes longer is killed.
    pub fn power_off(&mut self, patience: Duration) -> Result<ExitStatus> {
        let _ = self.control.shutdown(Shutdown::Both);
        if !self.ends_within(patience)? {
            tracing::warn!("the helper VM does not power off; killing it");
            self.child.kill().map_err(|e| Error::io("kill", "QEMU", e))?;
        }
        self.child.wait().map_err(|e| Error::io("wait for", "QEMU", e))
    }

    /// Whether QEMU ends in a certain time.
    fn ends_within(&self, patience: Duration) -> Result<bool> {
        let wait = || -> rustix::io::Result<bool> {
            // The process is our child and not waited for: its id cannot have gone to another.
            let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
            let patience = Timespec::try_from(patience).ok();
            retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], patience.as_ref()))
                .map(|n| n > 0)
        };
        wait().map_err(|e| Error::io("wait for", "QEMU", e))
    }

    /// The end of what QEMU, the helper VM's kernel and its init said.
    pub fn log(&mut self) -> String {
        let mut log = Vec::new();
        // QEMU writes through the same file offset: the end is where it is.
        let _ = self.log.seek(SeekFrom::Start(0)).and_then(|_| self.log.read_to_end(&mut log));
        let log = String::from_utf8_lossy(&log);
        let said: Vec<&str> =
            log.lines().filter(|line| !line.contains("TCG doesn't support requested feature")).collect();
        said[said.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// The error for a helper VM that went away, or will not come up.
    pub fn died(&mut self) -> Error {
        // One that closed its wires is ending; one that did not hangs.
        if !self.ends_within(Duration::from_secs(1)).unwrap_or(false) {
            let _ = self.child.kill();
        }
        let status = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        Error::Died { status, log: self.log() }
    }
}

impl Drop for L1 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if env::var_os("VMMLINUX_L1_LOG").is_some() {
            support::note!("{}", self.log());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_inside_are_told() {
        let mut launch = Launch::new(512);
        assert_eq!(launch.file("kernel", Path::new("/boot/vmlinuz")), Path::new("/job/kernel"));
        assert_eq!(launch.drive(Path::new("a.img"), Format::Raw, false), Path::new("/dev/vda"));
        assert_eq!(launch.drive(Path::new("b.img"), Format::Raw, true), Path::new("/dev/vdb"));
        assert_eq!(launch.net(Net::User), Path::new("/run/net0"));
        assert_eq!(launch.stream(UnixStream::pair().unwrap().0), Path::new("/run/stream0"));
        assert_eq!(launch.sink(Path::new("trace")), Path::new("/dev/virtio-ports/sink0"));
    }

    #[test]
    fn drives_are_named_as_linux_names_them() {
        assert_eq!(drive_name(25), "/dev/vdz");
        assert_eq!(drive_name(26), "/dev/vdaa");
        assert_eq!(drive_name(53), "/dev/vdbb");
    }
}
