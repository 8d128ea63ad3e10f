//! Counting the steps of a build.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use support::progress::Progress;

/// Steps that a build takes for each symbol that is set: 1370 for the 632 of a core build of 7.3.4. Only a first guess for
/// the progress bar.
const STEPS_PER_SYMBOL: f64 = 2.2;

/// Counts steps and passes them on to the display. An interrupted build resumes the count.
pub(crate) struct Counter<'a> {
    progress: &'a dyn Progress,
    steps: AtomicU64,
}

impl<'a> Counter<'a> {
    pub(crate) fn new(progress: &'a dyn Progress) -> Self {
        Self { progress, steps: 0.into() }
    }

    /// The number of steps so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }
}

impl Progress for Counter<'_> {
    fn phase(&self, what: &str) {
        self.progress.phase(what);
    }
    fn step(&self, done: u64, total: u64, current: &str) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.progress.step(done, total, current);
    }
    fn note(&self, what: &str) {
        self.progress.note(what);
    }
}

/// The approximate number of steps of a complete build of the configuration in `objects`.
pub(crate) fn estimate(objects: &Path) -> u64 {
    let config = fs::read_to_string(objects.join(".config")).unwrap_or_default();
    let set = config.lines().filter(|line| line.ends_with("=y") || line.ends_with("=m")).count();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "a count of thousands, and an estimate"
    )]
    let steps = (set as f64 * STEPS_PER_SYMBOL) as u64;
    steps.max(1)
}
