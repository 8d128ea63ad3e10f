//! A machine in this process, as the control protocol sees it.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Instant,
};

use miette::Diagnostic;
use serde::{Deserialize, Serialize};
use vmm::{Config, Console, Handle, Machine, ShutdownOutcome};
use vmm_control::{Answer, Command, Ending, State, Status, Vm};

use super::ending::ending;

/// What the status says beyond what the machine knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct About {
    /// The process that the user started.
    pub(crate) pid: u32,
    /// Where the machine's KVM is.
    pub(crate) accel: String,
    /// The disk images, as the user named them.
    pub(crate) disks: Vec<String>,
    /// What the network interfaces are plugged into, as the user named it.
    pub(crate) nics: Vec<String>,
}

/// A machine that runs in a thread of this process.
pub(crate) struct Local {
    handle: Handle,
    about: About,
    started: Instant,
    ending: Mutex<Option<Ending>>,
    ended: Condvar,
}

impl Local {
    /// Starts a machine. `written` tells, when the guest has ended, how many bytes it has written to its console.
    pub(crate) fn start(
        config: Config,
        console: Console,
        about: About,
        written: impl FnOnce() -> u64 + Send + 'static,
    ) -> Result<Arc<Self>, vmm::Error> {
        let machine = Machine::new(config, console)?;
        let local = Arc::new(Self {
            handle: machine.handle(),
            about,
            started: Instant::now(),
            ending: Mutex::new(None),
            ended: Condvar::new(),
        });
        let finish = Arc::clone(&local);
        let run = move || {
            let result = machine.run();
            let ending = ending(result, &finish.handle.statistics(), written());
            *finish.ending.lock().unwrap_or_else(PoisonError::into_inner) = Some(ending);
            finish.ended.notify_all();
        };
        thread::Builder::new().name("machine".to_owned()).spawn(run).map_err(host("start a thread"))?;
        Ok(local)
    }

    /// Blocks until the guest has ended.
    pub(crate) fn wait(&self) -> Ending {
        let ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.ended.wait_while(ending, |ending| ending.is_none());
        ended.unwrap_or_else(PoisonError::into_inner).clone().expect("waited until it is there")
    }

    fn status(&self) -> Status {
        let now = self.handle.status();
        let ended = self.ending.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let state = match now.state {
            vmm::State::Running => State::Running,
            vmm::State::Paused => State::Paused,
            vmm::State::Stopping => State::Stopping,
            vmm::State::Stopped if ended => State::Ended,
            vmm::State::Stopped => State::Starting,
        };
        Status {
            name: now.name,
            pid: self.about.pid,
            host: now.generation,
            accel: self.about.accel.clone(),
            state,
            vcpus: now.cpus.into(),
            memory: now.memory >> 20,
            disks: self.about.disks.clone(),
            nics: self.about.nics.clone(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// What became of an order to go down.
fn answer(asked: ShutdownOutcome) -> Answer {
    match asked {
        ShutdownOutcome::Guest => Answer::Done,
        ShutdownOutcome::Again => Answer::Note("the guest is asked already".to_owned()),
        ShutdownOutcome::NoDriver => {
            Answer::Note("the guest has no vmmci driver that could be asked: it was ended".to_owned())
        }
    }
}

fn host(what: &'static str) -> impl Fn(io::Error) -> vmm::Error {
    move |source| vmm::Error::Host { what, source }
}

impl Vm for Local {
    fn call(&self, command: Command) -> Result<Answer, String> {
        let said = |refused: vmm::Refused| {
            refused.help().map_or_else(|| refused.to_string(), |help| format!("{refused}: {help}"))
        };
        match command {
            Command::Stop { force: true } => self.handle.kill(),
            Command::Stop { force: false } => return self.handle.stop().map(answer).map_err(said),
            Command::Reboot => return self.handle.reboot().map(answer).map_err(said),
            Command::Pause => self.handle.pause(),
            Command::Unpause => self.handle.unpause(),
            Command::Suspend { length, tsc } => self.handle.suspend(length, tsc),
            Command::ShowCommand { value, interrupts } => self.handle.show_command(value, interrupts),
            Command::Status => return Ok(Answer::Status(Box::new(self.status()))),
            Command::Wait => return Ok(Answer::Ended(Box::new(self.wait()))),
            Command::Console => return Err("the console is not had this way".to_owned()),
        }
        Ok(Answer::Done)
    }
}
