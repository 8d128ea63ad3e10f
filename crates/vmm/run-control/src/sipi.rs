//! SIPI states of the vCPUs of 8.0 (`vcpu_runstate` in vm.c): vCPU 0 runs from power-on, all others
//! wait for a STARTUP IPI (SIPI) that a running vCPU sends them.
//!
//! KVM keeps this state only together with its own APICs, which are not used.

use crate::sync::{Mutex, MutexGuard, lock};

/// What INIT and SIPI have a vCPU do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SipiState {
    /// Go on running.
    Run,
    /// Wait for a SIPI, after an INIT or since power-on.
    Wait,
    /// Start in real mode at `vector << 12`.
    Start(u8),
}

/// The SIPI states of all vCPUs. After a change, the caller kicks the vCPU.
#[derive(Debug)]
pub struct SipiStates(Mutex<Vec<SipiState>>);

impl SipiStates {
    /// The states of `vcpus` vCPUs at power-on.
    pub fn new(vcpus: u8) -> Self {
        Self(Mutex::new((0..vcpus).map(|n| if n == 0 { SipiState::Run } else { SipiState::Wait }).collect()))
    }

    /// Delivers an INIT to `vcpu`: stops it in any state and discards a SIPI that it has not taken.
    pub fn init(&self, vcpu: u8) {
        self.lock()[usize::from(vcpu)] = SipiState::Wait;
    }

    /// Delivers a SIPI with `vector` to `vcpu`. Of several SIPIs the first counts; a running vCPU
    /// ignores them.
    pub fn sipi(&self, vcpu: u8, vector: u8) {
        let state = &mut self.lock()[usize::from(vcpu)];
        if *state == SipiState::Wait {
            *state = SipiState::Start(vector);
        }
    }

    /// The state of `vcpu`. [`SipiState::Start`] is returned once and becomes [`SipiState::Run`].
    pub fn take(&self, vcpu: u8) -> SipiState {
        let state = &mut self.lock()[usize::from(vcpu)];
        match *state {
            SipiState::Start(_) => std::mem::replace(state, SipiState::Run),
            other => other,
        }
    }

    /// Whether an INIT or SIPI waits for `vcpu`, which makes its current exit void.
    pub fn overrides_exit(&self, vcpu: u8) -> bool {
        self.lock()[usize::from(vcpu)] != SipiState::Run
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SipiState>> {
        lock(&self.0)
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
        states.init(1);
        states.sipi(1, 0x9a);
        states.sipi(1, 0x10);
        assert!(states.overrides_exit(1));
        assert_eq!([states.take(1), states.take(1)], [SipiState::Start(0x9a), SipiState::Run]);
        states.sipi(1, 0x10);
        assert_eq!(states.take(1), SipiState::Run, "a running vCPU ignores a SIPI");
    }

    #[test]
    fn init_stops_a_running_vcpu_and_discards_a_sipi() {
        let states = SipiStates::new(2);
        for vcpu in [0, 1] {
            states.init(vcpu);
            states.sipi(vcpu, 1);
            states.init(vcpu);
            assert!(states.overrides_exit(vcpu));
            assert_eq!([states.take(vcpu), states.take(vcpu)], [SipiState::Wait, SipiState::Wait]);
        }
    }
}
