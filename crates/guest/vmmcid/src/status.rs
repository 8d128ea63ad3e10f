//! The daemon's status as `vmmcid status` shows it; the worker sends it to every client of its socket.

use std::{
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    time::Duration,
};

use rustix::net::{SocketFlags, accept_with};
use serde::{Deserialize, Serialize};
use vmmci_sysfs::{Offset, offset_in_words, show};

use crate::watch::{Counts, Step};

/// The daemon's directory.
pub const DIRECTORY: &str = "/run/vmmcid";
/// The status socket; every user may connect.
pub const SOCKET: &str = "/run/vmmcid/socket";

/// Time limit for an answer; the worker polls the device in between.
const PATIENCE: Duration = Duration::from_secs(5);

/// The daemon's status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The worker's process.
    pub pid: u32,
    /// Negotiated feature bits.
    pub features: u32,
    /// Uptime of the worker in seconds.
    pub uptime: f64,
    /// Poll interval in seconds.
    pub poll_interval: f64,
    /// Event counters.
    pub counts: Counts,
    /// The last step of the clock.
    pub last_step: Option<Step>,
    /// Offset of the guest's clock from the host's; none without a plausible host time.
    pub offset: Option<Offset>,
    /// Interval between the follower's comparisons in seconds; none if there is no follower.
    pub follow_interval: Option<f64>,
    /// Samples made for chronyd; none if chrony is not configured.
    pub chrony_samples: Option<u64>,
    /// Sandbox features that the kernel lacks.
    pub not_confined: Vec<String>,
}

/// Answers one connected client, if there is one, without blocking.
pub fn answer(listener: &UnixListener, status: impl FnOnce() -> Status) -> io::Result<()> {
    let stream = accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    UnixStream::from(stream).write_all(&serde_json::to_vec(&status())?)
}

/// Requests the daemon's status; `None` without a daemon.
pub fn ask(socket: &Path) -> io::Result<Option<Status>> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(Some(serde_json::from_slice(&text)?))
}

impl Status {
    /// The status as a table.
    pub fn in_words(&self) -> String {
        let Counts { polls, shutdowns, reboots, clock_syncs, unknown, steps, follow_steps } = self.counts;
        let features: Vec<_> = [(1, "time"), (2, "acknowledge"), (4, "clock sync")]
            .into_iter()
            .filter(|(bit, _)| self.features & bit != 0)
            .map(|(_, name)| name)
            .collect();
        let step = self.last_step.map_or_else(
            || "never set".to_owned(),
            |step| {
                let at = jiff::Timestamp::from_nanosecond(step.at.into())
                    .map_or_else(|_| "?".to_owned(), |at| format!("{at:.0}"));
                let times = if steps == 0 { String::new() } else { format!(", step {steps}") };
                format!("set by {} at {at}{times}", show(step.nanos))
            },
        );
        let mut lines = vec![
            ("daemon", format!("vmmcid {}, process {}, up {:.0} s", self.version, self.pid, self.uptime)),
            (
                "device",
                format!(
                    "{}; looked at every {:.1} s, {polls} times",
                    features.join(", "),
                    self.poll_interval
                ),
            ),
            (
                "commands",
                format!(
                    "{shutdowns} shutdown, {reboots} stop or reboot, {clock_syncs} clock sync, {unknown} unknown"
                ),
            ),
            (
                "clock",
                self.offset.as_ref().map_or_else(|| "the host tells no time".to_owned(), offset_in_words),
            ),
            ("last step", step),
        ];
        if let Some(interval) = self.follow_interval {
            lines.push((
                "follower",
                format!("compares every {interval} s, has set the clock {follow_steps} times"),
            ));
        }
        if let Some(samples) = self.chrony_samples {
            lines.push(("chrony", format!("{samples} samples made")));
        }
        lines.extend(self.not_confined.iter().map(|what| ("missing", what.clone())));
        lines.iter().fold(String::new(), |all, (name, text)| format!("{all}{name:<10}{text}\n"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::thread;

    use vmmci_protocol::GuestMinusHost;

    use super::*;

    pub(crate) fn status() -> Status {
        Status {
            version: "1.2.3".into(),
            pid: 77,
            features: 7,
            uptime: 12.3,
            poll_interval: 0.6,
            counts: Counts { polls: 20, clock_syncs: 4, steps: 3, ..Counts::default() },
            last_step: Some(Step { nanos: 10_800_000_000_000, at: 1_795_348_512_000_000_000 }),
            offset: Some(Offset {
                guest_minus_host: GuestMinusHost::from_nanos(42_000),
                uncertainty: 9_000,
                at: 1_795_348_512_000_000_000,
            }),
            follow_interval: Some(60.0),
            chrony_samples: None,
            not_confined: vec!["the kernel has no Landlock".into()],
        }
    }

    #[test]
    fn every_client_gets_the_status() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert_eq!(ask(&path).unwrap(), None);
        let listener = UnixListener::bind(&path).unwrap();
        let asking = thread::spawn(move || ask(&path));
        answer(&listener, status).unwrap();
        assert_eq!(asking.join().unwrap().unwrap(), Some(status()));
    }

    #[test]
    fn people_get_words() {
        let words = status().in_words();
        for expected in [
            "clock     42.0 µs ahead of the host, to 9.0 µs\n",
            "last step set by +10800.000 s at 2026-11-22T11:55:12Z, step 3\n",
            "commands  0 shutdown, 0 stop or reboot, 4 clock sync, 0 unknown\n",
            "follower  compares every 60 s, has set the clock 0 times\n",
            "missing   the kernel has no Landlock\n",
        ] {
            assert!(words.contains(expected), "{words}");
        }
    }

    #[test]
    fn an_older_daemon_that_does_not_count_steps_is_understood() {
        let mut older = serde_json::to_value(status()).unwrap();
        older["counts"].as_object_mut().unwrap().remove("steps");

        let status: Status = serde_json::from_value(older).unwrap();

        assert_eq!((status.counts.steps, status.counts.clock_syncs), (0, 4));
        assert!(status.in_words().contains("last step set by +10800.000 s at 2026-11-22T11:55:12Z\n"));
    }
}
