//! Rate limits for the log.

use std::time::{Duration, Instant};

/// Minimum interval between messages about one subject.
const QUIET: Duration = Duration::from_mins(10);

/// Passes one message in ten minutes: a broken device must not fill the log.
#[derive(Debug, Default)]
pub struct Seldom {
    last: Option<Duration>,
    unsaid: u64,
}

impl Seldom {
    /// Returns the text if it is due, with the number of suppressed messages. `now` is a monotonic time.
    pub fn say(&mut self, now: Duration, text: impl FnOnce() -> String) -> Option<String> {
        if self.last.is_some_and(|last| now.saturating_sub(last) < QUIET) {
            self.unsaid += 1;
            return None;
        }
        self.last = Some(now);
        Some(match std::mem::take(&mut self.unsaid) {
            0 => text(),
            unsaid => format!("{} (and {unsaid} more since this was last said)", text()),
        })
    }
}

/// Lines that a budget allows at once.
const BURST: u32 = 100;
/// Time in which a budget allows one more line.
const REFILL: Duration = Duration::from_secs(1);

/// A budget of log lines: `BURST` at once, then one in `REFILL` on average.
#[derive(Debug)]
pub struct Budget {
    left: u32,
    /// Until when the lines of the past have been counted.
    counted: Instant,
}

impl Budget {
    /// A budget of which nothing is used at `now`.
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, counted: now }
    }

    /// Returns whether a line is allowed at `now`, and counts it.
    pub fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.counted).as_secs() / REFILL.as_secs();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.counted += REFILL * earned;
        self.left = self.left.saturating_add(earned).min(BURST);
        let allowed = self.left > 0;
        self.left -= u32::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_allows_a_burst_and_then_a_line_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(start);

        let mut allowed = |second, lines| {
            let now = start + Duration::from_secs(second);
            (0..lines).filter(|_| budget.take(now)).count()
        };

        assert_eq!([allowed(0, 1000), allowed(7, 1000), allowed(3600, 1000)], [100, 7, 100]);
    }

    #[test]
    fn once_in_ten_minutes_and_nothing_is_lost_from_the_count() {
        let mut seldom = Seldom::default();
        let mut say = |second| seldom.say(Duration::from_secs(second), || "x".to_owned());
        assert_eq!(say(5).as_deref(), Some("x"));
        assert_eq!((say(5), say(300), say(604)), (None, None, None));
        assert_eq!(say(605).as_deref(), Some("x (and 3 more since this was last said)"));
        assert_eq!(say(1205).as_deref(), Some("x"));
    }
}
