//! One run of a machine, from the command line to the exit status.

use std::{
    io::{self, IsTerminal, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use miette::{IntoDiagnostic, WrapErr, miette};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmm::{
    NicBackend, Statistics, probe,
    report::{Table, svg},
};
use vmm_control::{Command, Ending, Server, Vm, console::Console, place::Claim};

use super::{
    ending::{FAILED, FORCED, TIMED_OUT},
    helper::Outside,
    in_process::{About, Local},
    plan::{Accel, Network, Plan, nic},
    terminal::{self, Screen, raw_mode},
};

/// How long the last bytes of the console may be under way.
const LAST_BYTES: Duration = Duration::from_secs(10);

/// How a machine is run.
pub(crate) struct Session {
    pub(crate) plan: Plan,
    /// Where the statistics go, see [`report`].
    pub(crate) statistics: Option<PathBuf>,
    /// When the guest is ended by force.
    pub(crate) timeout: Option<Duration>,
    /// Without a console of its own: nothing is read or written but errors.
    pub(crate) detached: bool,
}

/// Runs a machine to its end.
pub(crate) fn run(session: Session) -> miette::Result<ExitCode> {
    let Session { plan, statistics, timeout, detached } = session;
    let name = plan.config.name.clone();
    let claim = Claim::new(&name)?;
    let accel = choose(plan.accel)?;
    let terminal = !detached && io::stdin().is_terminal();
    let output = (!detached).then(|| Box::new(Screen) as Box<dyn io::Write + Send>);
    let about = About {
        pid: std::process::id(),
        accel: match accel {
            Accel::Nested => "nested".to_owned(),
            _ => "kvm".to_owned(),
        },
        disks: plan.config.disks.iter().map(|disk| disk.path.display().to_string()).collect(),
        nics: plan.networks.iter().map(ToString::to_string).collect(),
    };
    let say = |what: &str| support::note!("vmmlinux: {what} …");
    let running = match accel {
        Accel::Nested => Running::nested(plan, about, output, terminal, &say)?,
        _ => Running::local(plan, about, output, terminal)?,
    };
    let Running { vm, console, host } = &running;
    let server = Server::start(claim, Arc::clone(vm), Arc::clone(console))?;
    if terminal {
        support::note!("vmmlinux: {name} runs; `~.` at the beginning of a line ends it");
    }
    let raw = if terminal { raw_mode()? } else { None };
    end_on_signals(vm)?;
    let late = end_after(vm, timeout)?;
    let unread = Arc::new(AtomicBool::new(false));
    if !detached {
        take_input(vm, console)?;
        end_when_unread(vm, &unread)?;
    }

    let ending = host.wait();
    if !console.wait_for(ending.console_bytes, LAST_BYTES) {
        tracing::warn!("the last bytes of the console did not arrive");
    }
    console.close();
    drop(server);
    if let Host::Outside(outside) = host {
        outside.power_off();
    }
    drop(raw);
    if let Some(path) = statistics {
        report(&path, &ending)?;
    }
    if unread.load(Ordering::Acquire) && ending.status == FORCED {
        return Ok(ExitCode::from(FORCED));
    }
    Ok(tell(&name, &ending, late.load(Ordering::Acquire)))
}

/// A machine that has been started.
struct Running {
    vm: Arc<dyn Vm>,
    console: Arc<Console>,
    host: Host,
}

/// Where it is.
enum Host {
    Local(Arc<Local>),
    Outside(Arc<Outside>),
}

impl Host {
    fn wait(&self) -> Ending {
        match self {
            Self::Local(local) => local.wait(),
            Self::Outside(outside) => outside.wait(),
        }
    }
}

type Output = Option<Box<dyn io::Write + Send>>;

impl Running {
    fn local(plan: Plan, about: About, output: Output, terminal: bool) -> miette::Result<Self> {
        let mut config = plan.config;
        for network in plan.networks {
            let backend = match network {
                Network::Local => NicBackend::Gateway,
                Network::Tap(name) => NicBackend::Tap(name),
                Network::Socket(path) => NicBackend::Stream(path),
                Network::User => NicBackend::Stream(super::passt::start(&config.name)?),
            };
            config.nics.push(nic(backend));
        }
        let (keys, keyboard) =
            UnixStream::pair().into_diagnostic().wrap_err("cannot create a socket pair")?;
        let console = Arc::new(Console::new(Box::new(keyboard), output, terminal));
        let shown = Arc::clone(&console);
        let guest = vmm::Console { input: Some(keys.into()), output: Box::new(Shown(shown)) };
        // The console is written in this process: nothing can be under way.
        let local = Local::start(config, guest, about, || 0)?;
        Ok(Self { vm: Arc::clone(&local) as Arc<dyn Vm>, console, host: Host::Local(local) })
    }

    fn nested(
        plan: Plan,
        about: About,
        output: Output,
        terminal: bool,
        say: &(dyn Fn(&str) + Send + Sync),
    ) -> miette::Result<Self> {
        let outside = Arc::new(Outside::start(plan, about, say)?);
        let share = || outside.console().try_clone().into_diagnostic().wrap_err("cannot share the console");
        let console = Arc::new(Console::new(Box::new(share()?), output, terminal));
        let (from, shown) = (share()?, Arc::clone(&console));
        spawn("console", move || {
            if let Err(error) = shown.show_all(from) {
                tracing::debug!(%error, "the console ended");
            }
        })?;
        Ok(Self { vm: Arc::clone(&outside) as Arc<dyn Vm>, console, host: Host::Outside(outside) })
    }
}

/// Shows what the guest writes.
struct Shown(Arc<Console>);

impl io::Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.show(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where the machine's KVM is to be, `Auto` resolved.
pub(crate) fn choose(accel: Accel) -> miette::Result<Accel> {
    match accel {
        Accel::Nested => Ok(Accel::Nested),
        Accel::Kvm => probe::probe().map(|_| Accel::Kvm).map_err(Into::into),
        Accel::Auto => Ok(match probe::probe() {
            Ok(_) => Accel::Kvm,
            Err(error) => {
                tracing::info!(%error, "the host's KVM cannot be used: a helper VM will be");
                Accel::Nested
            }
        }),
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> miette::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .into_diagnostic()
        .wrap_err("cannot start a thread")
}

/// Ends the guest by force when this process is told to end.
fn end_on_signals(vm: &Arc<dyn Vm>) -> miette::Result<()> {
    let (mut reader, writer) =
        UnixStream::pair().into_diagnostic().wrap_err("cannot create a socket pair")?;
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        let writer = writer.try_clone().into_diagnostic().wrap_err("cannot share a socket")?;
        signal_hook::low_level::pipe::register(signal, writer)
            .into_diagnostic()
            .wrap_err("cannot handle signals")?;
    }
    let vm = Arc::clone(vm);
    spawn("signals", move || {
        let mut byte = [0];
        while reader.read_exact(&mut byte).is_ok() {
            if let Err(error) = vm.call(Command::Stop { force: true }) {
                // Nothing left that could end in order.
                terminal::cook();
                support::note!("vmmlinux: {error}");
                std::process::exit(FORCED.into());
            }
        }
    })
}

/// Ends the guest by force when its time is over. The flag tells that it was.
fn end_after(vm: &Arc<dyn Vm>, timeout: Option<Duration>) -> miette::Result<Arc<AtomicBool>> {
    let late = Arc::new(AtomicBool::new(false));
    if let Some(timeout) = timeout {
        let (vm, late) = (Arc::clone(vm), Arc::clone(&late));
        spawn("timeout", move || {
            thread::sleep(timeout);
            late.store(true, Ordering::Release);
            end(&vm);
        })?;
    }
    Ok(late)
}

/// Ends the guest by force when nobody reads standard output any more, as in `vmmlinux run … | head`. The flag tells that it
/// was so.
fn end_when_unread(vm: &Arc<dyn Vm>, unread: &Arc<AtomicBool>) -> miette::Result<()> {
    let (vm, unread) = (Arc::clone(vm), Arc::clone(unread));
    spawn("output", move || match terminal::wait_until_unread(io::stdout()) {
        Ok(()) => {
            unread.store(true, Ordering::Release);
            end(&vm);
        }
        Err(error) => tracing::debug!(%error, "standard output is not watched"),
    })
}

/// Ends the guest by force.
fn end(vm: &Arc<dyn Vm>) {
    if let Err(error) = vm.call(Command::Stop { force: true }) {
        tracing::warn!(error, "cannot end the guest");
    }
}

/// Types standard input in. Its end does not end the guest; leaving the terminal does.
fn take_input(vm: &Arc<dyn Vm>, console: &Arc<Console>) -> miette::Result<()> {
    let (vm, console) = (Arc::clone(vm), Arc::clone(console));
    spawn("input", move || match terminal::converse(|bytes| console.typed(bytes)) {
        Ok(false) => {}
        Ok(true) => end(&vm),
        Err(error) => tracing::debug!(%error, "no more input"),
    })
}

/// Writes the statistics, in the form that the file's name asks for.
fn report(path: &Path, ending: &Ending) -> miette::Result<()> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let text = if let Some("txt" | "svg") = extension {
        let statistics: Statistics = serde_json::from_value(ending.statistics.clone())
            .into_diagnostic()
            .wrap_err("the machine ended without statistics")?;
        if extension == Some("svg") { svg(&statistics) } else { Table(&statistics).to_string() }
    } else {
        let value = serde_json::json!({
            "ended": ending.ended,
            "status": ending.status,
            "text": ending.text,
            "statistics": ending.statistics,
        });
        format!("{value:#}\n")
    };
    if path == Path::new("-") {
        support::note!("{}", text.trim_end());
        return Ok(());
    }
    support::file::write_atomically(path, text.as_bytes())?;
    Ok(())
}

/// Says how it ended; the exit status is in `ending::TABLE`.
fn tell(name: &str, ending: &Ending, late: bool) -> ExitCode {
    let Ending { status, text, help, .. } = ending;
    if late && *status == FORCED {
        support::note!("vmmlinux: {name}: --timeout is over: {text}");
        return ExitCode::from(TIMED_OUT);
    }
    match (help, *status) {
        (Some(help), _) => support::note!("{:?}", miette!(help = help.clone(), "{name}: {text}")),
        (None, FAILED) => support::note!("{:?}", miette!("{name}: {text}")),
        (None, _) => support::note!("vmmlinux: {name}: {text}"),
    }
    ExitCode::from(*status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_have_the_form_that_the_files_name_asks_for() {
        let dir = tempfile::tempdir().unwrap();
        let statistics = Statistics { starts: 1, console_bytes: 42, ..Statistics::default() };
        let ending = Ending {
            status: 0,
            text: "the guest reset itself".to_owned(),
            help: None,
            ended: serde_json::json!("reset"),
            statistics: serde_json::to_value(&statistics).unwrap(),
            console_bytes: 42,
        };
        for (name, part) in
            [("a.json", "\"console_bytes\": 42"), ("a.txt", "console bytes 42"), ("a.svg", "<svg")]
        {
            let path = dir.path().join(name);
            report(&path, &ending).unwrap();
            let text = std::fs::read_to_string(path).unwrap();
            assert!(text.contains(part), "{name}: {text}");
        }
        let nothing = Ending { statistics: serde_json::Value::Null, ..ending };
        assert!(report(&dir.path().join("b.txt"), &nothing).is_err());
    }
}
