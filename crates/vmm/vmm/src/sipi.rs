//! What INIT and STARTUP do to the virtual CPUs of 8.0 (`vcpu_runstate` in vm.c): the first runs from the beginning, all
//! others wait until one that runs sends them a STARTUP.
//!
//! KVM has this state only together with its own APICs.

use std::sync::{Mutex, MutexGuard, PoisonError};

use devices::irqchip::lapic::StartupIpi;

/// What a virtual CPU has been told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SipiState {
    /// Nothing new: go on.
    GoOn,
    /// Wait for a STARTUP. An INIT has stopped it, or it has never run.
    Wait,
    /// Begin in real mode at `vector << 12`.
    Begin(u8),
}

/// See the module's text. Whoever changes something kicks the virtual CPU that it is for.
#[derive(Debug)]
pub(crate) struct Startups(Mutex<Vec<SipiState>>);

impl Startups {
    /// Those of `vcpus` virtual CPUs at power-on.
    pub(crate) fn new(vcpus: u8) -> Self {
        Self(Mutex::new((0..vcpus).map(|n| if n == 0 { SipiState::GoOn } else { SipiState::Wait }).collect()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SipiState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells `vcpu` what another, or itself, has sent it. INIT stops it whatever it does, and takes back a STARTUP that it
    /// has not seen; of several STARTUPs the first counts, and one that runs heeds none.
    pub(crate) fn tell(&self, vcpu: u8, what: StartupIpi) {
        let told = &mut self.lock()[usize::from(vcpu)];
        match (what, *told) {
            (StartupIpi::Init, _) => *told = SipiState::Wait,
            (StartupIpi::Sipi(vector), SipiState::Wait) => *told = SipiState::Begin(vector),
            (StartupIpi::Sipi(_), SipiState::GoOn | SipiState::Begin(_)) => {}
        }
    }

    /// What `vcpu` has been told. One that begins goes on from then.
    pub(crate) fn take(&self, vcpu: u8) -> SipiState {
        let told = &mut self.lock()[usize::from(vcpu)];
        match *told {
            SipiState::Begin(_) => std::mem::replace(told, SipiState::GoOn),
            other => other,
        }
    }

    /// Whether `vcpu` was told to stop what it does.
    pub(crate) fn interrupts(&self, vcpu: u8) -> bool {
        self.lock()[usize::from(vcpu)] != SipiState::GoOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_runs_at_power_on() {
        let startups = Startups::new(3);
        assert_eq!([0, 1, 2].map(|n| startups.take(n)), [SipiState::GoOn, SipiState::Wait, SipiState::Wait]);
    }

    #[test]
    fn the_first_startup_counts_and_is_heeded_once() {
        let startups = Startups::new(2);
        startups.tell(1, StartupIpi::Init);
        startups.tell(1, StartupIpi::Sipi(0x9a));
        startups.tell(1, StartupIpi::Sipi(0x10));
        assert!(startups.interrupts(1));
        assert_eq!([startups.take(1), startups.take(1)], [SipiState::Begin(0x9a), SipiState::GoOn]);
        startups.tell(1, StartupIpi::Sipi(0x10));
        assert_eq!(startups.take(1), SipiState::GoOn, "one that runs heeds no STARTUP");
    }

    #[test]
    fn init_stops_whoever_runs_and_takes_back_a_startup() {
        let startups = Startups::new(2);
        for vcpu in [0, 1] {
            startups.tell(vcpu, StartupIpi::Init);
            startups.tell(vcpu, StartupIpi::Sipi(1));
            startups.tell(vcpu, StartupIpi::Init);
            assert!(startups.interrupts(vcpu));
            assert_eq!([startups.take(vcpu), startups.take(vcpu)], [SipiState::Wait, SipiState::Wait]);
        }
    }
}
