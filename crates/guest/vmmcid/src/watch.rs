//! The protocol with the device: acknowledges and reports commands, sets the clock, ignores every other value; and what
//! reads the host's clock without a command: the follower, and samples for chrony.

use std::{io, time::Duration};

use serde::{Deserialize, Serialize};
use vmmci_protocol::{
    Action, Comparison, Driver, Features, ProbeError, Registers, ShutdownKind,
    follow::{self, NtpState},
    step::{self, Left},
};
use vmmci_sysfs::{Offset, compare, show};

use crate::{
    clock::{self, Clock, Interval},
    config::Config,
    log::Level,
    rate_limit::Seldom,
};

/// Comparisons of the clocks before the guest's is set; the shortest counts.
const COMPARISONS: usize = 3;
/// Age up to which a comparison is reused for status requests: each new one costs port accesses.
const OFFSET_AGE: Duration = Duration::from_secs(30);

/// An event for the supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A line for the log.
    Say(Level, String),
    /// A stop or reboot was acknowledged.
    GoDown(ShutdownKind),
    /// The clock was set; the step in nanoseconds, positive: forward.
    ClockSet(i64),
    /// A sample for chrony.
    Sample(Offset),
}

/// Event counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Counts {
    /// Polls of the command register.
    pub polls: u64,
    /// SHUTDOWN was acknowledged.
    pub shutdowns: u64,
    /// REBOOT was acknowledged.
    pub reboots: u64,
    /// SYNCRTC was acknowledged.
    pub clock_syncs: u64,
    /// Unknown values of the command register.
    pub unknown: u64,
    /// Steps of the clock, those by the follower included. 0 beside a last step: the daemon is older than this count.
    pub steps: u64,
    /// Steps of the clock by the follower.
    pub follow_steps: u64,
}

/// A step of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Size in nanoseconds; positive: forward.
    pub nanos: i64,
    /// Time after the step, in nanoseconds since 1970.
    pub at: i64,
}

/// A device and the state of its protocol.
#[derive(Debug)]
pub struct Watch<R: Registers, C> {
    device: Driver<R>,
    clock: C,
    set_clock: bool,
    smallest_step: i64,
    counts: Counts,
    step: Option<Step>,
    /// The last comparison made for a status request, and its time.
    offset: Option<(Duration, Offset)>,
    /// When the follower compares the clocks.
    follow: Option<Interval>,
    /// When chrony gets a sample.
    samples: Option<Interval>,
    sampled: u64,
    said: Said,
}

#[derive(Debug, Default)]
struct Said {
    unknown: Seldom,
    no_time: Seldom,
    clock: Seldom,
    failure: Seldom,
    followed: Seldom,
    shutdown: Seldom,
    reboot: Seldom,
}

impl<R: Registers, C: Clock> Watch<R, C> {
    /// Negotiates features and sets DRIVER_OK: the host sends commands from then on.
    pub fn new(registers: R, clock: C, config: &Config) -> Result<Self, ProbeError> {
        let device = Driver::probe(registers)?;
        let now = clock.monotonic();
        let follow = config.follow_interval().filter(|_| config.set_clock);
        Ok(Self {
            // Not at the start: the NTP daemon that will steer the clock may not be up yet.
            follow: follow.map(|period| Interval::new(period, now + period)),
            samples: config.chrony.as_ref().map(|chrony| Interval::new(chrony.interval, now)),
            sampled: 0,
            device,
            clock,
            set_clock: config.set_clock,
            smallest_step: i64::try_from(config.smallest_step.as_nanos()).unwrap_or(i64::MAX),
            counts: Counts::default(),
            step: None,
            offset: None,
            said: Said::default(),
        })
    }

    /// The negotiated features.
    pub fn features(&self) -> Features {
        self.device.features()
    }

    /// Event counters.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The last step of the clock.
    pub fn last_step(&self) -> Option<Step> {
        self.step
    }

    /// Interval between the follower's comparisons, if there is one.
    pub fn follow_interval(&self) -> Option<Duration> {
        self.follow.map(Interval::period)
    }

    /// Number of samples made for chrony.
    pub fn sampled(&self) -> u64 {
        self.sampled
    }

    /// Polls for a command and handles it, and reads the host's clock if the follower or a sample is due. Otherwise this is a
    /// single port access.
    pub fn poll(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let now = self.clock.monotonic();
        self.poll_command(now, &mut events);
        self.follow(now, &mut events);
        if self.samples.as_mut().is_some_and(|interval| interval.is_due(now))
            && let Some(comparison) = self.compare(1)
        {
            self.sampled += 1;
            events.push(Event::Sample(comparison.into()));
        }
        events
    }

    fn poll_command(&mut self, now: Duration, events: &mut Vec<Event>) {
        self.counts.polls += 1;
        let action = self.device.poll(false);
        if let Some(value) = self.device.unknown() {
            self.counts.unknown += 1;
            let text = || format!("unknown command {value:#x} ignored");
            events.extend(self.said.unknown.say(now, text).map(|text| Event::Say(Level::Warning, text)));
        }
        let Some(action) = action else { return };
        match action {
            Action::PowerOff => {
                self.counts.shutdowns += 1;
                let text = || "the host wants the guest to power off (SHUTDOWN): acknowledged".to_owned();
                let said = self.said.shutdown.say(now, text);
                events.extend(said.map(|text| Event::Say(Level::Notice, text)));
                events.push(Event::GoDown(ShutdownKind::PowerOff));
            }
            Action::Reboot => {
                self.counts.reboots += 1;
                let text = || "the host wants the guest to stop or reboot (REBOOT): acknowledged".to_owned();
                let said = self.said.reboot.say(now, text);
                events.extend(said.map(|text| Event::Say(Level::Notice, text)));
                events.push(Event::GoDown(ShutdownKind::Reboot));
            }
            Action::SetClock => {
                self.counts.clock_syncs += 1;
                self.sync(now, events);
                // Also after a failure: while one SYNCRTC is unacknowledged the host sends no other.
                self.device.clock_is_set();
            }
        }
        // Reading the ISR lowers the interrupt line, which other devices may share.
        self.device.interrupt();
    }

    fn sync(&mut self, now: Duration, events: &mut Vec<Event>) {
        let Some(first) = self.compare(COMPARISONS) else {
            let text = || "SYNCRTC without a plausible host time: the clock is not set".to_owned();
            events.extend(self.said.no_time.say(now, text).map(|text| Event::Say(Level::Warning, text)));
            return;
        };
        self.offset = Some((now, first.into()));
        if first.is_within(self.smallest_step) || !self.set_clock {
            let why = if self.set_clock { "left alone" } else { "set-clock is off" };
            let off = first.guest_minus_host().nanos();
            let text = || format!("the host's clock has jumped; ours is off by {}: {why}", show(off));
            events.extend(self.said.clock.say(now, text).map(|text| Event::Say(Level::Notice, text)));
            return;
        }
        if let Some((forward, text)) = self.set(now, first, events) {
            let said = self.said.clock.say(now, || text);
            events.extend(said.map(|text| Event::Say(Level::Notice, text)));
            events.push(Event::ClockSet(forward));
        }
    }

    /// Sets the clock if the follower is due, no NTP daemon steers the clock, and it is off by more than [`follow::STEP`].
    fn follow(&mut self, now: Duration, events: &mut Vec<Event>) {
        if !self.follow.as_mut().is_some_and(|interval| interval.is_due(now)) {
            return;
        }
        // Before the host's clock is read: beside an NTP daemon the follower costs no exit.
        if self.clock.ntp_state().map_or(true, NtpState::is_steered) {
            return;
        }
        let Some(first) = self.compare(1).filter(|comparison| follow::is_due(*comparison)) else { return };
        if let Some((forward, text)) = self.set(now, first, events) {
            self.counts.follow_steps += 1;
            let text = || format!("the host's clock has moved without SYNCRTC: {text}");
            let said = self.said.followed.say(now, text);
            events.extend(said.map(|text| Event::Say(Level::Notice, text)));
            events.push(Event::ClockSet(forward));
        }
    }

    /// Sets the clock, given how it compares with the host's. Returns the first step in nanoseconds (positive: forward) and
    /// what the log says of it; `None` if the clock cannot be set.
    fn set(&mut self, now: Duration, first: Comparison, events: &mut Vec<Event>) -> Option<(i64, String)> {
        let forward = first.guest_minus_host().correction();
        let mut set_at = None;
        let set_back = |nanos: i64| {
            set_at = Some(clock::step(&self.clock, nanos.saturating_neg())?);
            Ok(())
        };
        let left: io::Result<Left> = step::set_clock(first, self.smallest_step, || self.compare(1), set_back);
        self.step = set_at.map(|at| Step { nanos: forward, at }).or(self.step);
        let text = match left {
            Ok(Left::Compared(left)) => {
                self.offset = Some((now, left.into()));
                let sure = left.guest_minus_host().distance().saturating_add(left.error());
                format!("the clock was set by {}; it is the host's to {}", show(forward), &show(sure)[1..])
            }
            Ok(Left::Unknown) => {
                self.offset = None;
                format!("the clock was set by {}; the host's was not read again", show(forward))
            }
            Err(error) => {
                let text = || format!("the clock cannot be set by {}: {error}", show(forward));
                let said = self.said.failure.say(now, text);
                events.extend(said.map(|text| Event::Say(Level::Error, text)));
                return None;
            }
        };
        self.counts.steps += 1;
        Some((forward, text))
    }

    fn compare(&self, times: usize) -> Option<Comparison> {
        compare(|| self.device.host_time_between(|| self.clock.realtime()), times)
    }

    /// Compares the clocks for a status request, or returns a comparison that is recent enough.
    pub fn offset(&mut self) -> Option<Offset> {
        let now = self.clock.monotonic();
        if self.offset.is_none_or(|(then, _)| now.saturating_sub(then) >= OFFSET_AGE) {
            self.offset = Some((now, self.compare(COMPARISONS)?.into()));
        }
        self.offset.map(|(_, offset)| offset)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use proptest::prelude::*;
    use vmmci_protocol::{register, step::ATTEMPTS};

    use super::*;
    use crate::config::Chrony;

    const HOST: i64 = 1_795_348_512_000_000_000;
    const FOLLOW: Duration = Duration::from_secs(15);

    /// A device and a clock that advance together, 20 µs for each access.
    #[derive(Default)]
    struct World {
        now: Cell<i64>,
        /// What the guest's clock is set to, less what has passed.
        guest: Cell<i64>,
        command: Cell<u32>,
        features: Cell<u32>,
        status: Cell<u32>,
        latched: Cell<i64>,
        broken: Cell<Option<u32>>,
        answers: RefCell<Vec<u32>>,
        accesses: Cell<usize>,
        may_set: Cell<bool>,
        /// Error of the next clock setting.
        late: Cell<i64>,
        /// An NTP daemon says that the clock is right.
        steered: Cell<bool>,
    }

    impl World {
        fn new(behind: i64) -> Self {
            let world = Self::default();
            world.guest.set(HOST - behind);
            world.may_set.set(true);
            world
        }

        fn pass(&self, nanos: i64) {
            self.now.set(self.now.get() + nanos);
        }

        fn watch(&self) -> Watch<&Self, &Self> {
            Watch::new(self, self, &Config::default()).unwrap()
        }

        fn behind(&self) -> i64 {
            HOST - self.guest.get()
        }

        /// A device and its protocol with a follower, one interval after its start.
        fn follower(&self) -> Watch<&Self, &Self> {
            let watch = Watch::new(self, self, &Config { follow: FOLLOW, ..Config::default() }).unwrap();
            self.pass(i64::try_from(FOLLOW.as_nanos()).unwrap());
            self.accesses.set(0);
            watch
        }
    }

    impl Registers for World {
        fn read(&self, offset: u16) -> u32 {
            self.accesses.set(self.accesses.get() + 1);
            self.pass(10_000);
            let value = match offset {
                _ if self.broken.get().is_some() => self.broken.get().unwrap(),
                register::DEVICE_FEATURES => 7,
                register::GUEST_FEATURES => self.features.get(),
                register::DEVICE_STATUS => self.status.get(),
                register::COMMAND => self.command.get(),
                register::SECONDS => {
                    self.latched.set(HOST + self.now.get());
                    u32::try_from(self.latched.get() / 1_000_000_000).unwrap()
                }
                register::MICROS => u32::try_from(self.latched.get() % 1_000_000_000 / 1000).unwrap(),
                _ => 0,
            };
            self.pass(10_000);
            value
        }

        fn write(&self, offset: u16, value: u32) {
            match offset {
                register::GUEST_FEATURES => self.features.set(value),
                register::DEVICE_STATUS => self.status.set(value),
                register::COMMAND => {
                    self.answers.borrow_mut().push(value);
                    if value == 3 {
                        self.command.set(0);
                    }
                }
                _ => {}
            }
        }
    }

    impl Clock for &World {
        fn realtime(&self) -> i64 {
            self.guest.get() + self.now.get()
        }

        fn set_realtime(&self, nanos: i64) -> io::Result<()> {
            if !self.may_set.get() {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.guest.set(nanos - self.now.get() - self.late.take());
            Ok(())
        }

        fn monotonic(&self) -> Duration {
            Duration::from_nanos(self.now.get().unsigned_abs())
        }

        fn ntp_state(&self) -> io::Result<NtpState> {
            let untouched = NtpState::UNTOUCHED;
            let status = if self.steered.get() { 0 } else { untouched.status };
            Ok(NtpState { status, ..untouched })
        }
    }

    fn texts(events: &[Event]) -> Vec<&str> {
        events
            .iter()
            .filter_map(|event| match event {
                Event::Say(_, text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn nothing_to_do_is_one_access() {
        let world = World::new(0);
        let mut watch = world.watch();
        world.accesses.set(0);
        for _ in 0..100 {
            assert_eq!(watch.poll(), []);
        }
        assert_eq!(world.accesses.get(), 100);
    }

    #[test]
    fn orders_are_acknowledged_as_read_and_passed_on_once() {
        for (command, order) in [(1, ShutdownKind::PowerOff), (2, ShutdownKind::Reboot)] {
            let world = World::new(0);
            let mut watch = world.watch();
            world.command.set(command);
            let events = watch.poll();
            assert_eq!(events.last(), Some(&Event::GoDown(order)));
            assert!(texts(&events)[0].contains("acknowledged"));
            assert_eq!(*world.answers.borrow(), [command]);
            assert_eq!(watch.poll(), []);
        }
    }

    #[test]
    fn after_a_suspend_the_clock_is_right_and_the_log_has_the_step() {
        let world = World::new(10_800_000_000_000);
        let mut watch = world.watch();
        world.command.set(3);
        let events = watch.poll();
        assert!(world.behind().abs() <= 1_000, "{}", world.behind());
        assert!(texts(&events)[0].contains("set by +10800.000 s"), "{events:?}");
        let Some(Event::ClockSet(step)) = events.last() else { panic!("{events:?}") };
        assert!((step - 10_800_000_000_000).abs() < 20_000);
        assert_eq!(*world.answers.borrow(), [3]);
        assert_eq!((watch.last_step().unwrap().nanos, watch.counts().steps), (*step, 1));
    }

    #[test]
    fn a_step_that_was_held_up_is_mended() {
        let world = World::new(5_000_000_000);
        let mut watch = world.watch();
        world.command.set(3);
        world.late.set(80_000_000);
        watch.poll();
        assert!(world.behind().abs() <= 1_000, "{}", world.behind());
        assert_eq!(watch.counts().steps, 1, "one by the host's word");
    }

    #[test]
    fn a_clock_that_is_right_or_may_not_be_set_is_left_alone_and_the_host_answered() {
        let world = World::new(300_000);
        let mut watch = world.watch();
        world.command.set(3);
        assert!(texts(&watch.poll())[0].contains("left alone"));
        assert_eq!(world.behind(), 300_000);

        let world = World::new(5_000_000_000);
        let mut watch =
            Watch::new(&world, &world, &Config { set_clock: false, ..Config::default() }).unwrap();
        world.command.set(3);
        assert!(texts(&watch.poll())[0].contains("set-clock is off"));

        let mut watch = world.watch();
        world.command.set(3);
        world.may_set.set(false);
        assert!(texts(&watch.poll())[0].contains("cannot be set"));
        assert_eq!(watch.counts().steps, 0);
        assert_eq!((world.behind(), world.answers.borrow().len()), (5_000_000_000, 2));
    }

    #[test]
    fn all_ones_are_said_once_and_cost_no_more_than_anything_else() {
        let world = World::new(0);
        let mut watch = world.watch();
        world.broken.set(Some(u32::MAX));
        world.accesses.set(0);
        assert_eq!(texts(&watch.poll()).len(), 1);
        for _ in 0..1000 {
            assert_eq!(watch.poll(), []);
        }
        assert_eq!((world.accesses.get(), watch.counts().unknown), (1001, 1001));
        assert_eq!(watch.offset(), None);
        world.broken.set(None);
        world.command.set(2);
        assert_eq!(watch.poll().last(), Some(&Event::GoDown(ShutdownKind::Reboot)), "it carries on");
        assert!(world.answers.borrow().iter().all(|answer| *answer == 2));
    }

    #[test]
    fn asking_for_the_offset_again_and_again_costs_nothing() {
        let world = World::new(70_000_000);
        let mut watch = world.watch();
        world.accesses.set(0);
        let offset = watch.offset().unwrap();
        assert!(
            (offset.guest_minus_host.correction() - 70_000_000).abs() <= offset.uncertainty,
            "{offset:?}"
        );
        for _ in 0..100 {
            assert_eq!(watch.offset(), Some(offset));
        }
        assert_eq!(world.accesses.get(), 2 * COMPARISONS);
        world.pass(30_000_000_000);
        assert_ne!(watch.offset(), Some(offset));
    }

    #[test]
    fn the_follower_sets_a_clock_that_the_host_says_nothing_about() {
        let world = World::new(-3_000_000_000);
        let mut watch = world.follower();

        let events = watch.poll();

        assert!(world.behind().abs() <= 1_000, "{}", world.behind());
        assert!(texts(&events)[0].contains("without SYNCRTC: the clock was set by -3.000 s"), "{events:?}");
        assert!(matches!(events.last(), Some(Event::ClockSet(..=-2_999_000_000))), "{events:?}");
        assert_eq!((watch.counts().steps, watch.counts().follow_steps), (1, 1));
        assert!(world.answers.borrow().is_empty(), "the host has asked for nothing");
    }

    #[test]
    fn the_follower_leaves_small_differences() {
        let world = World::new(120_000_000);
        let mut watch = world.follower();

        assert_eq!(watch.poll(), []);
        assert_eq!(world.behind(), 120_000_000);
    }

    #[test]
    fn the_follower_costs_two_accesses_in_an_interval() {
        let world = World::new(0);
        let mut watch = world.follower();

        for _ in 0..3600 {
            watch.poll();
            world.pass(1_000_000_000);
        }

        assert_eq!(world.accesses.get(), 3600 + 2 * 3600 / 15);
    }

    #[test]
    fn beside_an_ntp_daemon_the_follower_does_and_costs_nothing() {
        let world = World::new(3_000_000_000);
        world.steered.set(true);
        let mut watch = world.follower();

        assert_eq!(watch.poll(), []);
        assert_eq!((world.behind(), world.accesses.get()), (3_000_000_000, 1));
    }

    #[test]
    fn the_follower_waits_an_interval_for_an_ntp_daemon_to_come_up() {
        let world = World::new(3_000_000_000);
        let mut watch = world.follower();
        world.pass(-1_000_000_000);

        assert_eq!(watch.poll(), []);
    }

    #[test]
    fn without_leave_to_set_the_clock_there_is_no_follower() {
        let world = World::new(3_000_000_000);
        let config = Config { follow: FOLLOW, set_clock: false, ..Config::default() };
        let mut watch = Watch::new(&world, &world, &config).unwrap();
        world.pass(i64::try_from(FOLLOW.as_nanos()).unwrap());

        assert_eq!(watch.poll(), []);
    }

    #[test]
    fn chrony_gets_a_sample_at_once_and_in_every_interval() {
        let world = World::new(70_000_000);
        let chrony = Chrony { socket: "/run/c".into(), interval: Chrony::INTERVAL };
        let config = Config { chrony: Some(chrony), ..Config::default() };
        let mut watch = Watch::new(&world, &world, &config).unwrap();

        let events: Vec<_> = (0..32)
            .flat_map(|_| {
                world.pass(1_000_000_000);
                watch.poll()
            })
            .collect();

        let [Event::Sample(first), Event::Sample(_)] = events[..] else { panic!("{events:?}") };
        assert!((first.guest_minus_host.correction() - 70_000_000).abs() <= first.uncertainty);
        assert_eq!(watch.sampled(), 2);
    }

    proptest! {
        /// A storm of commands and rubbish: few words, bounded accesses, only what was read is answered, and the clock
        /// ends up right.
        #[test]
        fn a_storm_is_weathered(commands in proptest::collection::vec(prop_oneof![0u32..5, any::<u32>()], 1..400)) {
            let world = World::new(5_000_000_000);
            let mut watch = world.watch();
            world.accesses.set(0);
            let mut words = 0;
            for &command in &commands {
                world.command.set(command);
                let before = world.answers.borrow().len();
                let events = watch.poll();
                words += texts(&events).len();
                for answer in &world.answers.borrow()[before..] {
                    prop_assert_eq!(*answer, command);
                }
                let goes = events.iter().any(|event| matches!(event, Event::GoDown(_)));
                prop_assert!(!goes || matches!(command, 1 | 2));
            }
            let most = 1 + 2 * COMPARISONS + 2 * ATTEMPTS + 2;
            prop_assert!(world.accesses.get() <= most * commands.len());
            prop_assert!(words <= 6, "{} words", words);
            if commands.contains(&3) {
                prop_assert!(world.behind().abs() <= 1_000_000);
            }
        }
    }
}
