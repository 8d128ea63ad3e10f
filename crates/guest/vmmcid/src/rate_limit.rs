//! A rate limit for log messages.

use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

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
