//! This program as init of the helper VM: runs the VM that the host process describes.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use helper_vm::init::{self, Env};
use serde::{Deserialize, Serialize};
use vmm::{Config, Console};
use vmm_control::{Answer, Command, ExitReport, Vm, remote};

use crate::{
    exit_status::exit_report,
    in_process::{InProcessVm, StatusInfo},
};

/// The job of the helper VM.
#[derive(Serialize, Deserialize)]
pub(crate) struct Job {
    /// The VM, with the paths that its files have in the helper VM.
    pub(crate) config: Config,
    pub(crate) info: StatusInfo,
    /// The log filter, in `RUST_LOG` syntax.
    pub(crate) log_filter: String,
}

/// Whether this process is init of the helper VM.
pub fn in_helper_vm() -> bool {
    init::is_init()
}

/// Runs the host's job, then powers the helper VM off.
pub fn run_in_helper_vm() -> ! {
    init::run(|env| {
        if let Err(error) = run(env) {
            // Standard error is the helper VM's log: the host shows it if no answer comes.
            support::note!("vmmlinux: {error}");
        }
    })
}

fn run(env: Env) -> io::Result<()> {
    let Env { job, console, control } = env;
    let Job { config, info, log_filter } = serde_json::from_value(job)?;
    let filter = tracing_subscriber::EnvFilter::new(log_filter);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(io::stderr)
        .log_internal_errors(false)
        .init();

    let output = CountingWriter { to: console.try_clone()?, count: Arc::default() };
    let count = Arc::clone(&output.count);
    let console = Console { input: Some(console.into()), output: Box::new(output) };
    let written = move || count.load(Ordering::Acquire);
    let vm: Arc<dyn Vm> = match InProcessVm::start(config, console, info, written) {
        Ok(vm) => vm,
        Err(error) => Arc::new(FailedVm(exit_report(Err(error), &vmm::Statistics::default(), 0))),
    };
    // Returns when the host closes the connection: it has its answers, or has ended.
    remote::serve(control.try_clone()?, control, &vm)?;
    let _ = vm.call(Command::Stop { force: true });
    vm.call(Command::Wait).map(drop).map_err(io::Error::other)
}

/// A VM that could not be started: answers `wait` with the reason and refuses everything else.
struct FailedVm(ExitReport);

impl Vm for FailedVm {
    fn call(&self, command: Command) -> Result<Answer, String> {
        match command {
            Command::Wait => Ok(Answer::Ended(Box::new(self.0.clone()))),
            _ => Err(self.0.text.clone()),
        }
    }
}

/// A writer that counts the bytes written.
struct CountingWriter<W> {
    to: W,
    count: Arc<AtomicU64>,
}

impl<W: Write> Write for CountingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.count.fetch_add(written as u64, Ordering::Release);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
