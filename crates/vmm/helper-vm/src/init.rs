//! The running program as init of the helper VM: loads KVM, opens the ports, receives the job and runs it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{OpenOptionsExt as _, symlink},
            net::UnixListener,
        },
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Once,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::OFlags,
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
    time::{ClockId, Timespec, clock_settime},
};

use crate::{Error, GREETING, PORTS, PORTS_ARGUMENT, Result, Start};

/// Time from the host's closing of the control port to a power-off, whatever the job does: less than the host waits.
const HOST_GONE: Duration = Duration::from_secs(20);

/// Timeout for all virtio-serial ports to appear.
const PORT_TIMEOUT: Duration = Duration::from_mins(1);

/// The environment of a job.
#[derive(Debug)]
pub struct Env {
    /// The job's description, as passed to [`crate::Launch::start`].
    pub job: serde_json::Value,
    /// The console.
    pub console: Port,
    /// The other end of [`crate::L1::control`].
    pub control: Port,
}

/// Whether this process is init of a helper VM.
pub fn is_init() -> bool {
    rustix::process::getpid().is_init() && Path::new("/modules").is_dir() && Path::new("/job").is_dir()
}

/// Runs a job as init of the helper VM and powers the helper VM off.
///
/// When the job starts, the helper VM's clock equals the host's within a few milliseconds. The helper VM powers off when
/// the job returns, or some time after the host has closed the control port or has ended: a job that hangs does not
/// keep it.
pub fn run(job: impl FnOnce(Env)) -> ! {
    if let Err(error) = prepare().map(|env| catch_unwind(AssertUnwindSafe(|| job(env)))) {
        // Standard error is the helper VM's log: the host shows it if no answer comes.
        support::note!("vmmlinux: {:?}", miette::Report::new(error));
    }
    rustix::fs::sync();
    power_off()
}

fn power_off() -> ! {
    let Err(error) = reboot(RebootCommand::PowerOff) else { unreachable!("the power is off") };
    support::note!("vmmlinux: cannot power off: {error}");
    // The kernel panics when init exits, which ends QEMU.
    std::process::exit(1)
}

/// Powers the helper VM off after [`HOST_GONE`], once.
fn power_off_without_host() {
    static GONE: Once = Once::new();
    GONE.call_once(|| {
        let wait = || {
            thread::sleep(HOST_GONE);
            support::note!("vmmlinux: the host has closed the control port, and the job has not ended");
            power_off()
        };
        if let Err(error) = thread::Builder::new().name("host".to_owned()).spawn(wait) {
            support::note!("vmmlinux: cannot start a thread: {error}");
        }
    });
}

fn prepare() -> Result<Env> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, target, kind, MountFlags::empty(), None).map_err(|e| Error::io("mount", target, e))?;
    }
    for module in sorted(Path::new("/modules"))? {
        let file = File::open(&module).map_err(|e| Error::io("open", &module, e))?;
        // Without polling for interrupts, which would waste time of the emulated processor.
        let parameters = if module.to_string_lossy().ends_with("-kvm.ko") { c"halt_poll_ns=0" } else { c"" };
        finit_module(&file, parameters, 0).map_err(|e| Error::io("load", &module, e))?;
    }
    name_ports()?;
    // Write back within a second what the guest has written, in case the host kills the helper VM.
    for setting in ["dirty_writeback_centisecs", "dirty_expire_centisecs"] {
        let path = Path::new("/proc/sys/vm").join(setting);
        fs::write(&path, "100").map_err(|e| Error::io("write", &path, e))?;
    }
    for port in sorted(Path::new(PORTS))? {
        let name = port.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("net") || name.starts_with("stream") {
            listen(&name)?;
        }
    }

    let mut control = Port::open("control")?;
    let io = |e| Error::io("talk through", "the control port", e);
    control.write_all(GREETING).map_err(io)?;
    let mut length = [0; 4];
    control.read_exact(&mut length).map_err(io)?;
    let mut start = vec![0; u32::from_be_bytes(length) as usize];
    control.read_exact(&mut start).map_err(io)?;
    let Start { now, job } = serde_json::from_slice(&start).map_err(|e| io(e.into()))?;
    let now = Timespec { tv_sec: now.as_secs().cast_signed(), tv_nsec: now.subsec_nanos().into() };
    clock_settime(ClockId::Realtime, now).map_err(|e| Error::io("set", "the clock", e))?;
    control.is_life_line = true;
    Ok(Env { job, console: Port::open("console")?, control })
}

fn sorted(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

/// Links each port under its name in `/dev/virtio-ports`, as udev does elsewhere.
///
/// The driver finds ports and their names one by one after it was loaded. The kernel's command line has their number.
fn name_ports() -> Result<()> {
    fs::create_dir_all(PORTS).map_err(|e| Error::io("create", PORTS, e))?;
    let cmdline = fs::read_to_string("/proc/cmdline").map_err(|e| Error::io("read", "/proc/cmdline", e))?;
    let wanted = wanted_ports(&cmdline);
    let class = Path::new("/sys/class/virtio-ports");
    let begin = Instant::now();
    loop {
        let ports = if class.is_dir() { sorted(class)? } else { Vec::new() };
        let named: Vec<_> = ports
            .iter()
            .filter_map(|port| Some((port, fs::read_to_string(port.join("name")).ok()?)))
            .filter(|(_, name)| !name.trim().is_empty())
            .collect();
        if named.len() >= wanted {
            for (port, name) in named {
                let link = Path::new(PORTS).join(name.trim());
                let device = Path::new("/dev").join(port.file_name().unwrap_or_default());
                symlink(device, &link).map_err(|e| Error::io("create", &link, e))?;
            }
            return Ok(());
        }
        if begin.elapsed() > PORT_TIMEOUT {
            return Err(Error::io("find all ports in", class, io::Error::from(io::ErrorKind::TimedOut)));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The number of ports, from the kernel's command line.
fn wanted_ports(cmdline: &str) -> usize {
    let count = cmdline.split_whitespace().find_map(|word| word.strip_prefix(PORTS_ARGUMENT));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Makes a port available as the Unix stream socket `/run/<name>`, for one connection.
fn listen(name: &str) -> Result<()> {
    let path = Path::new("/run").join(name);
    let listener = UnixListener::bind(&path).map_err(|e| Error::io("create", &path, e))?;
    let port = Port::open(name)?;
    let accept = move || -> io::Result<()> {
        let (socket, _) = listener.accept()?;
        let (mut from_port, mut to_socket) = (port.try_clone()?, socket.try_clone()?);
        thread::Builder::new()
            .name("port".to_owned())
            .spawn(move || io::copy(&mut from_port, &mut to_socket))?;
        io::copy(&mut { socket }, &mut { port })?;
        Ok(())
    };
    let report = move || {
        if let Err(error) = accept() {
            support::note!("vmmlinux: {}: {error}", path.display());
        }
    };
    thread::Builder::new()
        .name("port".to_owned())
        .spawn(report)
        .map_err(|e| Error::io("start", "a thread", e))?;
    Ok(())
}

/// A virtio-serial port to the host.
///
/// Reads and writes wait with poll(2): a blocking write to such a port spins with interrupts disabled until the host
/// has read the bytes. One thread at most may wait to read: beside another one that polls the same port, a reader has
/// missed what came.
#[derive(Debug)]
pub struct Port {
    file: File,
    /// Whether the helper VM powers off some time after a reader has found it closed.
    is_life_line: bool,
}

impl Port {
    fn open(name: &str) -> Result<Self> {
        let path = Path::new(PORTS).join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        let file = options.open(&path).map_err(|e| Error::io("open", &path, e))?;
        Ok(Self { file, is_life_line: false })
    }

    /// A second handle to the same port.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, is_life_line: self.is_life_line })
    }

    /// The host has closed its end, or has ended.
    fn closed(&self) {
        if self.is_life_line {
            power_off_without_host();
        }
    }

    /// Waits until the port is ready for `flags`. Fails if the host has closed its end.
    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        let mut ports = [PollFd::new(&self.file, flags)];
        poll(&mut ports, None)?;
        let found = ports[0].revents();
        if found.contains(PollFlags::HUP) && !found.intersects(flags) {
            self.closed();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }
}

impl From<Port> for OwnedFd {
    fn from(port: Port) -> Self {
        port.file.into()
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Read for Port {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::IN)?,
                Ok(0) if !buf.is_empty() => {
                    self.closed();
                    return Ok(0);
                }
                result => return result,
            }
        }
    }
}

impl Write for Port {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::OUT)?,
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_tells_how_many_ports_there_are() {
        assert_eq!(wanted_ports("quiet vmmlinux.ports=3 panic=-1\n"), 3);
        assert_eq!(wanted_ports("quiet vmmlinux.ports=many"), 0);
        assert_eq!(wanted_ports(""), 0);
    }

    #[test]
    fn a_port_tells_when_the_host_has_gone() {
        let (here, host) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut port = Port { file: OwnedFd::from(here).into(), is_life_line: false };
        drop(host);
        assert_eq!(port.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn tests_do_not_run_in_a_helper_vm() {
        assert!(!is_init());
    }
}
