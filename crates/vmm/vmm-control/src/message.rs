//! The messages, one per line:
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

/// Protocol version. It changes when a message changes its meaning; new commands and fields do not change it.
pub const VERSION: u32 = 1;

/// A command to a VM, named as in vmctl(8) where that has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Shut the guest down through vmmci, or stop it by force.
    Stop {
        /// Stop it at once, without asking the guest. The answer comes when the guest has ended, or is an error.
        #[serde(default)]
        force: bool,
    },
    /// Ask the guest to reboot.
    Reboot,
    /// Stop the vCPUs; the guest's clocks keep running.
    Pause,
    /// Resume the vCPUs after a pause.
    Unpause,
    /// Emulate a suspend of the host: stop the vCPUs and advance the host's clock by `length`.
    Suspend {
        /// Length of the suspend on the host's clock; whole milliseconds in the message.
        #[serde(rename = "for-ms", with = "milliseconds")]
        length: Duration,
        /// Behaviour of the host's TSC during the suspend.
        #[serde(default)]
        tsc: SleepingTsc,
    },
    /// Show any value in the control device's command register, for tests of drivers. vmd has no such command.
    ShowCommand {
        /// The register's value, which need not be a valid command.
        value: u32,
        /// Number of interrupts to raise.
        interrupts: u8,
    },
    /// Report the VM's status.
    Status,
    /// Answer when the guest has ended.
    Wait,
    /// Attach to the console: after the answer, the connection carries the console's bytes.
    Console,
}

/// A VM's answer to a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The command was carried out, or has begun.
    Done,
    /// The command was carried out, with a note for the user.
    Note(String),
    /// The VM's status.
    Status(Box<VmStatus>),
    /// The guest has ended.
    Ended(Box<ExitReport>),
}

/// The run state of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// The helper VM or the VM itself is being set up.
    Starting,
    /// The guest runs.
    Running,
    /// The guest was asked to shut down.
    Stopping,
    /// Its vCPUs are stopped.
    Paused,
    /// Its vCPUs are stopped, and the host's clock will be later when they resume.
    Suspended,
    /// The guest has ended.
    Ended,
}

impl VmState {
    /// The word for it in a status table.
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

/// The status of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub name: String,
    /// The process that runs it.
    pub pid: u32,
    /// OpenBSD release of the emulated vmd.
    pub host: Generation,
    /// Where its KVM is: `kvm` or `nested`.
    pub accel: String,
    /// Its run state.
    pub state: VmState,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory: u64,
    /// Paths of the disk images, as the user named them.
    pub disks: Vec<String>,
    /// What its network interfaces are connected to.
    pub nics: Vec<String>,
    /// Time since the guest's start, in milliseconds.
    pub uptime_ms: u64,
}

/// The exit reason of a VM with its statistics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Exit status of `vmmlinux run`.
    pub status: u8,
    /// The exit reason, as text for people.
    pub text: String,
    /// What to do about it, if it is an error.
    #[serde(default)]
    pub help: Option<String>,
    /// The exit reason, for programs.
    #[serde(default)]
    pub ended: serde_json::Value,
    /// The VM's statistics.
    #[serde(default)]
    pub statistics: serde_json::Value,
    /// Number of bytes that the guest has written to its console; 0 if all of them have been copied.
    #[serde(default)]
    pub console_bytes: u64,
}

/// A numbered command.
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
    /// Zero if the request's number could not be decoded.
    pub(crate) id: u64,
    #[serde(flatten)]
    pub(crate) result: ResponseBody,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ResponseBody {
    Ok(Answer),
    Error(String),
}

impl Request {
    pub(crate) fn new(id: u64, command: Command) -> Self {
        Self { version: VERSION, id, command }
    }

    /// Decodes a line. An error is the response to send.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, Response> {
        // The version and number first: the refusal of an unknown command carries the number of its request.
        #[derive(Deserialize)]
        struct Envelope {
            vmmlinux: u32,
            #[serde(default)]
            id: u64,
        }
        let envelope: Envelope = serde_json::from_slice(line)
            .map_err(|e| Response::new(0, Err(format!("invalid request: {e}"))))?;
        let refuse = |text: String| Response::new(envelope.id, Err(text));
        if envelope.vmmlinux != VERSION {
            let text =
                format!("unsupported protocol version {}: this side speaks {VERSION}", envelope.vmmlinux);
            return Err(refuse(text));
        }
        serde_json::from_slice(line).map_err(|e| refuse(format!("unknown command: {e}")))
    }
}

impl Response {
    pub(crate) fn new(id: u64, result: Result<Answer, String>) -> Self {
        let result = match result {
            Ok(answer) => ResponseBody::Ok(answer),
            Err(text) => ResponseBody::Error(text),
        };
        Self { version: VERSION, id, result }
    }

    pub(crate) fn into_result(self) -> Result<Answer, String> {
        match self.result {
            ResponseBody::Ok(answer) => Ok(answer),
            ResponseBody::Error(text) => Err(text),
        }
    }
}

/// Serialises durations as whole milliseconds.
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
            (5, "unsupported protocol version 2: this side speaks 1".into())
        );
        let unknown = Request::parse(br#"{"vmmlinux":1,"id":6,"do":"fly"}"#).unwrap_err();
        assert_eq!(unknown.id, 6);
        assert!(unknown.into_result().unwrap_err().contains("`fly`"));
    }
}
