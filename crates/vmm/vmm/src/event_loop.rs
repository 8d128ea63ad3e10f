//! The event loop: the board behind its lock, the timer for its deadlines, and the thread that
//! waits for timer, console input and network frames.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use devices::clock::{Clock, NANOS_PER_SEC};
use parking_lot::Mutex;
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use crate::{board::Board, clock::SystemClock, error::Error};

struct Inner {
    board: Board,
    /// Deadline that the timer is set to, on the board's clock in nanoseconds.
    armed: Option<u64>,
    /// Console input waits until the guest has read some.
    input_blocked: bool,
    /// Indices of the NICs whose frames wait until the guest has room.
    nics_blocked: Vec<usize>,
    /// When to try [`Inner::nics_blocked`] again, on the board's clock in nanoseconds.
    retry_nics: Option<u64>,
}

/// The board and its event loop, for one run of the guest.
pub(crate) struct EventLoop {
    inner: Mutex<Inner>,
    clock: Arc<SystemClock>,
    timer: OwnedFd,
    wake: OwnedFd,
    stopped: AtomicBool,
}

/// What an epoll event is for. NIC `n` has `FIRST_NIC + n`.
const TIMER: u64 = 0;
const WAKE: u64 = 1;
const INPUT: u64 = 2;
const FIRST_NIC: u64 = 3;

/// Time until frames are tried again that the guest had no room for, in nanoseconds: 10 ms, a tick
/// of OpenBSD.
const NIC_RETRY: u64 = NANOS_PER_SEC / 100;

impl EventLoop {
    /// Takes `board` and arms the timer for its first deadline.
    pub(crate) fn new(board: Board, clock: Arc<SystemClock>) -> Result<Self, Error> {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(Error::host("create a timer"))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::host("create an event descriptor"))?;
        let inner =
            Inner { board, armed: None, input_blocked: false, nics_blocked: Vec::new(), retry_nics: None };
        let event_loop =
            Self { inner: Mutex::new(inner), clock, timer, wake, stopped: AtomicBool::new(false) };
        event_loop.with(|_| ());
        Ok(event_loop)
    }

    /// Calls `f` with the board locked, then re-arms its timer if its deadline has changed.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Board) -> T) -> T {
        let mut inner = self.inner.lock();
        let result = f(&mut inner.board);
        self.update(&mut inner);
        result
    }

    /// Re-arms the timer and resumes console input, as far as the board's state has changed.
    fn update(&self, inner: &mut Inner) {
        let deadline = [inner.board.deadline(), inner.retry_nics].into_iter().flatten().min();
        if deadline != inner.armed {
            inner.armed = deadline;
            self.arm(deadline);
        }
        if inner.input_blocked && inner.board.console_room() > 0 {
            inner.input_blocked = false;
            self.wake();
        }
    }

    /// Sets the timer to `deadline`, on the board's clock in nanoseconds.
    fn arm(&self, deadline: Option<u64>) {
        let delay = match deadline {
            None => 0,
            // Relative, for the board's clock is not the timer's. 0 would disarm it.
            Some(deadline) => deadline.saturating_sub(self.clock.monotonic()).max(1),
        };
        let it_value = Timespec {
            tv_sec: (delay / NANOS_PER_SEC).cast_signed(),
            tv_nsec: (delay % NANOS_PER_SEC).cast_signed(),
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })
            .expect("the descriptor is a timer and the time a valid one");
    }

    /// Re-arms the timer after the board's clock has jumped.
    pub(crate) fn clock_jumped(&self) {
        let mut inner = self.inner.lock();
        inner.armed = None;
        self.update(&mut inner);
    }

    /// Makes the event thread check for console room and for the end.
    fn wake(&self) {
        // Fails only while 2^64 − 1 wakes are pending.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Makes [`EventLoop::run`] return.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Runs the loop on the calling thread until [`EventLoop::stop`]: fires timers, passes on
    /// console input and frames.
    pub(crate) fn run(&self, input: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let mut thread = EventThread::new(self, input)?;
        let mut events = Vec::with_capacity(8);
        while !self.stopped.load(Ordering::SeqCst) {
            events.clear();
            match epoll::wait(&thread.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(wait_error(errno)),
            }
            for event in &events {
                let handled = match event.data.u64() {
                    TIMER => thread.fire_timers(),
                    WAKE => {
                        thread.resume_input();
                        Ok(())
                    }
                    INPUT => thread.read_input(),
                    nic => thread.receive_frames((nic - FIRST_NIC) as usize, event.flags),
                };
                handled.map_err(wait_error)?;
            }
        }
        Ok(())
    }

    /// Passes console input from `fd` to the guest, as much as it has room for.
    fn take_input(&self, fd: BorrowedFd<'_>) -> InputState {
        let mut inner = self.inner.lock();
        let room = inner.board.console_room();
        if room == 0 {
            inner.input_blocked = true;
            return InputState::Blocked;
        }
        let mut bytes = [0; 256];
        let limit = room.min(bytes.len());
        let state = match rustix::io::read(fd, &mut bytes[..limit]) {
            Ok(0) => InputState::Ended,
            Ok(count) => {
                inner.board.console_input(&bytes[..count]);
                InputState::Open
            }
            Err(Errno::AGAIN | Errno::INTR) => InputState::Open,
            Err(errno) => {
                tracing::debug!(%errno, "console input ends");
                InputState::Ended
            }
        };
        self.update(&mut inner);
        state
    }
}

fn wait_error(errno: Errno) -> Error {
    Error::host("wait for events")(errno)
}

/// State of console input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputState {
    Open,
    /// The UART has no room.
    Blocked,
    Ended,
}

/// What [`EventLoop::run`] waits for.
struct EventThread<'a> {
    event_loop: &'a EventLoop,
    epoll: OwnedFd,
    input: Option<BorrowedFd<'a>>,
    /// Whether epoll watches `input`.
    watching_input: bool,
    nics: Vec<(usize, OwnedFd)>,
}

impl<'a> EventThread<'a> {
    fn new(event_loop: &'a EventLoop, input: Option<BorrowedFd<'a>>) -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(wait_error)?;
        watch(&epoll, event_loop.timer.as_fd(), TIMER).map_err(wait_error)?;
        watch(&epoll, event_loop.wake.as_fd(), WAKE).map_err(wait_error)?;
        let input = input.filter(|&fd| match watch(&epoll, fd, INPUT) {
            Ok(()) => true,
            Err(errno) => {
                tracing::warn!(%errno, "cannot wait for console input: the guest gets none");
                false
            }
        });
        let nics =
            event_loop.inner.lock().board.nic_fds().map_err(Error::host("watch the network interfaces"))?;
        for (index, fd) in &nics {
            watch(&epoll, fd.as_fd(), FIRST_NIC + *index as u64).map_err(wait_error)?;
        }
        Ok(Self { event_loop, epoll, input, watching_input: input.is_some(), nics })
    }

    fn nic_fd(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.nics.iter().find(|(n, _)| *n == index).map(|(_, fd)| fd.as_fd())
    }

    /// Fires the board's timers, and watches blocked NICs again if it is time to.
    fn fire_timers(&mut self) -> Result<(), Errno> {
        drain(self.event_loop.timer.as_fd());
        let mut inner = self.event_loop.inner.lock();
        inner.armed = None;
        inner.board.expire();
        if inner.retry_nics.is_some_and(|at| at <= self.event_loop.clock.monotonic()) {
            inner.retry_nics = None;
            for index in std::mem::take(&mut inner.nics_blocked) {
                if let Some(fd) = self.nic_fd(index) {
                    watch(&self.epoll, fd, FIRST_NIC + index as u64)?;
                }
            }
        }
        self.event_loop.update(&mut inner);
        Ok(())
    }

    /// Watches console input again after the guest has made room.
    fn resume_input(&mut self) {
        drain(self.event_loop.wake.as_fd());
        if let Some(fd) = self.input
            && !self.watching_input
        {
            self.watching_input = watch(&self.epoll, fd, INPUT).is_ok();
        }
    }

    /// Passes on frames for NIC `index`, whose descriptor has `flags`. Stops watching it for a while
    /// if the guest has no room, and for good if its network is closed; frames that the guest had no
    /// room for are lost then.
    fn receive_frames(&mut self, index: usize, flags: epoll::EventFlags) -> Result<(), Errno> {
        let mut inner = self.event_loop.inner.lock();
        let ready = inner.board.nic_input(index);
        let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::RDHUP);
        let closed =
            inner.board.nic_is_closed(index) || flags.contains(epoll::EventFlags::ERR) || (hung_up && !ready);
        if let Some(fd) = self.nic_fd(index).filter(|_| closed || !ready) {
            epoll::delete(&self.epoll, fd)?;
            if !closed {
                inner.nics_blocked.push(index);
                inner.retry_nics = Some(self.event_loop.clock.monotonic() + NIC_RETRY);
            }
        }
        self.event_loop.update(&mut inner);
        drop(inner);
        if closed {
            self.nics.retain(|(nic, _)| *nic != index);
            tracing::warn!(
                "the network of interface {index} is closed: the guest receives nothing more from it"
            );
        }
        Ok(())
    }

    /// Passes on console input, and stops watching it when the guest has no room or the input ends.
    fn read_input(&mut self) -> Result<(), Errno> {
        let Some(fd) = self.input else { return Ok(()) };
        let state = self.event_loop.take_input(fd);
        if state != InputState::Open {
            epoll::delete(&self.epoll, fd)?;
            self.watching_input = false;
        }
        if state == InputState::Ended {
            self.input = None;
        }
        Ok(())
    }
}

/// Has `epoll` report `data` when `fd` is readable or its other end is closed.
fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, data: u64) -> Result<(), Errno> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
    epoll::add(epoll, fd, epoll::EventData::new_u64(data), flags)
}

/// Reads the counter of a timer or event descriptor, which makes it unreadable again.
fn drain(fd: BorrowedFd<'_>) {
    // The counter may be 0 already.
    let _ = rustix::io::read(fd, &mut [0; 8]);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::event::Timespec;
    use vmd_release::Generation;

    use super::*;
    use crate::{config::NicBackendConfig, fuzzing::Machine};

    /// The flags of the events of NICs that wait.
    fn nic_events(thread: &EventThread<'_>) -> Vec<epoll::EventFlags> {
        let mut events = Vec::with_capacity(8);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&thread.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now)).unwrap();
        events.iter().filter(|event| event.data.u64() >= FIRST_NIC).map(|event| event.flags).collect()
    }

    #[test]
    fn a_closed_network_is_watched_no_longer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let machine = Machine::new(Generation::V7_8, NicBackendConfig::Stream(path)).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let event_loop = EventLoop::new(machine.board, Arc::new(SystemClock::new(None, false))).unwrap();
        let mut thread = EventThread::new(&event_loop, None).unwrap();
        assert_eq!(nic_events(&thread), []);

        drop(peer);
        let flags = nic_events(&thread)[0];
        thread.receive_frames(0, flags).unwrap();
        assert_eq!((nic_events(&thread), thread.nics.len()), (vec![], 0));
        assert!(event_loop.inner.lock().nics_blocked.is_empty(), "it is not tried again");
    }
}
