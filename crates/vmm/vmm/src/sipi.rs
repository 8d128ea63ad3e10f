//! SIPI states of the vCPUs of 8.0 (`vcpu_runstate` in vm.c): vCPU 0 runs from power-on, all others
//! wait for a STARTUP IPI (SIPI) that a running vCPU sends them.
//!
//! KVM keeps this state only together with its own APICs, which are not used.

use devices::irqchip::lapic::StartupIpi;
use parking_lot::Mutex;

/// What INIT and SIPI have a vCPU do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SipiState {
    /// Go on running.
    Run,
    /// Wait for a SIPI, after an INIT or since power-on.
    Wait,
    /// Start in real mode at `vector << 12`.
    Start(u8),
}

/// The SIPI states of all vCPUs. After a change, the caller kicks the vCPU.
#[derive(Debug)]
pub(crate) struct SipiStates(Mutex<Vec<SipiState>>);

impl SipiStates {
    /// The states of `vcpus` vCPUs at power-on.
    pub(crate) fn new(vcpus: u8) -> Self {
        Self(Mutex::new((0..vcpus).map(|n| if n == 0 { SipiState::Run } else { SipiState::Wait }).collect()))
    }

    /// Delivers `ipi` to `vcpu`. INIT stops it in any state and discards a SIPI that it has not
    /// taken. Of several SIPIs the first counts; a running vCPU ignores them.
    pub(crate) fn deliver(&self, vcpu: u8, ipi: StartupIpi) {
        let state = &mut self.0.lock()[usize::from(vcpu)];
        match (ipi, *state) {
            (StartupIpi::Init, _) => *state = SipiState::Wait,
            (StartupIpi::Sipi(vector), SipiState::Wait) => *state = SipiState::Start(vector),
            (StartupIpi::Sipi(_), SipiState::Run | SipiState::Start(_)) => {}
        }
    }

    /// The state of `vcpu`. [`SipiState::Start`] is returned once and becomes [`SipiState::Run`].
    pub(crate) fn take(&self, vcpu: u8) -> SipiState {
        let state = &mut self.0.lock()[usize::from(vcpu)];
        match *state {
            SipiState::Start(_) => std::mem::replace(state, SipiState::Run),
            other => other,
        }
    }

    /// Whether an INIT or SIPI waits for `vcpu`, which makes its current exit void.
    pub(crate) fn overrides_exit(&self, vcpu: u8) -> bool {
        self.0.lock()[usize::from(vcpu)] != SipiState::Run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_runs_at_power_on() {
        let states = SipiStates::new(3);
        assert_eq!([0, 1, 2].map(|n| states.take(n)), [SipiState::Run, SipiState::Wait, SipiState::Wait]);
    }

    #[test]
    fn the_first_sipi_counts_and_is_taken_once() {
        let states = SipiStates::new(2);
        states.deliver(1, StartupIpi::Init);
        states.deliver(1, StartupIpi::Sipi(0x9a));
        states.deliver(1, StartupIpi::Sipi(0x10));
        assert!(states.overrides_exit(1));
        assert_eq!([states.take(1), states.take(1)], [SipiState::Start(0x9a), SipiState::Run]);
        states.deliver(1, StartupIpi::Sipi(0x10));
        assert_eq!(states.take(1), SipiState::Run, "a running vCPU ignores a SIPI");
    }

    #[test]
    fn init_stops_a_running_vcpu_and_discards_a_sipi() {
        let states = SipiStates::new(2);
        for vcpu in [0, 1] {
            states.deliver(vcpu, StartupIpi::Init);
            states.deliver(vcpu, StartupIpi::Sipi(1));
            states.deliver(vcpu, StartupIpi::Init);
            assert!(states.overrides_exit(vcpu));
            assert_eq!([states.take(vcpu), states.take(vcpu)], [SipiState::Wait, SipiState::Wait]);
        }
    }
}
