//! A board with what drives it: the lock that its threads share, the timer for its deadlines, and the thread that
//! waits for both and for console input.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use devices::clock::{Clock, NANOS_PER_SEC};
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
    /// What the timer is set to.
    armed: Option<u64>,
    /// Console input waits until the guest has read some.
    input_blocked: bool,
    /// Network interfaces whose frames wait until the guest has room, and when to look again.
    nics_blocked: Vec<usize>,
    retry_nics: Option<u64>,
}

/// See the module's text. Made anew for each start of the guest.
pub(crate) struct EventLoop {
    inner: Mutex<Inner>,
    clock: Arc<SystemClock>,
    timer: OwnedFd,
    wake: OwnedFd,
    closed: AtomicBool,
}

/// What the event thread waits for.
const TIMER: u64 = 0;
const WAKE: u64 = 1;
const INPUT: u64 = 2;
const FIRST_NIC: u64 = 3;

/// How long frames wait before another look whether the guest has room: a tick of a real host, in nanoseconds.
const NIC_RETRY: u64 = NANOS_PER_SEC / 100;

impl EventLoop {
    pub(crate) fn new(board: Board, clock: Arc<SystemClock>) -> Result<Self, Error> {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(Error::host("create a timer"))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::host("create an event descriptor"))?;
        let inner =
            Inner { board, armed: None, input_blocked: false, nics_blocked: Vec::new(), retry_nics: None };
        let event_loop =
            Self { inner: Mutex::new(inner), clock, timer, wake, closed: AtomicBool::new(false) };
        event_loop.with(|_| ());
        Ok(event_loop)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the board, and sets the timer to what it wants afterwards.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Board) -> T) -> T {
        let mut inner = self.lock();
        let result = f(&mut inner.board);
        self.settle(&mut inner);
        result
    }

    fn settle(&self, inner: &mut Inner) {
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

    fn arm(&self, deadline: Option<u64>) {
        let at = match deadline {
            None => 0,
            // From now on, for the board's clock is not the timer's. 0 would disarm it.
            Some(deadline) => deadline.saturating_sub(self.clock.monotonic()).max(1),
        };
        let it_value = Timespec {
            tv_sec: (at / NANOS_PER_SEC).cast_signed(),
            tv_nsec: (at % NANOS_PER_SEC).cast_signed(),
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })
            .expect("the descriptor is a timer and the time a valid one");
    }

    /// The clock has jumped: sets the timer anew.
    pub(crate) fn clock_jumped(&self) {
        let mut inner = self.lock();
        inner.armed = None;
        self.settle(&mut inner);
    }

    /// Makes the event thread look around.
    fn wake(&self) {
        // It can only fail when 2^64 wakes are already waiting.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Ends the event thread.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// The event thread: fires the board's deadlines and feeds it console input, until [`EventLoop::close`].
    pub(crate) fn run_events(&self, input: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let error = Error::host::<Errno>("wait for events");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(&error)?;
        let watch = |fd: BorrowedFd<'_>, data| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(data), epoll::EventFlags::IN)
        };
        watch(self.timer.as_fd(), TIMER).map_err(&error)?;
        watch(self.wake.as_fd(), WAKE).map_err(&error)?;
        let mut input = input.filter(|&fd| match watch(fd, INPUT) {
            Ok(()) => true,
            Err(errno) => {
                tracing::warn!(%errno, "the console's input cannot be waited for: the guest gets none");
                false
            }
        });
        let mut watching_input = input.is_some();
        let nics = self.lock().board.nic_fds().map_err(Error::host("watch the network interfaces"))?;
        let nic_fd = |index| nics.iter().find(|(n, _)| *n == index).map(|(_, fd)| fd.as_fd());
        for (index, fd) in &nics {
            watch(fd.as_fd(), FIRST_NIC + *index as u64).map_err(&error)?;
        }
        let mut events = Vec::with_capacity(8);
        while !self.closed.load(Ordering::SeqCst) {
            events.clear();
            match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(error(errno)),
            }
            for event in &events {
                match event.data.u64() {
                    TIMER => {
                        drain(self.timer.as_fd());
                        let mut inner = self.lock();
                        inner.armed = None;
                        inner.board.expire();
                        if inner.retry_nics.is_some_and(|at| at <= self.clock.monotonic()) {
                            inner.retry_nics = None;
                            for index in std::mem::take(&mut inner.nics_blocked) {
                                if let Some(fd) = nic_fd(index) {
                                    watch(fd, FIRST_NIC + index as u64).map_err(&error)?;
                                }
                            }
                        }
                        self.settle(&mut inner);
                    }
                    WAKE => {
                        drain(self.wake.as_fd());
                        if let Some(fd) = input
                            && !watching_input
                        {
                            watching_input = watch(fd, INPUT).is_ok();
                        }
                    }
                    nic if nic >= FIRST_NIC => {
                        let index = (nic - FIRST_NIC) as usize;
                        let mut inner = self.lock();
                        if !inner.board.nic_input(index)
                            && let Some(fd) = nic_fd(index)
                        {
                            epoll::delete(&epoll, fd).map_err(&error)?;
                            inner.nics_blocked.push(index);
                            inner.retry_nics = Some(self.clock.monotonic() + NIC_RETRY);
                        }
                        self.settle(&mut inner);
                    }
                    _ => {
                        let Some(fd) = input else { continue };
                        let state = self.take_input(fd);
                        if state != InputState::Open {
                            epoll::delete(&epoll, fd).map_err(&error)?;
                            watching_input = false;
                        }
                        if state == InputState::Ended {
                            input = None;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn take_input(&self, fd: BorrowedFd<'_>) -> InputState {
        let mut inner = self.lock();
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
        self.settle(&mut inner);
        state
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputState {
    Open,
    Blocked,
    Ended,
}

/// Takes the count off a timer or event descriptor.
fn drain(fd: BorrowedFd<'_>) {
    // Nothing to take is as good.
    let _ = rustix::io::read(fd, &mut [0; 8]);
}
