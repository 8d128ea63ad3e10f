//! The worker as the supervisor starts it, with a file in place of the device's registers.

use std::{
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::{
            fs::FileExt,
            net::{UnixListener, UnixStream},
        },
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};
use vmmci_protocol::{ShutdownKind, register};
use vmmci_sysfs::Opened;
use vmmcid::{
    config::{Chrony, Config},
    ipc::{self, Report, Reports},
    sandbox::WORKER_ID,
    status,
};

/// A worker, and the supervisor's side of it. The file takes what is written and offers all features; its clock stands still.
struct Worker {
    dir: tempfile::TempDir,
    child: Child,
    registers: File,
    reports: Reports,
}

impl Worker {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resource0");
        fs::write(&path, [0; 64]).unwrap();
        let registers = File::options().read(true).write(true).open(&path).unwrap();
        put(&registers, register::DEVICE_FEATURES, 7);
        put(&registers, register::SECONDS, 1_795_348_512);
        let device =
            Opened { bar: registers.try_clone().unwrap(), directory: File::open(dir.path()).unwrap() };
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_vmmcid"))
            .arg("worker")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let chrony = Chrony { socket: "/nowhere/chrony".into(), interval: Chrony::INTERVAL };
        let config = Config {
            poll_interval: Duration::from_millis(500),
            chrony: Some(chrony),
            set_clock: false,
            ..Config::default()
        };
        ipc::start(&ours, &config, &device, &listener).unwrap();
        Self { dir, child, registers, reports: Reports::new(ours).unwrap() }
    }

    /// The first report that is accepted; those before it are dropped.
    fn report(&mut self, accept: impl Fn(&Report) -> bool) -> Report {
        loop {
            match self.reports.take().expect("the worker runs") {
                Some(report) if accept(&report) => return report,
                Some(_) => {}
                None => {
                    poll(&mut [PollFd::new(self.reports.link(), PollFlags::IN)], None).unwrap();
                }
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn put(registers: &File, offset: u16, value: u32) {
    registers.write_all_at(&value.to_le_bytes(), offset.into()).unwrap();
}

#[test]
fn a_stop_is_passed_on() {
    let mut worker = Worker::start();
    worker.report(|report| *report == Report::Ready);

    put(&worker.registers, register::COMMAND, 1);

    let report = worker.report(|report| matches!(report, Report::GoDown(_)));
    assert_eq!(report, Report::GoDown(ShutdownKind::PowerOff));
}

#[test]
fn samples_for_chrony_go_to_the_supervisor() {
    let mut worker = Worker::start();

    let report = worker.report(|report| matches!(report, Report::Sample(_)));

    let Report::Sample(offset) = report else { panic!("{report:?}") };
    assert!(offset.guest_minus_host.distance() > 0, "{offset:?}");
}

#[test]
fn clients_are_answered_by_a_worker_with_a_user_of_its_own() {
    let mut worker = Worker::start();
    worker.report(|report| *report == Report::Ready);

    let status = status::ask(&worker.dir.path().join("socket")).unwrap().expect("a status");

    assert_eq!(status.pid, worker.child.id());
    if rustix::process::geteuid().is_root() {
        assert!(!status.not_confined.iter().any(|what| what.contains("user")), "{status:?}");
        let process = fs::read_to_string(format!("/proc/{}/status", status.pid)).unwrap();
        assert!(process.contains(&format!("Uid:\t{WORKER_ID}\t{WORKER_ID}\t{WORKER_ID}")), "{process}");
    }
}

#[test]
fn without_its_supervisor_the_worker_ends() {
    let mut worker = Worker::start();
    worker.report(|report| *report == Report::Ready);
    let (other, _) = UnixStream::pair().unwrap();

    drop(std::mem::replace(&mut worker.reports, Reports::new(other).unwrap()));

    assert!(worker.child.wait().unwrap().success());
}
