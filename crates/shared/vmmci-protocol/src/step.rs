// SPDX-License-Identifier: GPL-2.0-only OR ISC

//! Setting the guest's clock to the host's, with a second look.

use super::Comparison;

/// How many times the clock is set before what is left is accepted.
///
/// Between a comparison and the setting of the clock the guest can be held up: the host ran
/// something else, or the guest's own scheduler did. The clock is then late by that long, which the
/// second look shows.
pub const ATTEMPTS: usize = 3;

/// What is left after the clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The clock was compared again: this is the last comparison.
    Compared(Comparison),
    /// The host's clock could not be read a second time.
    Unknown,
}

/// Sets the guest's clock, compares it again, and sets it again while it is off by more than
/// `tolerance` nanoseconds and by more than the comparison's own error; up to [`ATTEMPTS`] times.
///
/// `first` is the comparison that shows the need. `compare` makes another one. `set_back` sets the
/// guest's clock back by so many nanoseconds, or forward if negative; its error ends the attempts.
pub fn set_clock<E>(
    first: Comparison,
    tolerance: i64,
    mut compare: impl FnMut() -> Option<Comparison>,
    mut set_back: impl FnMut(i64) -> Result<(), E>,
) -> Result<Left, E> {
    let mut left = first;
    for _ in 0..ATTEMPTS {
        set_back(left.offset())?;
        let Some(comparison) = compare() else {
            return Ok(Left::Unknown);
        };
        left = comparison;
        if left.is_within(tolerance) {
            break;
        }
    }
    Ok(Left::Compared(left))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cell::{Cell, RefCell};
    use std::vec::Vec;

    use super::*;
    use crate::HostTime;

    const HOST: HostTime = HostTime {
        seconds: 1_795_348_512,
        micros: 0,
    };

    /// A clock that is off by so much, and is late by the next of `held_up` whenever it is set.
    struct Guest {
        offset: Cell<i64>,
        held_up: RefCell<Vec<i64>>,
        steps: RefCell<Vec<i64>>,
    }

    impl Guest {
        fn new(offset: i64, held_up: &[i64]) -> Self {
            Self {
                offset: Cell::new(offset),
                held_up: RefCell::new(held_up.iter().rev().copied().collect()),
                steps: RefCell::default(),
            }
        }

        fn compare(&self) -> Option<Comparison> {
            let now = HOST.nanos() + self.offset.get();
            Comparison::new((now - 10, HOST, now + 10))
        }

        fn set_back(&self, nanos: i64) {
            self.steps.borrow_mut().push(nanos);
            let late = self.held_up.borrow_mut().pop().unwrap_or(0);
            self.offset.set(self.offset.get() - nanos - late);
        }

        fn set_clock(&self) -> Result<Left, ()> {
            let set_back = |nanos| {
                self.set_back(nanos);
                Ok(())
            };
            set_clock(
                self.compare().unwrap(),
                1_000_000,
                || self.compare(),
                set_back,
            )
        }
    }

    #[test]
    fn a_clock_that_is_right_afterwards_is_set_once() {
        let guest = Guest::new(-37_000_000_000, &[900_000]);
        assert_eq!(
            guest.set_clock(),
            Ok(Left::Compared(guest.compare().unwrap()))
        );
        assert_eq!(*guest.steps.borrow(), [-37_000_000_000]);
        assert_eq!(guest.offset.get(), -900_000);
    }

    #[test]
    fn a_clock_that_was_set_late_is_set_again() {
        let guest = Guest::new(-37_000_000_000, &[4_100_000, 200_000]);
        guest.set_clock().unwrap();
        assert_eq!(*guest.steps.borrow(), [-37_000_000_000, -4_100_000]);
        assert_eq!(guest.offset.get(), -200_000);
    }

    #[test]
    fn attempts_end() {
        let guest = Guest::new(1_000_000_000, &[5_000_000; 10]);
        let left = guest.set_clock().unwrap();
        assert_eq!(guest.steps.borrow().len(), ATTEMPTS);
        assert!(matches!(left, Left::Compared(left) if left.offset() == -5_000_000));
    }

    #[test]
    fn a_host_that_falls_silent_leaves_the_rest_unknown() {
        let guest = Guest::new(1_000_000_000, &[]);
        let first = guest.compare().unwrap();
        let set_back = |nanos| {
            guest.set_back(nanos);
            Ok::<(), ()>(())
        };
        let left = set_clock(first, 0, || None, set_back);
        assert_eq!(left, Ok(Left::Unknown));
        assert_eq!(guest.steps.borrow().len(), 1);
    }

    #[test]
    fn a_clock_that_cannot_be_set_is_not_compared_again() {
        let guest = Guest::new(1_000_000_000, &[]);
        let first = guest.compare().unwrap();
        let left = set_clock(first, 0, || panic!("compared"), |_| Err("not permitted"));
        assert_eq!(left, Err("not permitted"));
    }
}
