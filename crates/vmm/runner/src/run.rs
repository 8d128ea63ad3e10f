//! One run of a VM: start it, forward the terminal, serve the control socket, and wait for its end.

use std::{
    io::{self, IsTerminal, Read},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmm::{
    NicBackendConfig, Statistics, probe,
    report::{Table, svg},
};
use vmm_control::{Command, ExitReport, Server, Vm, console::Console, runtime_dir::NameLock};

use crate::{
    Accel, Error, FORCED, Network, Result, RunConfig, TIMED_OUT,
    config::nic,
    ending::Ending,
    helper::HelperVm,
    in_process::{InProcessVm, StatusInfo},
    terminal::{self, UnbufferedStdout, raw_mode},
};

/// Time to wait for the console to drain after the guest has ended.
const CONSOLE_DRAIN: Duration = Duration::from_secs(10);

/// The same after the guest was ended by force.
const FORCED_DRAIN: Duration = Duration::from_millis(500);

/// Time from a signal until another one ends the process at once. timeout(1) and a shell that
/// closes send two in a row.
const SECOND_SIGNAL: Duration = Duration::from_secs(1);

/// The end of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The exit report: the guest's exit reason or the VM's error, with statistics.
    pub report: ExitReport,
    /// `--timeout` expired and the guest was stopped by force for it.
    pub timed_out: bool,
    /// The reader of standard output closed its pipe and the guest was stopped by force for it.
    pub output_closed: bool,
}

impl Outcome {
    /// The exit status of `vmmlinux run`, as in [`crate::EXIT_STATUS_HELP`].
    pub fn exit_status(&self) -> u8 {
        if self.timed_out { TIMED_OUT } else { self.report.status }
    }

    /// The statistics as text: a table for the file name extension `txt`, a plot for `svg`, otherwise JSON together
    /// with the exit reason.
    pub fn statistics(&self, extension: Option<&str>) -> Result<String> {
        let ExitReport { status, text, ended, statistics, .. } = &self.report;
        let Some(format @ ("txt" | "svg")) = extension else {
            let value = serde_json::json!({
                "ended": ended,
                "status": status,
                "text": text,
                "statistics": statistics,
            });
            return Ok(format!("{value:#}\n"));
        };
        let statistics: Statistics =
            serde_json::from_value(statistics.clone()).map_err(|source| Error::NoStatistics { source })?;
        Ok(if format == "svg" { svg(&statistics) } else { Table(&statistics).to_string() })
    }
}

/// Runs a VM to its end. `progress` is called with a line of text for each step that takes long, and when the guest
/// starts on a terminal.
pub fn run(config: RunConfig, progress: &(dyn Fn(&str) + Send + Sync)) -> Result<Outcome> {
    let RunConfig { timeout, detached, .. } = config;
    let name = config.vm.name.clone();
    let name_lock = NameLock::new(&name)?;
    let accel = resolve_accel(config.accel)?;
    let interactive = !detached && io::stdin().is_terminal();
    let output = (!detached).then(|| Box::new(UnbufferedStdout) as Box<dyn io::Write + Send>);
    let info = StatusInfo {
        pid: std::process::id(),
        accel: accel.as_str().to_owned(),
        disks: config.vm.disks.iter().map(|disk| disk.path.display().to_string()).collect(),
        nics: config.networks.iter().map(ToString::to_string).collect(),
    };
    let started = match accel {
        Accel::Nested => Started::in_helper_vm(config, info, output, interactive, progress)?,
        _ => Started::in_process(config, info, output, interactive)?,
    };
    let Started { vm, console, place } = &started;
    let server = Server::start(name_lock, Arc::clone(vm), Arc::clone(console))?;
    if interactive {
        progress(&format!("{name} runs; type `~.` at the beginning of a line to stop it"));
    }
    let raw = if interactive { raw_mode().map_err(Error::host("set up the terminal"))? } else { None };
    stop_on_signals(vm, place)?;
    let timed_out = stop_after(vm, timeout)?;
    let output_closed = Arc::new(AtomicBool::new(false));
    if !detached {
        forward_stdin(vm, console)?;
        stop_when_output_closes(vm, &output_closed)?;
    }

    let report = place.ending().wait();
    let drain = if place.ending().forced() { FORCED_DRAIN } else { CONSOLE_DRAIN };
    if !console.wait_for(report.console_bytes, drain) {
        tracing::warn!("the last bytes of the console did not arrive");
    }
    console.close();
    drop(server);
    place.close();
    drop(raw);
    let forced = report.status == FORCED;
    Ok(Outcome {
        report,
        timed_out: forced && timed_out.load(Ordering::Acquire),
        output_closed: forced && output_closed.load(Ordering::Acquire),
    })
}

/// The given place of KVM, with `Auto` replaced by the one that works here.
pub fn resolve_accel(accel: Accel) -> Result<Accel> {
    match accel {
        Accel::Nested => Ok(Accel::Nested),
        Accel::Kvm => probe::probe().map(|_| Accel::Kvm).map_err(Into::into),
        Accel::Auto => Ok(match probe::probe() {
            Ok(_) => Accel::Kvm,
            Err(error) => {
                tracing::info!(%error, "the host's KVM cannot be used: using a helper VM");
                Accel::Nested
            }
        }),
    }
}

type Output = Option<Box<dyn io::Write + Send>>;

/// A VM that has been started.
struct Started {
    vm: Arc<dyn Vm>,
    console: Arc<Console>,
    place: Place,
}

/// Where a VM runs.
#[derive(Clone)]
enum Place {
    InProcess(Arc<InProcessVm>),
    HelperVm(Arc<HelperVm>),
}

impl Place {
    fn ending(&self) -> &Ending {
        match self {
            Self::InProcess(vm) => vm.ending(),
            Self::HelperVm(vm) => vm.ending(),
        }
    }

    /// Ends the helper VM, if there is one, after the guest has ended or was given up.
    fn close(&self) {
        match self {
            Self::HelperVm(vm) if vm.ending().given_up() => vm.kill(),
            Self::HelperVm(vm) => vm.power_off(),
            // Threads that have not left end with the process.
            Self::InProcess(_) => {}
        }
    }

    /// Ends the helper VM, if there is one, at once.
    fn kill(&self) {
        if let Self::HelperVm(vm) = self {
            vm.kill();
        }
    }
}

impl Started {
    fn in_process(config: RunConfig, info: StatusInfo, output: Output, interactive: bool) -> Result<Self> {
        let RunConfig { vm: mut config, networks, .. } = config;
        for network in networks {
            let backend = match network {
                Network::Local => NicBackendConfig::Gateway,
                Network::Tap(name) => NicBackendConfig::Tap(name),
                Network::Socket(path) => NicBackendConfig::Stream(path),
                Network::User => NicBackendConfig::Stream(crate::passt::start(&config.name)?),
            };
            config.nics.push(nic(backend));
        }
        let (keys, keyboard) = UnixStream::pair().map_err(Error::host("create a socket pair"))?;
        let console = Arc::new(Console::new(Box::new(keyboard), output, interactive));
        let writer = ConsoleWriter(Arc::clone(&console));
        let guest = vmm::Console { input: Some(keys.into()), output: Box::new(writer) };
        // Writes to the console are synchronous here: none are outstanding when the guest ends.
        let vm = InProcessVm::start(config, guest, info, || 0)?;
        Ok(Self { vm: Arc::clone(&vm) as Arc<dyn Vm>, console, place: Place::InProcess(vm) })
    }

    fn in_helper_vm(
        config: RunConfig,
        info: StatusInfo,
        output: Output,
        interactive: bool,
        progress: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<Self> {
        let step = |what: &str| progress(&format!("{what} …"));
        let helper = HelperVm::start(config, info, &step)?;
        let share = || helper.console().try_clone().map_err(Error::host("share the console"));
        let console = Arc::new(Console::new(Box::new(share()?), output, interactive));
        let (from, to) = (share()?, Arc::clone(&console));
        spawn("console", move || {
            if let Err(error) = to.copy_output(from) {
                tracing::debug!(%error, "the console ended");
            }
        })?;
        Ok(Self { vm: Arc::clone(&helper) as Arc<dyn Vm>, console, place: Place::HelperVm(helper) })
    }
}

/// Writes the guest's output to the console.
struct ConsoleWriter(Arc<Console>);

impl io::Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_output(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map(drop).map_err(Error::host("start a thread"))
}

/// Stops the guest by force on SIGHUP, SIGINT and SIGTERM. A second one, [`SECOND_SIGNAL`] after the first or later, ends
/// the process at once.
fn stop_on_signals(vm: &Arc<dyn Vm>, place: &Place) -> Result<()> {
    let (mut reader, writer) = UnixStream::pair().map_err(Error::host("create a socket pair"))?;
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        let writer = writer.try_clone().map_err(Error::host("share a socket"))?;
        signal_hook::low_level::pipe::register(signal, writer).map_err(Error::host("handle signals"))?;
    }
    let (vm, place) = (Arc::clone(vm), place.clone());
    spawn("signals", move || {
        let mut first = None;
        while reader.read_exact(&mut [0]).is_ok() {
            let vm = Arc::clone(&vm);
            match react(&mut first, Instant::now()) {
                Reaction::Stop if spawn("stop", move || stop(&vm)).is_ok() => {}
                Reaction::Nothing => {}
                Reaction::Stop | Reaction::Exit => {
                    place.kill();
                    terminal::restore();
                    std::process::exit(FORCED.into());
                }
            }
        }
    })
}

/// What follows a signal.
#[derive(Debug, PartialEq, Eq)]
enum Reaction {
    /// The guest is stopped by force.
    Stop,
    Nothing,
    /// The process ends at once.
    Exit,
}

/// The reaction to a signal that comes `now`; `first` is when the first one came.
fn react(first: &mut Option<Instant>, now: Instant) -> Reaction {
    match *first {
        None => {
            *first = Some(now);
            Reaction::Stop
        }
        Some(first) if now.duration_since(first) < SECOND_SIGNAL => Reaction::Nothing,
        Some(_) => Reaction::Exit,
    }
}

/// Stops the guest by force after `timeout`. The returned flag is set then.
fn stop_after(vm: &Arc<dyn Vm>, timeout: Option<Duration>) -> Result<Arc<AtomicBool>> {
    let expired = Arc::new(AtomicBool::new(false));
    if let Some(timeout) = timeout {
        let (vm, expired) = (Arc::clone(vm), Arc::clone(&expired));
        spawn("timeout", move || {
            thread::sleep(timeout);
            expired.store(true, Ordering::Release);
            stop(&vm);
        })?;
    }
    Ok(expired)
}

/// Stops the guest by force when the reader of standard output closes its pipe, as in `vmmlinux run … | head`, and sets
/// `closed`.
fn stop_when_output_closes(vm: &Arc<dyn Vm>, closed: &Arc<AtomicBool>) -> Result<()> {
    let (vm, closed) = (Arc::clone(vm), Arc::clone(closed));
    spawn("output", move || match terminal::wait_until_closed(io::stdout()) {
        Ok(()) => {
            closed.store(true, Ordering::Release);
            stop(&vm);
        }
        Err(error) => tracing::debug!(%error, "standard output is not watched"),
    })
}

/// Stops the guest by force.
fn stop(vm: &Arc<dyn Vm>) {
    if let Err(error) = vm.call(Command::Stop { force: true }) {
        tracing::warn!(error, "cannot stop the guest");
    }
}

/// Forwards standard input to the guest. Its end does not stop the guest; the escape `~.` does.
fn forward_stdin(vm: &Arc<dyn Vm>, console: &Arc<Console>) -> Result<()> {
    let (vm, console) = (Arc::clone(vm), Arc::clone(console));
    spawn("input", move || match terminal::forward_input(move |bytes| console.send_input(bytes)) {
        Ok(false) => {}
        Ok(true) => stop(&vm),
        Err(error) => tracing::debug!(%error, "standard input ended"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(statistics: serde_json::Value) -> Outcome {
        let report = ExitReport {
            status: 0,
            text: "the guest reset itself".to_owned(),
            help: None,
            ended: serde_json::json!("reset"),
            statistics,
            console_bytes: 42,
        };
        Outcome { report, timed_out: false, output_closed: false }
    }

    #[test]
    fn statistics_have_the_form_that_the_file_name_asks_for() {
        let statistics = Statistics { starts: 1, console_bytes: 42, ..Statistics::default() };
        let outcome = outcome(serde_json::to_value(&statistics).unwrap());
        for (extension, part) in
            [("json", "\"console_bytes\": 42"), ("txt", "console bytes 42"), ("svg", "<svg")]
        {
            let text = outcome.statistics(Some(extension)).unwrap();
            assert!(text.contains(part), "{extension}: {text}");
        }
    }

    #[test]
    fn a_second_signal_ends_the_process_unless_it_came_with_the_first() {
        let (mut first, begin) = (None, Instant::now());
        let after = [0, 10, 999, 1000].map(Duration::from_millis);
        assert_eq!(
            after.map(|after| react(&mut first, begin + after)),
            [Reaction::Stop, Reaction::Nothing, Reaction::Nothing, Reaction::Exit]
        );
    }

    #[test]
    fn a_table_needs_statistics() {
        let outcome = outcome(serde_json::Value::Null);
        assert!(matches!(outcome.statistics(Some("txt")), Err(Error::NoStatistics { .. })));
    }
}
