//! A VM in the helper VM, seen from the host: packing its files, starting it, and forwarding commands.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use devices::virtio::disk;
use helper_vm::{L1, Launch, Net};
use parking_lot::Mutex;
use vmd_release::{Disk, DiskFormat};
use vmm::{Boot, Config, NicBackendConfig};
use vmm_control::{Answer, Command, ExitReport, Vm, remote::RemoteVm};

use crate::{
    Error, Network, Result, RunConfig, config::nic, ending::Ending, exit_status::failure, guest_init::Job,
    in_process::StatusInfo,
};

/// How long the helper VM may take to write back its disks and power off.
const POWER_OFF: Duration = Duration::from_secs(30);

/// How long the helper VM may take to report the guest's end after an order to end by force: longer
/// than its own VM's threads may take.
const FORCE_PATIENCE: Duration = Duration::from_secs(15);

/// A VM in the helper VM.
pub(crate) struct HelperVm {
    remote: Arc<RemoteVm>,
    l1: Mutex<L1>,
    /// QEMU's process, to end it while `l1` is locked.
    process: OwnedFd,
    console: UnixStream,
    ending: Arc<Ending>,
}

impl HelperVm {
    /// Starts the helper VM, and the VM in it. `progress` is called with each step that takes long.
    pub(crate) fn start(
        config: RunConfig,
        info: StatusInfo,
        progress: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Arc<Self>> {
        let (launch, job) = pack(config, info)?;
        let job = serde_json::to_value(job).map_err(|e| Error::host("describe the VM")(e.into()))?;
        let l1 = launch.start(&job, progress)?;
        let share = |stream: &UnixStream| {
            stream.try_clone().map_err(Error::host("share a connection to the helper VM"))
        };
        let console = share(l1.console())?;
        let remote = RemoteVm::new(share(l1.control())?, share(l1.control())?)
            .map_err(Error::host("start a thread"))?;
        let process = l1.process()?;
        let vm = Arc::new(Self {
            remote: Arc::new(remote),
            l1: Mutex::new(l1),
            process,
            console,
            ending: Arc::default(),
        });
        // One request for all waiting clients: the helper VM powers off after its first answer.
        let (remote, ending, running) = (Arc::clone(&vm.remote), Arc::clone(&vm.ending), Arc::downgrade(&vm));
        let wait = move || ending.set(report(remote.call(Command::Wait), &running));
        let thread = thread::Builder::new().name("report".to_owned());
        thread.spawn(wait).map_err(Error::host("start a thread"))?;
        Ok(vm)
    }

    /// The guest's console.
    pub(crate) fn console(&self) -> &UnixStream {
        &self.console
    }

    /// The guest's or the helper VM's end.
    pub(crate) fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Ends the helper VM at once. What the guest has not flushed may be lost.
    pub(crate) fn kill(&self) {
        if let Err(error) = helper_vm::kill(&self.process) {
            tracing::warn!(%error, "cannot kill the helper VM");
        }
    }

    /// Lets the helper VM write back its disks and power off.
    pub(crate) fn power_off(&self) {
        let mut l1 = self.l1.lock();
        match l1.power_off(POWER_OFF) {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!(%status, "the helper VM did not power off by itself"),
            Err(error) => tracing::warn!(%error, "the helper VM did not power off"),
        }
        tracing::debug!(log = l1.log(), "the helper VM's log");
    }
}

/// The exit report from the answer to a wait.
fn report(answer: std::result::Result<Answer, String>, vm: &Weak<HelperVm>) -> ExitReport {
    match (answer, vm.upgrade()) {
        (Ok(Answer::Ended(report)), _) => *report,
        (Ok(answer), _) => failure(format!("the helper VM answered a wait with {answer:?}"), None),
        (Err(_), Some(vm)) => {
            let died = vm.l1.lock().died();
            let help = miette::Diagnostic::help(&died).map(|help| help.to_string());
            failure(died.to_string(), help)
        }
        (Err(error), None) => failure(error, None),
    }
}

impl Vm for HelperVm {
    fn call(&self, command: Command) -> std::result::Result<Answer, String> {
        match command {
            Command::Wait => Ok(Answer::Ended(Box::new(self.ending.wait()))),
            Command::Stop { force: true } => {
                // The helper VM may not answer.
                let remote = Arc::clone(&self.remote);
                let order = move || drop(remote.call(command));
                let thread = thread::Builder::new().name("stop".to_owned());
                thread.spawn(order).map_err(|error| format!("cannot start a thread: {error}"))?;
                self.ending.force(FORCE_PATIENCE)
            }
            _ => self.remote.call(command),
        }
    }
}

/// The helper VM for a run, and its job with the paths that the files have there.
fn pack(config: RunConfig, info: StatusInfo) -> Result<(Launch, Job)> {
    let RunConfig { vm: mut config, networks, log_filter, .. } = config;
    // One host processor, however many vCPUs the guest has: they take turns (docs/decisions/one-helper-processor.md).
    let mut launch = Launch::new(config.memory >> 20);
    // QEMU's processor has the host's TSC but does not report it as invariant.
    config.tsc_hz = vmm::host_tsc_hz();
    pack_boot_files(&mut launch, &mut config)?;
    for disk in &mut config.disks {
        let format = disk::check(&disk.path, disk.format, true).map_err(vmm::Error::Disk)?;
        // QEMU decodes the image: in the helper VM it is a block device.
        let path = launch.drive(&absolute(&disk.path)?, format, false);
        *disk = Disk { path, format: Some(DiskFormat::Raw) };
    }
    if let Some(cdrom) = &mut config.cdrom {
        disk::check(cdrom, Some(DiskFormat::Raw), false).map_err(vmm::Error::Disk)?;
        *cdrom = launch.drive(&absolute(cdrom)?, DiskFormat::Raw, true);
    }
    if let Some(trace) = &mut config.trace {
        *trace = launch.sink(&absolute(trace)?);
    }
    for network in networks {
        let backend = match network {
            Network::Local => NicBackendConfig::Gateway,
            Network::User => NicBackendConfig::Stream(launch.net(Net::User)),
            Network::Tap(name) => NicBackendConfig::Stream(launch.net(Net::Tap(name))),
            Network::Socket(path) => {
                let stream = UnixStream::connect(&path)
                    .map_err(|source| Error::NetworkSocket { path: path.clone(), source })?;
                NicBackendConfig::Stream(launch.stream(stream))
            }
        };
        config.nics.push(nic(backend));
    }
    Ok((launch, Job { config, info, log_filter }))
}

/// Adds the files that the VM boots from, and its symbols. Each is opened here first, so that an error names the file
/// by its path on the host.
fn pack_boot_files(launch: &mut Launch, config: &mut Config) -> Result<()> {
    let mut pack = |name, what, path: &mut PathBuf| -> Result<()> {
        let failed = |source| vmm::Error::Read { what, path: path.clone(), source };
        File::open(&*path).map_err(failed)?;
        *path = launch.file(name, path);
        Ok(())
    };
    match &mut config.boot {
        Boot::Firmware { image, .. } => pack("firmware", "the firmware", image)?,
        Boot::Direct { kernel, initrd, .. } => {
            pack("kernel", "the kernel", kernel)?;
            if let Some(initrd) = initrd {
                pack("initrd", "the initrd", initrd)?;
            }
        }
    }
    if let Some(symbols) = &mut config.symbols {
        pack("symbols", "the kernel's symbols", symbols)?;
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|source| Error::Path { path: path.to_owned(), source })
}
