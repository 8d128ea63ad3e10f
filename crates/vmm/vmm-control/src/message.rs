//! The messages, one a line:
//!
//! ```text
//! {"vmmlinux":1,"id":7,"do":{"stop":{"force":false}}}
//! {"vmmlinux":1,"id":7,"ok":"done"}
//! {"vmmlinux":1,"id":8,"do":"status"}
//! {"vmmlinux":1,"id":8,"ok":{"status":{"name":"a","state":"running",…}}}
//! {"vmmlinux":1,"id":9,"error":"the guest has no driver for vmmci"}
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmd_release::{Generation, SleepingTsc};

/// The version of the protocol. It changes when a message changes its meaning; new commands and fields do not change it.
pub const VERSION: u32 = 1;

/// What a machine can be told. The words are vmctl(8)'s where it has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Go down: the guest is asked through vmmci, or is ended at once.
    Stop {
        /// End it at once.
        #[serde(default)]
        force: bool,
    },
    /// Go down and start again.
    Reboot,
    /// Stop the processor; the guest's clocks go on.
    Pause,
    /// Let it run again.
    Unpause,
    /// Stop the processor for a time by which the host's clock then is later, as when a laptop's lid is closed.
    Suspend {
        /// For how long, on the host's clock.
        #[serde(rename = "for-ms", with = "milliseconds")]
        length: Duration,
        /// What the host's TSC does meanwhile.
        #[serde(default)]
        tsc: SleepingTsc,
    },
    /// Show a value in the control device's command register, as no vmd does: for tests of drivers.
    ShowCommand {
        /// A command or not.
        value: u32,
        /// How often the interrupt line is raised.
        interrupts: u8,
    },
    /// Say how things are.
    Status,
    /// Answer when the guest has ended.
    Wait,
    /// From now on, this connection is the console.
    Console,
}

/// What a machine answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done, or under way.
    Done,
    /// It is done, and there is something to know about it.
    Note(String),
    /// How things are.
    Status(Box<Status>),
    /// How the guest ended.
    Ended(Box<Ending>),
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The helper VM or the machine is being set up.
    Starting,
    /// The guest runs.
    Running,
    /// The guest was asked to go down.
    Stopping,
    /// Its processor is stopped.
    Paused,
    /// Its processor is stopped, and the host's clock will be later.
    Suspended,
    /// The guest has ended.
    Ended,
}

impl State {
    /// The word for it in a table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Ended => "ended",
        }
    }
}

/// How things are with a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// The process that runs it.
    pub pid: u32,
    /// Which vmd it runs on.
    pub host: Generation,
    /// Where its KVM is: `kvm` or `nested`.
    pub accel: String,
    /// What it is doing.
    pub state: State,
    /// Processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory: u64,
    /// Disk images.
    pub disks: Vec<String>,
    /// What its network interfaces are plugged into.
    pub nics: Vec<String>,
    /// Milliseconds since the guest's start.
    pub uptime_ms: u64,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// The exit status of `vmmlinux run` for it.
    pub status: u8,
    /// For people.
    pub text: String,
    /// What to do about it, if it died.
    #[serde(default)]
    pub help: Option<String>,
    /// For programs: the machine's own account.
    #[serde(default)]
    pub ended: serde_json::Value,
    /// The machine's statistics.
    #[serde(default)]
    pub statistics: serde_json::Value,
    /// How many bytes the guest has written to its console in all.
    #[serde(default)]
    pub console_bytes: u64,
}

/// A command with its number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Request {
    #[serde(rename = "vmmlinux")]
    pub(crate) version: u32,
    pub(crate) id: u64,
    #[serde(rename = "do")]
    pub(crate) command: Command,
}

/// An answer to the request with the same number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Response {
    #[serde(rename = "vmmlinux")]
    pub(crate) version: u32,
    /// Zero if the request was not understood so far as to have a number.
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) result: Outcome,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    Ok(Answer),
    Error(String),
}

impl Request {
    pub(crate) fn new(id: u64, command: Command) -> Self {
        Self { version: VERSION, id, command }
    }

    /// A request out of a line. What is wrong with it is said as the response to send.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, Response> {
        // Version and number first: a newer client's command may be unknown here and still wants its answer.
        #[derive(Deserialize)]
        struct Envelope {
            vmmlinux: u32,
            #[serde(default)]
            id: u64,
        }
        let envelope: Envelope =
            serde_json::from_slice(line).map_err(|e| Response::new(0, Err(format!("not a request: {e}"))))?;
        let refuse = |text: String| Response::new(envelope.id, Err(text));
        if envelope.vmmlinux != VERSION {
            let text = format!("protocol version {} is not spoken here, but {VERSION}", envelope.vmmlinux);
            return Err(refuse(text));
        }
        serde_json::from_slice(line).map_err(|e| refuse(format!("not a command: {e}")))
    }
}

impl Response {
    pub(crate) fn new(id: u64, result: Result<Answer, String>) -> Self {
        let result = match result {
            Ok(answer) => Outcome::Ok(answer),
            Err(text) => Outcome::Error(text),
        };
        Self { version: VERSION, id, result }
    }

    pub(crate) fn into_result(self) -> Result<Answer, String> {
        match self.result {
            Outcome::Ok(answer) => Ok(answer),
            Outcome::Error(text) => Err(text),
        }
    }
}

/// Durations as whole milliseconds.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(length: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command() -> impl Strategy<Value = Command> {
        prop_oneof![
            any::<bool>().prop_map(|force| Command::Stop { force }),
            Just(Command::Reboot),
            Just(Command::Pause),
            Just(Command::Unpause),
            (any::<u64>(), prop_oneof![Just(SleepingTsc::Stands), Just(SleepingTsc::Resets)])
                .prop_map(|(ms, tsc)| Command::Suspend { length: Duration::from_millis(ms), tsc }),
            any::<(u32, u8)>().prop_map(|(value, interrupts)| Command::ShowCommand { value, interrupts }),
            Just(Command::Status),
            Just(Command::Wait),
            Just(Command::Console),
        ]
    }

    proptest! {
        #[test]
        fn every_request_survives_the_line(id: u64, command in command()) {
            let request = Request::new(id, command);
            let line = serde_json::to_vec(&request).unwrap();
            prop_assert!(!line.contains(&b'\n'));
            prop_assert_eq!(Request::parse(&line).unwrap(), request);
        }

        #[test]
        fn every_refusal_survives_the_line(id: u64, text: String) {
            let line = serde_json::to_vec(&Response::new(id, Err(text.clone()))).unwrap();
            prop_assert!(!line.contains(&b'\n'));
            let back: Response = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(back.id, id);
            prop_assert_eq!(back.into_result().unwrap_err(), text);
        }

        #[test]
        fn rubbish_is_answered(line: Vec<u8>) {
            let refusal = Request::parse(&line);
            prop_assert!(refusal.is_err_and(|response| response.id == 0));
        }
    }

    #[test]
    fn the_lines_are_as_documented() {
        let stop: Request =
            serde_json::from_str(r#"{"vmmlinux":1,"id":7,"do":{"stop":{"force":false}}}"#).unwrap();
        assert_eq!(stop, Request::new(7, Command::Stop { force: false }));
        let line = r#"{"vmmlinux":1,"id":1,"do":{"suspend":{"for-ms":3000,"tsc":"stands"}}}"#;
        let suspend = Command::Suspend { length: Duration::from_secs(3), tsc: SleepingTsc::Stands };
        assert_eq!(serde_json::to_string(&Request::new(1, suspend.clone())).unwrap(), line);
        let unsaid: Request = serde_json::from_str(&line.replace(r#","tsc":"stands""#, "")).unwrap();
        assert_eq!(unsaid, Request::new(1, suspend));
        let done = serde_json::to_string(&Response::new(7, Ok(Answer::Done))).unwrap();
        assert_eq!(done, r#"{"vmmlinux":1,"id":7,"ok":"done"}"#);
    }

    #[test]
    fn other_versions_and_unknown_commands_are_refused_under_their_number() {
        let newer = Request::parse(br#"{"vmmlinux":2,"id":5,"do":"status"}"#).unwrap_err();
        assert_eq!(
            (newer.id, newer.into_result().unwrap_err()),
            (5, "protocol version 2 is not spoken here, but 1".into())
        );
        let unknown = Request::parse(br#"{"vmmlinux":1,"id":6,"do":"fly"}"#).unwrap_err();
        assert_eq!(unknown.id, 6);
        assert!(unknown.into_result().unwrap_err().contains("`fly`"));
    }
}
