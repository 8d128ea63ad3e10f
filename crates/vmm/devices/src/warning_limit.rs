//! A limit for warnings that a guest can cause as often as it likes: the log must not grow by the
//! guest's choice.

use std::sync::atomic::{AtomicU32, Ordering};

/// Number of warnings from one place in the code.
const MAX_WARNINGS: u32 = 16;

/// Counts the warnings from one place.
#[derive(Debug, Default)]
pub(crate) struct WarningLimit(AtomicU32);

impl WarningLimit {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Whether one more warning may be shown.
    pub(crate) fn admits(&self) -> bool {
        let count = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n <= MAX_WARNINGS).then_some(n + 1));
        if count == Ok(MAX_WARNINGS) {
            tracing::warn!("more warnings like the last ones are not shown");
        }
        count.is_ok_and(|count| count < MAX_WARNINGS)
    }
}

/// `tracing::warn!` for what a guest can cause as often as it likes.
macro_rules! warn_limited {
    ($($warning:tt)*) => {{
        static LIMIT: $crate::warning_limit::WarningLimit = $crate::warning_limit::WarningLimit::new();
        if LIMIT.admits() {
            tracing::warn!($($warning)*);
        }
    }};
}
pub(crate) use warn_limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_warns_so_often_and_no_more() {
        let limit = WarningLimit::default();
        assert_eq!((0..1000).filter(|_| limit.admits()).count(), 16);
    }
}
