//! This program as the init of the helper VM: runs the machine that the host describes.

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
use vmm_control::{Answer, Command, Ending, Vm, remote};

use super::{
    ending::ending,
    in_process::{About, Local},
};

/// What the host asks for.
#[derive(Serialize, Deserialize)]
pub(crate) struct Job {
    /// The machine, its files as they are called inside.
    pub(crate) config: Config,
    pub(crate) about: About,
    /// What the log shall tell.
    pub(crate) log: String,
}

/// Whether this process is the init of a helper VM.
pub(crate) fn in_helper_vm() -> bool {
    init::is_init()
}

/// Does the host's job, then powers the helper VM off.
pub(crate) fn run_in_helper_vm() -> ! {
    init::run(|env| {
        if let Err(error) = run(env) {
            // The log of the helper VM, which the host shows when it gets no answer.
            support::note!("vmmlinux: {error}");
        }
    })
}

fn run(env: Env) -> io::Result<()> {
    let Env { job, console, control } = env;
    let Job { config, about, log } = serde_json::from_value(job)?;
    let filter = tracing_subscriber::EnvFilter::new(log);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(io::stderr)
        .log_internal_errors(false)
        .init();

    let output = Counted { to: console.try_clone()?, count: Arc::default() };
    let count = Arc::clone(&output.count);
    let console = Console { input: Some(console.into()), output: Box::new(output) };
    let vm: Arc<dyn Vm> = match Local::start(config, console, about, move || count.load(Ordering::Acquire)) {
        Ok(local) => local,
        Err(error) => Arc::new(Failed(ending(Err(error), &vmm::Statistics::default(), 0))),
    };
    // The host hangs up when it has all it wants, or is gone itself.
    remote::serve(control.try_clone()?, control, &vm)?;
    let _ = vm.call(Command::Stop { force: true });
    vm.call(Command::Wait).map(drop).map_err(io::Error::other)
}

/// A machine that could not be started.
struct Failed(Ending);

impl Vm for Failed {
    fn call(&self, command: Command) -> Result<Answer, String> {
        match command {
            Command::Wait => Ok(Answer::Ended(Box::new(self.0.clone()))),
            _ => Err(self.0.text.clone()),
        }
    }
}

/// Counts what is written through it.
struct Counted<W> {
    to: W,
    count: Arc<AtomicU64>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.count.fetch_add(written as u64, Ordering::Release);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
