//! Starts the helper VM with a job, and controls it from the host.

use std::{
    env,
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
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
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use support::run;
use vmd_release::DiskFormat;

use crate::{
    Error, GREETING, Net, Result, Start,
    archive::Archive,
    elf,
    kernel::Kernel,
    qemu::{Drive, End, Machine, Port, Qemu},
};

/// Memory in MiB for the helper VM itself: its kernel, with the metadata of each page of RAM.
const OWN_MEMORY: u64 = 224;

/// Directories of the initramfs: mount points, and the places of modules and job files.
const DIRECTORIES: [&str; 5] = ["proc", "sys", "run", "job", "modules"];

/// Number of log lines in an error.
const LOG_LINES: usize = 30;

/// Timeout of the helper VM's start. It takes 3 s on an idle host.
const START_TIMEOUT: Duration = Duration::from_mins(3);

/// A job for the helper VM, in which the running program is init.
///
/// Every method that adds something returns its path in the helper VM.
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
    /// A job that needs `memory` MiB.
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

    /// Sets the number of processors (default 1).
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Copies a file of up to 2 GiB under the name `name`.
    pub fn file(&mut self, name: &str, path: &Path) -> PathBuf {
        let packed = format!("job/{name}");
        let path = (packed.clone(), path.to_owned());
        self.files.push(path);
        Path::new("/").join(packed)
    }

    /// Adds a disk image. Writes reach the file on the host when the job flushes or ends.
    pub fn drive(&mut self, path: &Path, format: DiskFormat, read_only: bool) -> PathBuf {
        let device = drive_name(self.drives.len());
        self.drives.push(Drive { path: path.to_owned(), format, read_only });
        device.into()
    }

    /// Adds a network. In the helper VM it is a listening Unix stream socket with the frame format of passt(1) and
    /// QEMU's `-netdev stream`.
    pub fn net(&mut self, net: Net) -> PathBuf {
        let socket = format!("/run/net{}", self.nets.len());
        self.nets.push(net);
        socket.into()
    }

    /// Adds a connected stream socket. In the helper VM it is a listening Unix stream socket for one connection.
    pub fn stream(&mut self, stream: UnixStream) -> PathBuf {
        let name = format!("stream{}", self.streams.len());
        let socket = format!("/run/{name}");
        self.streams.push((name, stream));
        socket.into()
    }

    /// Adds a file that the job writes from its beginning, sequentially.
    pub fn sink(&mut self, path: &Path) -> PathBuf {
        let name = format!("sink{}", self.sinks.len());
        let device = Path::new(crate::PORTS).join(&name);
        self.sinks.push((name, path.to_owned()));
        device
    }

    /// Starts the helper VM and sends it the job's description. `progress` is called with each step that takes long.
    pub fn start(self, job: &serde_json::Value, progress: &(dyn Fn(&str) + Send + Sync)) -> Result<L1> {
        let begin = Instant::now();
        let qemu = Qemu::find()?;
        let program = elf::static_program(Path::new("/proc/self/exe"))?;
        let kernel = Kernel::get(progress)?;
        let (initrd, initrd_size) = self.initramfs(&program, &kernel)?;

        let mut inherited = vec![initrd];
        let inherit = |stream: UnixStream, inherited: &mut Vec<OwnedFd>| -> Result<i32> {
            fcntl_setfd(&stream, FdFlags::empty()).map_err(|e| Error::io("pass on", "a socket", e))?;
            let number = stream.as_raw_fd();
            inherited.push(stream.into());
            Ok(number)
        };
        let mut ports = Vec::new();
        let mut connect = |name: &str, inherited: &mut Vec<OwnedFd>| -> Result<UnixStream> {
            let (ours, qemus) = pair()?;
            ports.push(Port { name: name.to_owned(), end: End::Socket(inherit(qemus, inherited)?) });
            Ok(ours)
        };
        let console = connect("console", &mut inherited)?;
        let control = connect("control", &mut inherited)?;
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
            // The archive is in memory twice while the kernel unpacks it.
            memory: self.memory + OWN_MEMORY + 2 * initrd_size.div_ceil(1 << 20),
            cpus: self.cpus,
            drives: self.drives,
            ports,
        };
        let log = memory_file("vmmlinux-log", MemfdFlags::CLOEXEC)?;
        let shared = || log.try_clone().map(Stdio::from).map_err(|e| Error::io("share", "the log", e));
        let mut command = qemu.command(&machine);
        // Its own process group: ^C in the terminal must not reach QEMU.
        command.stdin(Stdio::null()).stdout(shared()?).stderr(shared()?).process_group(0);
        tracing::debug!(?command, "start the helper VM");
        let child = command.spawn().map_err(|source| qemu.missing(source))?;
        // Only QEMU has its ends open now: our ends read end-of-file when it ends.
        drop(inherited);
        let mut l1 = L1 { child, log: log.into(), console, control, start: Duration::ZERO };
        l1.send_job(job)?;
        l1.start = begin.elapsed();
        tracing::info!(elapsed = ?l1.start, initramfs = initrd_size, memory = machine.memory, "the helper VM is up");
        Ok(l1)
    }

    /// Packs the initramfs into a file in memory that child processes inherit. Returns it and its size in bytes.
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
    let letter = |n: usize| char::from(b"abcdefghijklmnopqrstuvwxyz"[n % 26]);
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
    /// Waits for the helper VM's greeting, and sends it the job and the host's time.
    fn send_job(&mut self, job: &serde_json::Value) -> Result<()> {
        let io = |e| Error::io("talk to", "the helper VM", e);
        self.control.set_read_timeout(Some(START_TIMEOUT)).map_err(io)?;
        let mut greeting = [0; GREETING.len()];
        if self.control.read_exact(&mut greeting).is_err() || greeting != *GREETING {
            return Err(self.died());
        }
        self.control.set_read_timeout(None).map_err(io)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = Start { now, job: job.clone() };
        let start = serde_json::to_vec(&start).map_err(|e| io(e.into()))?;
        let length = u32::try_from(start.len()).map_err(|e| io(std::io::Error::other(e)))?.to_be_bytes();
        self.control.write_all(&length).and_then(|()| self.control.write_all(&start)).map_err(io)
    }

    /// The job's console.
    pub fn console(&self) -> &UnixStream {
        &self.console
    }

    /// The host's end of the job's control port.
    pub fn control(&self) -> &UnixStream {
        &self.control
    }

    /// The time from [`Launch::start`] to the job's start.
    pub fn start_time(&self) -> Duration {
        self.start
    }

    /// The process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A handle to QEMU's process, for [`kill`].
    pub fn process(&self) -> Result<OwnedFd> {
        // The process is our child and has not been waited for: its id cannot be reused.
        pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())
            .map_err(|e| Error::io("get a handle to", "QEMU", e))
    }

    /// Closes the control port and waits until the helper VM has powered off. Kills it after `timeout`.
    pub fn power_off(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let _ = self.control.shutdown(Shutdown::Both);
        if !self.ends_within(timeout)? {
            tracing::warn!("the helper VM does not power off; killing it");
            self.child.kill().map_err(|e| Error::io("kill", "QEMU", e))?;
        }
        self.child.wait().map_err(|e| Error::io("wait for", "QEMU", e))
    }

    /// Waits for QEMU to end. Returns false after `timeout`.
    fn ends_within(&self, timeout: Duration) -> Result<bool> {
        let process = self.process()?;
        let timeout = Timespec::try_from(timeout).ok();
        retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], timeout.as_ref()))
            .map(|n| n > 0)
            .map_err(|e| Error::io("wait for", "QEMU", e))
    }

    /// The last lines of output of QEMU, the helper VM's kernel and its init.
    pub fn log(&mut self) -> String {
        let mut log = Vec::new();
        // QEMU shares the file offset; reading to the end restores it.
        let _ = self.log.seek(SeekFrom::Start(0)).and_then(|_| self.log.read_to_end(&mut log));
        let log = String::from_utf8_lossy(&log);
        let lines = log.lines().filter(|line| !line.contains("TCG doesn't support requested feature"));
        run::last(lines, LOG_LINES)
    }

    /// The error for a helper VM that has ended or does not start. It is killed if it has not ended.
    pub fn died(&mut self) -> Error {
        // It closes its ports when it ends; otherwise it hangs.
        if !self.ends_within(Duration::from_secs(1)).unwrap_or(false) {
            let _ = self.child.kill();
        }
        let status = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        Error::Died { status, log: self.log() }
    }
}

/// Ends the helper VM of this process handle at once. Does nothing if it has ended.
pub fn kill(process: impl AsFd) -> Result<()> {
    match pidfd_send_signal(process, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        result => result.map_err(|e| Error::io("kill", "QEMU", e)),
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
    fn added_things_have_paths_in_the_helper_vm() {
        let mut launch = Launch::new(512);
        assert_eq!(launch.file("kernel", Path::new("/boot/vmlinuz")), Path::new("/job/kernel"));
        assert_eq!(launch.drive(Path::new("a.img"), DiskFormat::Raw, false), Path::new("/dev/vda"));
        assert_eq!(launch.drive(Path::new("b.img"), DiskFormat::Raw, true), Path::new("/dev/vdb"));
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
