//! The host's side of a machine that runs in a helper VM.

use std::{
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use devices::virtio::disk;
use helper_vm::{Format, L1, Launch, Net};
use miette::{IntoDiagnostic, WrapErr};
use vmm::{Boot, Disk, DiskFormat, NicBackend};
use vmm_control::{Answer, Command, Ending, Vm, remote::Remote};

use super::{
    ending::FAILED,
    guest_init::Job,
    in_process::About,
    plan::{Network, Plan, nic},
};

/// How long the helper VM may take to write back what it has and power off.
const POWER_OFF: Duration = Duration::from_secs(30);

/// A machine in a helper VM.
pub(crate) struct Outside {
    remote: Remote,
    l1: Mutex<L1>,
    console: UnixStream,
    ending: Mutex<Option<Ending>>,
    ended: Condvar,
}

impl Outside {
    /// Starts the helper VM and the machine in it.
    pub(crate) fn start(
        plan: Plan,
        about: About,
        say: &(dyn Fn(&str) + Send + Sync),
    ) -> miette::Result<Self> {
        let (launch, job) = pack(plan, about)?;
        let job = serde_json::to_value(job).into_diagnostic().wrap_err("cannot describe the machine")?;
        let l1 = launch.start(&job, say)?;
        let share = |stream: &UnixStream| {
            stream.try_clone().into_diagnostic().wrap_err("cannot share a wire to the helper VM")
        };
        let console = share(l1.console())?;
        let remote = Remote::new(share(l1.control())?, share(l1.control())?)
            .into_diagnostic()
            .wrap_err("cannot start a thread")?;
        Ok(Self { remote, l1: Mutex::new(l1), console, ending: Mutex::new(None), ended: Condvar::new() })
    }

    /// The guest's console.
    pub(crate) fn console(&self) -> &UnixStream {
        &self.console
    }

    /// Blocks until the guest has ended, or the helper VM has gone. Clients that wait are told then.
    pub(crate) fn wait(&self) -> Ending {
        let ending = self.wait_inside();
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner) = Some(ending.clone());
        self.ended.notify_all();
        ending
    }

    fn wait_inside(&self) -> Ending {
        match self.remote.call(Command::Wait) {
            Ok(Answer::Ended(ending)) => *ending,
            Ok(answer) => failure(format!("the helper VM answers {answer:?} to a wait")),
            Err(_) => {
                let died = self.l1.lock().unwrap_or_else(PoisonError::into_inner).died();
                let help = miette::Diagnostic::help(&died).map(|help| help.to_string());
                Ending { help, ..failure(died.to_string()) }
            }
        }
    }

    /// Lets the helper VM write back what it has, and power off.
    pub(crate) fn power_off(&self) {
        let mut l1 = self.l1.lock().unwrap_or_else(PoisonError::into_inner);
        match l1.power_off(POWER_OFF) {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!(%status, "the helper VM did not power off by itself"),
            Err(error) => tracing::warn!(%error, "the helper VM did not power off"),
        }
        tracing::debug!(log = l1.log(), "the helper VM's log");
    }
}

impl Vm for Outside {
    fn call(&self, command: Command) -> Result<Answer, String> {
        if command != Command::Wait {
            return self.remote.call(command);
        }
        // Not asked for again inside: the helper VM is let go as soon as the first answer is here.
        let ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.ended.wait_while(ending, |ending| ending.is_none());
        let ending = ended.unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Answer::Ended(Box::new(ending.expect("waited until it is there"))))
    }
}

fn failure(text: String) -> Ending {
    Ending {
        status: FAILED,
        text,
        help: None,
        ended: serde_json::Value::Null,
        statistics: serde_json::Value::Null,
        console_bytes: 0,
    }
}

/// The helper VM for a machine, and the machine with the names that its files have in there.
fn pack(plan: Plan, about: About) -> miette::Result<(Launch, Job)> {
    let Plan { mut config, networks, log, .. } = plan;
    // However many processors the guest has, one is enough for them to take turns on: docs/reference/openbsd-8.0.md.
    let mut launch = Launch::new(config.memory >> 20);
    // The emulated processor has this TSC, and does not say that it is invariant.
    config.tsc_hz = vmm::host_tsc_hz();
    // What cannot be used is refused here, in the machine's words: inside, files have other names.
    let mut pass = |name, what, path: &mut PathBuf| -> miette::Result<()> {
        let failed = |source| vmm::Error::Read { what, path: path.clone(), source };
        File::open(&*path).map_err(failed)?;
        *path = launch.file(name, path);
        Ok(())
    };
    match &mut config.boot {
        Boot::Firmware { image, .. } => pass("firmware", "the firmware", image)?,
        Boot::Direct { kernel, initrd, .. } => {
            pass("kernel", "the kernel", kernel)?;
            if let Some(initrd) = initrd {
                pass("initrd", "the initrd", initrd)?;
            }
        }
    }
    if let Some(symbols) = &mut config.symbols {
        pass("symbols", "the kernel's symbols", symbols)?;
    }
    for disk in &mut config.disks {
        let format = match disk::check(&disk.path, disk.format.map(Into::into), true)? {
            disk::Format::Raw => Format::Raw,
            disk::Format::Qcow2 => Format::Qcow2,
        };
        // QEMU decodes the image: inside, it is a block device.
        let path = launch.drive(&absolute(&disk.path)?, format, false);
        *disk = Disk { path, format: Some(DiskFormat::Raw) };
    }
    if let Some(cdrom) = &mut config.cdrom {
        disk::check(cdrom, Some(disk::Format::Raw), false)?;
        *cdrom = launch.drive(&absolute(cdrom)?, Format::Raw, true);
    }
    if let Some(trace) = &mut config.trace {
        *trace = launch.sink(&absolute(trace)?);
    }
    for network in networks {
        let backend = match network {
            Network::Local => NicBackend::Gateway,
            Network::User => NicBackend::Stream(launch.net(Net::User)),
            Network::Tap(name) => NicBackend::Stream(launch.net(Net::Tap(name))),
            Network::Socket(path) => {
                let stream = UnixStream::connect(&path)
                    .into_diagnostic()
                    .wrap_err_with(|| format!("cannot connect to the network socket {}", path.display()))?;
                NicBackend::Stream(launch.stream(stream))
            }
        };
        config.nics.push(nic(backend));
    }
    Ok((launch, Job { config, about, log }))
}

fn absolute(path: &Path) -> miette::Result<PathBuf> {
    std::path::absolute(path).into_diagnostic().wrap_err_with(|| format!("cannot find {}", path.display()))
}
